"""What an audit is asked: which file, which columns, against which test rows, and with which tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
Read = Callable[[Sequence[str], Sequence[str]], NDArray[np.float32]]
Count = Callable[[Sequence[str]], list[int]]
Tell = Callable[[str], None]


def _silent(text: str) -> None:
    """Let it pass."""


@dataclass(frozen=True, slots=True)
class AuditSource:
    """A file of rows, its columns by part, and the test files it must not repeat; `where` keeps some rows of each."""

    source: str
    columns: Mapping[str, str]
    against: tuple[str, ...] = ()
    where: Mapping[str, Sequence[object]] = field(default_factory=dict)
    shape: str = ""

    @property
    def labelled(self) -> bool:
        """Whether the answer is a label."""
        return "label" in self.columns and "text" in self.columns

    @property
    def judged(self) -> bool:
        """Whether the answer is a judgement, a label, a thumb or a preference, of which one at most is right."""
        return "label" in self.columns or "chosen" in self.columns

    @property
    def answered(self) -> bool:
        """Whether there is an answer in words, whose language may be another than the question's."""
        return not self.labelled and "text" not in self.columns


@dataclass(frozen=True, slots=True)
class Tools:
    """What helps: processes, a model's sentence embeddings (unit length), its count of tokens, who listens.

    `read` gives the model's states [N, D] after texts that were asked which of some labels fits.
    """

    workers: int = 1
    embed: Embed | None = None
    read: Read | None = None
    count: Count | None = None
    limit: int = 0
    offline: bool = False
    tell: Tell = _silent

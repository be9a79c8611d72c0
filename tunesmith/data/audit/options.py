"""Options of an audit: the file, its columns, the test files, and optional tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
Read = Callable[[Sequence[str], Sequence[str]], NDArray[np.float32]]
Count = Callable[[Sequence[str]], list[int]]
LogHandler = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AuditSource:
    """The file to audit."""

    source: str  # file or Hub dataset
    columns: Mapping[str, str]  # role -> column
    against: tuple[str, ...] = ()  # test files that must not be repeated
    # column -> allowed values; filters the rows of every file
    where: Mapping[str, Sequence[object]] = field(default_factory=dict)
    shape: str = ""  # the detected format in words
    separator: str = ""  # of several labels in a text; empty: each text is one label

    @property
    def labelled(self) -> bool:
        """True if the answer is a label."""
        return "label" in self.columns and "text" in self.columns

    @property
    def judged(self) -> bool:
        """True if the answer is a judgement (label, rating, preference or spans), so that at most one can be right."""
        return "label" in self.columns or "chosen" in self.columns or self.spanned

    @property
    def spanned(self) -> bool:
        """True if the answer is spans of the text."""
        return "spans" in self.columns or "words" in self.columns

    @property
    def answered(self) -> bool:
        """True if there is an answer in words, whose language may differ from that of the prompt."""
        asked = "prompt" in self.columns and not self.columns.keys() & {"answer", "chosen", "label"}
        return not self.labelled and "text" not in self.columns and not asked


@dataclass(frozen=True, slots=True)
class Tools:
    """Optional tools of an audit."""

    workers: int = 1  # number of processes
    embed: Embed | None = None  # sentence embeddings of texts, [N, D], unit length
    read: Read | None = None  # final states of a model, [N, D], for texts prompted with "which of these labels fits"
    count: Count | None = None  # number of tokens of each text
    limit: int = 0  # token limit of the model; 0: none
    offline: bool = False  # do not download datasets
    log: LogHandler = field(default=lambda text: None)  # receives progress messages

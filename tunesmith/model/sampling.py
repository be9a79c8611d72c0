"""How an answer is drawn, and what comes back: the words every responder shares. No torch in here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunesmith.data.examples import Message


@dataclass(frozen=True, slots=True)
class Sampling:
    """Decoding settings; temperature 0 is greedy."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its text, token counts, and whether it ended by itself."""

    text: str
    prompt_tokens: int
    new_tokens: int
    finished: bool


class Responder(Protocol):
    """Anything that answers messages."""

    def reply(self, messages: Sequence[Message], *, sampling: Sampling) -> Reply:
        """One answer."""
        ...

    def replies(self, batch: Sequence[Sequence[Message]], *, sampling: Sampling) -> list[Reply]:
        """An answer to each, in order."""
        ...

    def stream(self, messages: Sequence[Message], *, sampling: Sampling) -> Iterator[str]:
        """One answer, in pieces as it comes."""
        ...

    def scores(self, messages: Sequence[Message], options: Sequence[str]) -> list[float]:
        """Log-probability of each given answer."""
        ...

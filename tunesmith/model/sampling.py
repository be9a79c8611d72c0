"""How an answer is drawn, and what comes back: the words every responder shares. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass


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

"""How an answer is drawn, and what comes back: the words every responder shares. No torch in here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tunesmith.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Sampling:
    """Decoding settings; temperature 0 is greedy. Raises RecipeError for what nothing can be drawn with."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:  # so written, nan is none of them
            raise RecipeError(f"temperature: {self.temperature} is no number from 0 on; 0 takes the likeliest token")
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"top_p: {self.top_p} is no share; give a number above 0, at most 1")
        if self.max_new_tokens < 1:
            raise RecipeError(f"max_new_tokens: {self.max_new_tokens} leaves no room for an answer; give 1 or more")
        if isinstance(self.stop, str):  # each of its letters would end an answer
            raise RecipeError(f"stop: {self.stop!r} is one text; write (text,)")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its text, token counts, and whether it ended by itself."""

    text: str
    prompt_tokens: int
    new_tokens: int
    finished: bool

"""Decoding settings and the reply they produce, shared by every inference backend. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tunesmith.data.tokenization.tool_calls import calls_in
from tunesmith.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Sampling:
    r"""Decoding settings.

        Sampling()  # greedy, at most 256 tokens
        Sampling(max_new_tokens=64, temperature=0.7, top_p=0.9, stop=("\n",), seed=1)

    Raises:
        RecipeError: if a value is out of range.
    """

    max_new_tokens: int = 256  # limit of the completion, in tokens
    temperature: float = 0.0  # 0 is greedy decoding
    top_p: float = 1.0  # sample from the smallest set of tokens with this probability mass
    stop: tuple[str, ...] = ()  # strings that end the completion
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:  # written this way, it also rejects nan
            raise RecipeError(f"temperature: expected a number >= 0, got {self.temperature}; use 0 for greedy decoding")
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"top_p: expected a number in (0, 1], got {self.top_p}; use 1 to sample from all tokens")
        if self.max_new_tokens < 1:
            raise RecipeError(f"max_new_tokens: expected an integer >= 1, got {self.max_new_tokens}; use 256")
        if isinstance(self.stop, str):  # each of its letters would end the completion
            raise RecipeError(f"stop: expected a list of strings, got the string {self.stop!r}; write (text,)")
        if "" in self.stop:
            raise RecipeError("stop: a string is empty, which would end every completion; leave it out")


@dataclass(frozen=True, slots=True)
class Reply:
    """A generated answer."""

    text: str
    prompt_tokens: int
    new_tokens: int
    finished: bool  # ended by itself, not by the token limit
    thoughts: str = ""  # what the model thought before the answer
    thought_tokens: int = 0  # of `new_tokens`, those of the thoughts
    thoughts_ended: bool = True  # false if they were cut off, so that there is no answer

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Return the tool calls in the text, in order: `{"name": ..., "arguments": {...}}`."""
        return calls_in(self.text)

    def __str__(self) -> str:
        return self.text

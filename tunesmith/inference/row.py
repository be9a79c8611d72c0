"""One answer on its way: what is known of it, and what is told of it as it grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tunesmith.inference.shelf import ServedModel
from tunesmith.model.generate import before_stop, chance_of, choose, decided
from tunesmith.model.grammar import Follower, GrammarError
from tunesmith.model.sampling import Sampling

# How an answer ends: by itself, at its longest, too late, nobody waits, asked wrongly, or by a bug of ours.
End = Literal["", "stop", "length", "late", "gone", "wrong", "broken"]


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of an answer, its log-probability, and the likeliest tokens in its place with theirs."""

    id: int
    logprob: float
    best: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What came since the last piece; the last one says how the answer ended and, of a failure, why."""

    text: str = ""
    scored: tuple[ScoredToken, ...] = ()
    end: End = ""
    prompt_tokens: int = 0
    new_tokens: int = 0
    why: str = ""
    shortened: bool = False  # the question was longer than the model reads, and was not read whole


Told = Callable[[Piece], None]


@dataclass(slots=True, eq=False)
class LiveAnswer:
    """An answer being written. `best` is how many likely tokens are told beside each, -1 for no scores at all."""

    run: ServedModel
    prompt: list[int]
    sampling: Sampling
    told: Told
    follower: Follower | None = None
    best: int = -1
    in_pieces: bool = False
    as_it_is: bool = False  # space around the answer belongs to it
    shortened: bool = False
    ids: list[int] = field(default_factory=list)
    last: Tensor = field(default_factory=lambda: torch.empty(0))  # [D], the state that the next token follows from
    said: str = ""
    scored: list[ScoredToken] = field(default_factory=list)

    @property
    def columns(self) -> int:
        """Tokens of it that have keys and values."""
        return self.run.virtual + len(self.prompt) + len(self.ids)

    def draw(self, logits: Tensor) -> int:
        """The next token from [V]."""
        if self.follower is not None:
            whole = logits.clone() if self.best >= 0 else logits
            self.follower.mask(logits)
        else:
            whole = logits
        token = int(choose(logits[None], [self._chance()], self.sampling))
        if self.best >= 0:
            self._score(whole, token)
        return token

    def take(self, token: int) -> bool:
        """Whether the answer ends with this token; tells what can be told."""
        template = self.run.model.template
        if token in template.stop_ids:
            if self.scored:
                self.scored.pop()  # the end of the turn is no part of the answer
            self._end("stop")
            return True
        self.ids.append(token)
        try:
            done = self.follower is not None and self.follower.take(token)
        except GrammarError as error:
            self._end("wrong", str(error))
            return True
        if self.in_pieces or self.sampling.stop:
            text = template.decode(self.ids)
            done = done or any(stop in text for stop in self.sampling.stop)
            if self.in_pieces and not done:
                self._tell(text)
        if done or len(self.ids) >= self.sampling.max_new_tokens:
            self._end("stop" if done else "length")
            return True
        return False

    def leave(self, end: End, why: str = "") -> None:
        """Say that it ends here, whatever the reason."""
        self._end(end, why)

    def _tell(self, text: str) -> None:
        """What is sure of the text so far: whole characters, no stop string begun, no space that may be the last."""
        if text.endswith("\ufffd"):
            return
        whole = decided(text, self.sampling.stop)
        sure, scored = self._bare(whole), self._scored_within(text, len(whole))
        if len(sure) > len(self.said) or scored:
            self.told(Piece(sure[len(self.said) :], tuple(scored)))
            self.said, self.scored = max(self.said, sure, key=len), self.scored[len(scored) :]

    def _end(self, end: End, why: str = "") -> None:
        text = self.run.model.template.decode(self.ids)
        whole = before_stop(text, self.sampling.stop)
        said, scored = self._bare(whole)[len(self.said) :], tuple(self._scored_within(text, len(whole)))
        counts = (len(self.prompt), len(self.ids))
        self.told(Piece(said, scored, end, *counts, why, self.shortened))

    def _scored_within(self, text: str, length: int) -> list[ScoredToken]:
        """The scores of tokens that begin within so many characters of the text: a stop string is no part of it."""
        left = 0
        while left < len(self.scored) and length < len(text):
            before = self.run.model.template.decode(self.ids[: len(self.ids) - left - 1])
            if len(before.rstrip("\ufffd")) < length:  # else a part of a character would count as one
                break
            left += 1
        return self.scored[: len(self.scored) - left]

    def _bare(self, text: str) -> str:
        return text if self.as_it_is else text.strip()

    def _chance(self) -> torch.Generator:
        """Chance of this token: the same as of a row that is drawn alone."""
        if self._generator is None:
            self._generator = chance_of(self.sampling.seed, self.prompt)
        return self._generator

    _generator: torch.Generator | None = None

    def _score(self, logits: Tensor, token: int) -> None:
        logs = logits.log_softmax(dim=0)
        found = logs.topk(self.best) if self.best else None
        best = tuple(zip(found.indices.tolist(), found.values.tolist(), strict=True)) if found is not None else ()
        self.scored.append(ScoredToken(token, float(logs[token]), best))

"""A request in the running batch, and the chunks in which its completion is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tunesmith.inference.serving.registry import ServedModel
from tunesmith.models.generation.generate import before_stop, chance_of, choose, decided
from tunesmith.models.generation.json_grammar import Follower, GrammarError
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.generation.thoughts import ThoughtSplitter

# End of a completion: end token or stop string, token limit, timeout, cancelled, invalid request, internal error.
End = Literal["", "stop", "length", "late", "gone", "wrong", "broken"]


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of a completion and its log-probability."""

    id: int
    logprob: float  # nats
    best: tuple[tuple[int, float], ...] = ()  # the likeliest tokens at this position, with log-probabilities


@dataclass(frozen=True, slots=True)
class CompletionChunk:
    """The part of a completion since the last chunk; the last chunk contains its end and the token counts."""

    text: str = ""
    scored: tuple[ScoredToken, ...] = ()
    end: End = ""
    prompt_tokens: int = 0
    new_tokens: int = 0
    why: str = ""  # reason of a failure
    shortened: bool = False  # the prompt exceeded the limit of the model and was shortened
    thoughts: str = ""  # what the model thinks before its answer
    thought_tokens: int = 0  # of `new_tokens`, those before the answer


ChunkHandler = Callable[[CompletionChunk], None]


@dataclass(slots=True, eq=False)
class ActiveRequest:
    """A completion being generated."""

    run: ServedModel
    prompt: list[int]
    sampling: Sampling
    on_chunk: ChunkHandler
    follower: Follower | None = None
    best: int = -1  # alternatives reported per token; -1: no log-probabilities
    in_pieces: bool = False  # report chunks while the completion grows
    keep_whitespace: bool = False  # keep whitespace around the completion
    shortened: bool = False
    splitter: ThoughtSplitter | None = None  # None: the completion of a text, in which nothing is a thought
    ids: list[int] = field(default_factory=list)
    last: Tensor = field(default_factory=lambda: torch.empty(0))  # [D], state of the last token
    sent: str = ""  # text reported so far
    sent_thoughts: str = ""  # thoughts reported so far
    scored: list[ScoredToken] = field(default_factory=list)  # not reported yet

    @property
    def columns(self) -> int:
        """Number of tokens in the KV cache."""
        return self.run.virtual + len(self.prompt) + len(self.ids)

    def draw(self, logits: Tensor) -> int:
        """Sample the next token from logits [V]."""
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
        """Append a token, report what is final, and return whether the completion ends."""
        template = self.run.model.template
        if token in template.stop_ids:
            if self.scored:
                self.scored.pop()  # the end token is not part of the completion
            self._end("stop")
            return True
        self.ids.append(token)
        try:
            done = self.follower is not None and self.follower.take(token)
        except GrammarError as error:
            self._end("wrong", str(error))
            return True
        if self.in_pieces or self.sampling.stop:
            text = self._decode(self.ids)
            done = done or any(stop in text for stop in self.sampling.stop)
            if self.in_pieces and not done:
                self._tell(text)
        if done or len(self.ids) >= self.sampling.max_new_tokens:
            self._end("stop" if done else "length")
            return True
        return False

    def leave(self, end: End, why: str = "") -> None:
        """End the completion early and report the reason."""
        self._end(end, why)

    def _tell(self, text: str) -> None:
        """Report the final part of the text: whole characters, no partial stop string, no trailing whitespace."""
        if text.endswith("\ufffd"):
            return
        whole = decided(text, self.sampling.stop)
        thoughts, final = ("", whole) if self.splitter is None else self.splitter.ready(whole)
        thoughts, final = thoughts.strip(), self._bare(final)
        scored = self._scored_within(text, len(whole))
        if len(final) > len(self.sent) or len(thoughts) > len(self.sent_thoughts) or scored:
            new_thoughts = thoughts[len(self.sent_thoughts) :]
            self.on_chunk(CompletionChunk(final[len(self.sent) :], tuple(scored), thoughts=new_thoughts))
            self.sent = max(self.sent, final, key=len)
            self.sent_thoughts = max(self.sent_thoughts, thoughts, key=len)
            self.scored = self.scored[len(scored) :]

    def _end(self, end: End, why: str = "") -> None:
        text = self._decode(self.ids)
        whole = before_stop(text, self.sampling.stop)
        thoughts, final = ("", whole) if self.splitter is None else self.splitter.split(whole)
        self.on_chunk(
            CompletionChunk(
                self._bare(final)[len(self.sent) :],
                tuple(self._scored_within(text, len(whole))),
                end,
                len(self.prompt),
                len(self.ids),
                why,
                self.shortened,
                thoughts.strip()[len(self.sent_thoughts) :],
                0 if self.splitter is None else self.splitter.thought_tokens(self.ids),
            )
        )

    def _scored_within(self, text: str, length: int) -> list[ScoredToken]:
        """Return the scores of tokens that begin within `length` characters, without those of a stop string."""
        dropped = 0
        while dropped < len(self.scored) and length < len(text):
            before = self._decode(self.ids[: len(self.ids) - dropped - 1])
            if len(before.rstrip("\ufffd")) < length:  # stripped, because a partial character is not yet a character
                break
            dropped += 1
        return self.scored[: len(self.scored) - dropped]

    def _decode(self, ids: list[int]) -> str:
        return self.run.model.template.decode(ids) if self.splitter is None else self.splitter.decode(ids)

    def _bare(self, text: str) -> str:
        return text if self.keep_whitespace else text.strip()

    def _chance(self) -> torch.Generator:
        """Return the random generator, seeded as for a row that is generated alone."""
        if self._generator is None:
            self._generator = chance_of(self.sampling.seed, self.prompt)
        return self._generator

    _generator: torch.Generator | None = None

    def _score(self, logits: Tensor, token: int) -> None:
        logs = logits.log_softmax(dim=0)
        top = logs.topk(self.best) if self.best else None
        best = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)) if top is not None else ()
        self.scored.append(ScoredToken(token, float(logs[token]), best))

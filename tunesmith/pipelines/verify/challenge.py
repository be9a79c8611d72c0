"""The challenge of a run: prompts to which base and tuned model answer differently, by known margins. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from pathlib import Path
from statistics import NormalDist

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.data.files import quoted, read_page
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import CheckpointError

FILE = "challenge.json"
# Standard deviation of rounding, in nats: between the dtypes and kernels of engines, of the lead of a token over the
# next best one; and that of half an adapter, whose leads are only estimated.
ROUNDING, DAMAGE = 0.15, 1.0
# A prompt never counts as certain: engines differ in more than rounding, and damage takes many forms.
KEPT, LOST, LOST_TUNED = (0.5, 0.97), (0.3, 0.85), 0.5


class Turn(BaseModel):
    """One message of a prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    content: str


class Margins(BaseModel):
    """The certainty of the beginning of a greedy answer, in nats.

    A lead is the difference between the log-probabilities of a token of the answer and of the likeliest other token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    logprob: float  # of the answer under the model that gives it
    other_logprob: float  # of the same answer under the other one of tuned and base
    leads: tuple[float, ...] = Field(max_length=64)  # of each token under the model that gives the answer
    halfway: float  # smallest lead under the mean of both models' log-probabilities, close to half an adapter

    @property
    def kept(self) -> float:
        """The probability that an engine gives this answer, if it runs this model and rounds in its own way."""
        chance = 1.0
        for lead in self.leads:
            chance *= NormalDist().cdf(lead / ROUNDING)
        return _within(chance, KEPT)

    @property
    def lost(self) -> float:
        """The largest probability of this answer that is assumed of any model but this one."""
        return _within(max(NormalDist().cdf(self.halfway / DAMAGE), 0.5 ** len(self.leads)), LOST)


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


class Prompt(BaseModel):
    """A prompt with the beginnings of the greedy answers of tuned and base model, as far as they are certain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: str  # file:line, or the id of a general question
    messages: tuple[Turn, ...] = Field(min_length=1, max_length=16)
    tuned: str
    base: str  # empty if it does not distinguish the base
    tuned_margins: Margins
    base_margins: Margins
    robust: bool = False  # the tuned answer begins so with half the adapter, too, so that it does not show such damage

    @property
    def lost(self) -> float:
        """The largest probability of the tuned answer that is assumed of any other model."""
        return LOST[1] if self.robust else max(LOST_TUNED, self.tuned_margins.lost)

    def by_tuned(self, answer: str) -> bool:
        """Return whether an answer begins as that of the tuned model."""
        return answer.startswith(self.tuned)

    def by_base(self, answer: str) -> bool:
        """Return whether an answer begins as that of the base."""
        return bool(self.base) and answer.startswith(self.base)

    @property
    def chat(self) -> list[Message]:
        """Return the messages as other code takes them."""
        return [Message(turn.role, turn.content) for turn in self.messages]


class Challenge(BaseModel):
    """Prompts that distinguish a tuned model from its base, and what the answers were computed with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(1, ge=1, le=1)
    name: str  # run or adapter
    base: str
    fingerprint: str  # of the weights of the base
    template: str  # digest of the chat template
    tokenizer: str  # digest of the token ids of all prompts
    tokens: int = Field(ge=1, le=64)  # longest answer
    thinking: bool | None = None  # the switch of thinking in the prompts; None: the template has none
    seconds: float  # that making it took
    prompts: tuple[Prompt, ...] = Field(max_length=256)


def read_challenge(place: Path) -> Challenge:
    """Read the challenge of a run, or a challenge file.

    Args:
        place: run folder, its model folder, or the file.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if place.is_file():
        return read_page(place, Challenge)
    folder = place.parent if place.name == "model" else place
    if (folder / FILE).is_file():
        return read_page(folder / FILE, Challenge)
    if not place.exists():
        raise CheckpointError(f"{place}: no such run or file; check the path")
    raise CheckpointError(
        f"{place}: no {FILE} in it; make one with `tunesmith verify make {quoted(place)} --out {FILE}`"
    )


def most_telling(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Return the `count` prompts whose answers are the most evidence, for the tuned model and for the base.

    Evidence is the expected log-likelihood ratio, in nats.
    """

    def evidence(kept: float, lost: float) -> float:
        return kept * log(kept / lost) + (1 - kept) * log((1 - kept) / (1 - lost))

    def both(prompt: Prompt) -> float:
        base = prompt.base_margins
        of_tuned = evidence(prompt.tuned_margins.kept, prompt.lost)
        return of_tuned + (evidence(base.kept, base.lost) / 2 if prompt.base else 0)

    return sorted(prompts, key=lambda prompt: -both(prompt))[:count]

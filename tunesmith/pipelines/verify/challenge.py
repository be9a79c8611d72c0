"""The challenge of a run: prompts that the tuned model answers otherwise than its base and damaged copies. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.data.files import quoted, read_page
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import CheckpointError
from tunesmith.inference.identify import HEAD, MANIFEST_FILE, read_manifest

FILE = "challenge.json"
TURNS = 16  # of a prompt


class Turn(BaseModel):
    """One message of a prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    content: str


class CertainAnswer(BaseModel):
    """A greedy answer up to its first uncertain token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    ends: bool = False  # the model certainly ends here, so that a longer answer is another one

    def given_by(self, answer: str) -> bool:
        """Return whether an answer is this one."""
        return answer == self.text if self.ends else answer.startswith(self.text)


class Prompt(BaseModel):
    """A prompt with the certain answers of tuned and base model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: str  # file:line, or the id of a general question
    messages: tuple[Turn, ...] = Field(min_length=1, max_length=TURNS)
    tuned: CertainAnswer | None  # None if damaged copies give the same answer, so that it does not count
    base: CertainAnswer | None  # None if the base is not certain

    def by_tuned(self, answer: str) -> bool:
        """Return whether an answer is that of the tuned model."""
        return self.tuned is not None and self.tuned.given_by(answer)

    def by_base(self, answer: str) -> bool:
        """Return whether an answer is that of the base."""
        return self.base is not None and self.base.given_by(answer)

    @property
    def chat(self) -> list[Message]:
        """Return the messages as other code takes them."""
        return [Message(turn.role, turn.content) for turn in self.messages]


class Challenge(BaseModel):
    """Prompts that distinguish a tuned model from its base, and how they were answered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(2, ge=2, le=2)
    name: str  # run or adapter
    base: str
    rendered: str  # digest of the token ids of all prompts
    tokens: int = Field(ge=1, le=64)  # longest answer
    thinking: bool | None = None  # the switch of thinking in the prompts; None: the template has none
    seconds: float  # that making it took
    prompts: tuple[Prompt, ...] = Field(min_length=1, max_length=256)


def compared(thoughts: str, text: str) -> str:
    """Return what is compared of an answer: its thoughts, which are most of a short one, and its text."""
    return f"{thoughts.strip()} {text.strip()}".strip()


def digest_of(prompts: Sequence[Sequence[int]]) -> str:
    """Return the digest of the token ids of prompts, by which another chat template or tokenizer is found."""
    return sha256(json.dumps([list(ids) for ids in prompts]).encode()).hexdigest()[:16]


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
    model = folder / "model"
    if (model / MANIFEST_FILE).is_file() and (read_manifest(model).family != "decoder" or (model / HEAD).is_file()):
        raise CheckpointError(f"{place}: does not answer in words; verify a decoder without a head")
    raise CheckpointError(
        f"{place}: no {FILE} in it; make one with `tunesmith verify make {quoted(place)} --out {quoted(folder / FILE)}`"
    )

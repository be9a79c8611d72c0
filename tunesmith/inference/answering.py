"""What a server needs of whatever answers: an engine, and the models that it knows by name."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from tunesmith.data.template import Template
from tunesmith.errors import TunesmithError
from tunesmith.inference.ask import Ask
from tunesmith.inference.row import Told
from tunesmith.inference.texts import Kind
from tunesmith.model.sampling import Sampling
from tunesmith.recipe import AnyObjective


class Busy(TunesmithError):
    """The queue is full, or the engine ends."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server takes on: answers at once, questions that wait, tokens of an answer, seconds from asking to end,
    tokens of questions and texts that are read between two steps, and memory for what questions begin with."""

    rows: int = 32
    waiting: int = 256
    new_tokens: int = 4096
    seconds: float = 120.0
    read: int = 1024
    kept_bytes: int = 256 * 2**20


@dataclass(slots=True)
class Counts:
    """What an engine has done since it began."""

    asked: int = 0
    tokens: int = 0
    steps: int = 0
    reused: int = 0
    failed: int = 0


class Model(Protocol):
    """A model under its name."""

    @property
    def name(self) -> str:
        """What requests call it."""
        ...

    @property
    def version(self) -> int:
        """Which of the folders given for the name it is."""
        ...

    @property
    def objective(self) -> AnyObjective:
        """What it was tuned to do."""
        ...

    @property
    def limit(self) -> int:
        """The longest question in tokens."""
        ...

    @property
    def sampling(self) -> Sampling:
        """How it answers where nobody says how."""
        ...

    @property
    def template(self) -> Template:
        """How a question becomes ids."""
        ...


class Models(Protocol):
    """What is served."""

    def get(self, name: str) -> Model:
        """The model of that name. Raises UnknownModel."""
        ...

    def runs(self) -> Sequence[Model]:
        """Everything that answers."""
        ...

    def load(self, name: str) -> Model:
        """The model of that name, read anew."""
        ...

    def unload(self, name: str) -> None:
        """Nobody is answered under that name from now on."""
        ...

    def roll_back(self, name: str) -> Model:
        """The version before the one that is served."""
        ...


class Taken(Protocol):
    """A question that was taken."""

    def cancel(self) -> object:
        """Nobody waits for its answer any more."""
        ...


class AnsweringEngine(Protocol):
    """An engine."""

    @property
    def shelf(self) -> Models:
        """What it answers with."""
        ...

    @property
    def limits(self) -> Limits:
        """What it takes on."""
        ...

    @property
    def counts(self) -> Counts:
        """What it has done."""
        ...

    @property
    def at_work(self) -> int:
        """Answers being written."""
        ...

    @property
    def queued(self) -> int:
        """Questions that wait."""
        ...

    def ask(self, ask: Ask, told: Told) -> Taken:
        """Take a question; raises UnknownModel, AskError and Busy."""
        ...

    def whole(self, name: str, kind: Kind, texts: Sequence[str]) -> Future[Any]:
        """Labels or states of texts. Raises AskError where it has none."""
        ...

    def close(self, seconds: float = 30.0) -> None:
        """Take nothing more and stop."""
        ...

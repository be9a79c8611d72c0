"""Protocols between the HTTP server and the inference engines: an engine and its models."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from tunesmith.config import AnyObjective
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.errors import TunesmithError
from tunesmith.inference.serving.live_answer import ChunkHandler
from tunesmith.inference.serving.request import GenerationRequest
from tunesmith.inference.serving.text_batches import Item, Kind
from tunesmith.models.generation.sampling import Sampling


class Busy(TunesmithError):
    """The queue is full, or the engine is shutting down."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a server."""

    rows: int = 32  # concurrent requests
    waiting: int = 256  # queued requests
    new_tokens: int = 4096  # of one completion
    seconds: float = 120.0  # from arrival of a request to its end
    read: int = 1024  # prompt tokens processed between two decoding steps
    kept_bytes: int = 256 * 2**20  # of the prefix cache


@dataclass(slots=True)
class Counts:
    """Counters since startup of an engine."""

    asked: int = 0
    tokens: int = 0
    steps: int = 0
    reused: int = 0
    failed: int = 0


class Model(Protocol):
    """A model under its name."""

    @property
    def name(self) -> str:
        """The name in requests."""
        ...

    @property
    def version(self) -> int:
        """The index, from 1, of its folder among those registered under the name."""
        ...

    @property
    def objective(self) -> AnyObjective:
        """The objective it was tuned with."""
        ...

    @property
    def limit(self) -> int:
        """Greatest prompt length in tokens."""
        ...

    @property
    def sampling(self) -> Sampling:
        """Default sampling options."""
        ...

    def sampling_for(self, thinking: bool | None) -> Sampling:
        """Return the default sampling options of a mode."""
        ...

    def thinking_mode(self, thinking: bool | None) -> bool | None:
        """Return the mode of a prompt for a requested one; raise RecipeError if the model does not have it."""
        ...

    @property
    def template(self) -> Template:
        """The tokenizer and chat template."""
        ...


class Models(Protocol):
    """A model registry."""

    def get(self, name: str) -> Model:
        """Return a model by name; raise UnknownModel."""
        ...

    def runs(self) -> Sequence[Model]:
        """Return all models."""
        ...

    def load(self, name: str) -> Model:
        """Load or reload a model."""
        ...

    def unload(self, name: str) -> None:
        """Reject further requests to a model."""
        ...

    def roll_back(self, name: str) -> Model:
        """Switch to the previous version of a model."""
        ...


class Taken(Protocol):
    """An accepted request."""

    def cancel(self) -> object:
        """Cancel the request."""
        ...


class AnsweringEngine(Protocol):
    """An inference engine."""

    @property
    def registry(self) -> Models:
        """The model registry."""
        ...

    @property
    def limits(self) -> Limits:
        """The limits of the server."""
        ...

    @property
    def counts(self) -> Counts:
        """Counters since startup."""
        ...

    @property
    def at_work(self) -> int:
        """Number of running requests."""
        ...

    @property
    def queued(self) -> int:
        """Number of queued requests."""
        ...

    def ask(self, request: GenerationRequest, on_chunk: ChunkHandler) -> Taken:
        """Accept a request; raise UnknownModel, AskError or Busy.

        Args:
            request: the request.
            on_chunk: receives the completion in chunks, the last one with its end.
        """
        ...

    def whole(self, name: str, kind: Kind, texts: Sequence[Item]) -> Future[Any]:
        """Classify, embed or rank texts; raise AskError if the model cannot.

        Args:
            name: the model.
            kind: what to compute.
            texts: the texts; for `relevance` a query with a passage each.
        """
        ...

    def close(self, seconds: float = 30.0) -> None:
        """Reject new requests and stop after at most this many seconds."""
        ...

"""Who writes rows for `collect`: a model on this machine, or a server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tunesmith.data.collect.endpoint import Endpoint, ask_endpoint
from tunesmith.data.collect.written import Answer, Ask
from tunesmith.data.examples import Message
from tunesmith.events import EventHandler, StageStarted

Listen = EventHandler
# Questions that a local model answers at a time, and the tokens of a passage with its instruction.
BATCH_SIZE, LOCAL_LIMIT = 8, 2048
PACE = 5.0


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes rows: a local model by name, or a server by address; and how it is asked."""

    name: str
    model: str = ""
    key: str = field(default="", repr=False)
    temperature: float = 0.7
    max_tokens: int = 512
    seed: int = 0

    @property
    def remote(self) -> bool:
        """Whether it is a server."""
        return self.name.startswith(("http://", "https://"))

    @property
    def identity(self) -> str:
        """What its answers depend on, as one text; the key is not part of it."""
        return json.dumps([self.name, self.model, self.temperature, self.max_tokens, self.seed])


def ask_writer(writer: Writer, *, offline: bool) -> Ask:
    """The way to the model."""
    if writer.remote:
        endpoint = endpoint_of(writer)
        return lambda questions: ask_endpoint(endpoint, questions, offline=offline)
    return lambda questions: _ask_local(writer, questions, offline=offline)


def endpoint_of(writer: Writer) -> Endpoint:
    """The server that writes."""
    return Endpoint(writer.name, writer.model, writer.key, writer.temperature, writer.max_tokens, writer.seed)


def _ask_local(
    writer: Writer, questions: Sequence[Sequence[Message]], *, offline: bool
) -> Iterator[tuple[int, Answer]]:
    from tunesmith.inference.open import open_model
    from tunesmith.model.sampling import Sampling

    model = open_model(writer.name, offline=offline, limit=LOCAL_LIMIT)
    sampling = Sampling(max_new_tokens=writer.max_tokens, temperature=writer.temperature, top_p=0.95, seed=writer.seed)
    for start in range(0, len(questions), BATCH_SIZE):
        replies = model.replies(questions[start : start + BATCH_SIZE], sampling=sampling)
        yield from ((start + i, Answer(reply.text, reply.finished)) for i, reply in enumerate(replies))


def counted(request: Ask, on_event: EventHandler) -> Ask:
    """The same, saying now and then how far it is."""

    def counting(questions: Sequence[Sequence[Message]]) -> Iterator[tuple[int, Answer]]:
        last = time.monotonic()
        for count, (place, answer) in enumerate(request(questions), 1):
            yield place, answer
            if time.monotonic() - last >= PACE or count == len(questions):
                last = time.monotonic()
                on_event(StageStarted(f"{count} of {len(questions)} answers"))

    return counting

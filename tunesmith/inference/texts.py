"""Texts whose labels or states are asked for, read in slices so that the answers beside them grow in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.errors import TunesmithError
from tunesmith.inference.local import LocalModel
from tunesmith.inference.shelf import ServedModel

Kind = Literal["labels", "states"]
TEXTS = 64  # read in one go where nothing else is to be done


@dataclass(slots=True, eq=False)
class Texts:
    """Texts of one asker, and what was found of the first of them so far."""

    run: ServedModel
    kind: Kind
    texts: Sequence[str]
    until: float
    future: Future[list[Any]] = field(default_factory=Future)
    found: list[Any] = field(default_factory=list)

    @property
    def left(self) -> Sequence[str]:
        """What is still to be read."""
        return self.texts[len(self.found) :]

    def overdue(self, now: float) -> bool:
        """Whether nobody waits for them any more, or they took too long and whoever waits is told."""
        return self.future.cancelled() or (now > self.until and self.future.cancel())


def together(waiting: deque[Texts]) -> list[Texts]:
    """Take the first of those that wait out of their queue, and those after it that the same run reads with it."""
    if not waiting:
        return []
    first = waiting[0]
    chosen = [job for job in waiting if (job.run, job.kind) == (first.run, first.kind)]
    for job in chosen:
        waiting.remove(job)
    return chosen


def read_on(jobs: Sequence[Texts], *, tokens: int | None) -> list[Texts]:
    """Read a slice of the texts of one run: as many as fit into so many tokens, one at least. Those with texts left.

    The others are told what was found. An error is told to all, and goes on from here where it is a bug of ours.
    """
    model, kind = jobs[0].run.model, jobs[0].kind
    parts = [(job, text) for job in jobs for text in job.left][:TEXTS]
    try:
        if tokens is not None:
            parts = parts[: max(1, _fitting(model, [text for _, text in parts], tokens))]
        texts = [text for _, text in parts]
        found = model.classify(texts) if kind == "labels" else _states(model, texts)
    except Exception as error:  # whoever waits is told; what is our own bug goes on up to the loop
        for job in jobs:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)
        if not isinstance(error, TunesmithError):
            raise
        return []
    for (job, _), one in zip(parts, found, strict=True):
        job.found.append(one)
    return [*_unfinished(jobs)]


def _states(model: LocalModel, texts: Sequence[str]) -> list[tuple[list[float], int]]:
    """The state of each text, and how many of its tokens were read."""
    return list(zip(model.embed(texts).tolist(), [len(model.tokens(text).ids) for text in texts], strict=True))


def _unfinished(jobs: Sequence[Texts]) -> Iterator[Texts]:
    """Those with texts left; the others are told what was found."""
    for job in jobs:
        if job.left:
            yield job
        elif job.future.set_running_or_notify_cancel():
            job.future.set_result(job.found)


def _fitting(model: LocalModel, texts: Sequence[str], tokens: int) -> int:
    """How many of the first texts have no more tokens together."""
    used = 0
    for count, text in enumerate(texts):
        used += len(model.tokens(text).ids)
        if used > tokens:
            return count
    return len(texts)

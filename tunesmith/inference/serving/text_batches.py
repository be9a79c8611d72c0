"""Classification, regression and embedding of texts in slices, interleaved with generation."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.errors import TunesmithError
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.serving.registry import ServedModel

Kind = Literal["labels", "values", "states", "answers"]
TEXTS = 64  # texts per slice


@dataclass(slots=True, eq=False)
class Texts:
    """The texts of one request and the results so far."""

    run: ServedModel
    kind: Kind
    texts: Sequence[str]
    until: float
    future: Future[list[Any]] = field(default_factory=Future)
    found: list[Any] = field(default_factory=list)

    @property
    def left(self) -> Sequence[str]:
        """The remaining texts."""
        return self.texts[len(self.found) :]

    def overdue(self, now: float) -> bool:
        """Return whether the request was cancelled; cancel it if it timed out."""
        return self.future.cancelled() or (now > self.until and self.future.cancel())


def together(waiting: deque[Texts]) -> list[Texts]:
    """Remove the first request from the queue, with all others of the same run and kind."""
    if not waiting:
        return []
    first = waiting[0]
    chosen = [job for job in waiting if (job.run, job.kind) == (first.run, first.kind)]
    for job in chosen:
        waiting.remove(job)
    return chosen


def read_on(jobs: Sequence[Texts], *, tokens: int | None) -> list[Texts]:
    """Process the next `tokens` of texts of one run and kind, at least one text; return the requests with texts left.

    Finished requests get their results. Errors are passed to all requests; internal errors are raised again.
    """
    model, kind = jobs[0].run.model, jobs[0].kind
    parts = [(job, text) for job in jobs for text in job.left][:TEXTS]
    try:
        if tokens is not None:
            parts = parts[: max(1, _fitting(model, [text for _, text in parts], tokens))]
        texts = [text for _, text in parts]
        results = _results(model, kind, texts)
    except Exception as error:
        for job in jobs:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)
        if not isinstance(error, TunesmithError):
            raise
        return []
    for (job, _), result in zip(parts, results, strict=True):
        job.found.append(result)
    for job in jobs:
        if not job.left and job.future.set_running_or_notify_cancel():
            job.future.set_result(job.found)
    return [job for job in jobs if job.left]


def _results(model: LocalModel, kind: Kind, texts: Sequence[str]) -> Sequence[Any]:
    """Return the labels, the number or the answer of each text, or its state and its number of tokens."""
    if kind == "answers":
        return model.answers(texts) or []
    if kind == "labels":
        return model.classify(texts)
    if kind == "values":
        return model.predict(texts)
    states = model.embed(texts).tolist()
    return list(zip(states, [len(model.tokens(text).ids) for text in texts], strict=True))


def _fitting(model: LocalModel, texts: Sequence[str], tokens: int) -> int:
    """Return how many of the first texts fit into a number of tokens."""
    used = 0
    for count, text in enumerate(texts):
        used += len(model.tokens(text).ids)
        if used > tokens:
            return count
    return len(texts)

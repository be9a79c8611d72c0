"""Classification, regression, embedding and ranking of texts in slices, interleaved with generation."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.data.tokenization.chat_template import Tokens
from tunesmith.errors import TunesmithError
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.serving.registry import ServedModel

# What is computed of each text: `passages` are the states of texts that are searched, `relevance` the scores of pairs.
Kind = Literal["labels", "values", "states", "passages", "answers", "relevance"]
Item = str | tuple[str, str]  # a text, or a query with a passage
TEXTS = 64  # texts per slice


@dataclass(slots=True, eq=False)
class Texts:
    """The texts of one request and the results so far."""

    run: ServedModel
    kind: Kind
    texts: Sequence[Item]
    until: float
    future: Future[list[Any]] = field(default_factory=Future)
    found: list[Any] = field(default_factory=list)
    alone: bool = False  # an error occurred while they were processed with those of others

    @property
    def left(self) -> Sequence[Item]:
        """The remaining texts."""
        return self.texts[len(self.found) :]

    def overdue(self, now: float) -> bool:
        """Return whether the request was cancelled; cancel it if it timed out."""
        return self.future.cancelled() or (now > self.until and self.future.cancel())


def together(waiting: deque[Texts]) -> list[Texts]:
    """Remove the first request from the queue, with all others of the same run and kind unless one must be alone."""
    if not waiting:
        return []
    first = waiting[0]
    alike = (job for job in waiting if (job.run, job.kind, job.alone) == (first.run, first.kind, False))
    chosen = [first] if first.alone else list(alike)
    for job in chosen:
        waiting.remove(job)
    return chosen


def read_on(jobs: Sequence[Texts], *, tokens: int | None) -> list[Texts]:
    """Process the next `tokens` of texts of one run and kind, at least one text; return the requests with texts left.

    Finished requests get their results. If there is an error in several requests, they are returned to be processed
    alone, so that no other gets it. The error of one is passed to it; internal errors are raised again.
    """
    model, kind = jobs[0].run.model, jobs[0].kind
    parts = [(job, text) for job in jobs for text in job.left][:TEXTS]
    try:
        if tokens is not None:
            parts = parts[: max(1, _fitting(model, kind, [text for _, text in parts], tokens))]
        texts = [text for _, text in parts]
        results = _results(model, kind, texts)
    except Exception as error:
        if len(jobs) > 1:
            for job in jobs:
                job.alone = True
            return list(jobs)
        if jobs[0].future.set_running_or_notify_cancel():
            jobs[0].future.set_exception(error)
        if not isinstance(error, TunesmithError):
            raise
        return []
    for (job, _), result in zip(parts, results, strict=True):
        job.found.append(result)
    for job in jobs:
        if not job.left and job.future.set_running_or_notify_cancel():
            job.future.set_result(job.found)
    return [job for job in jobs if job.left]


def _results(model: LocalModel, kind: Kind, items: Sequence[Item]) -> Sequence[Any]:
    """Return the labels, the number or the answer of each text.

    For states it is the state and the number of tokens, for a pair the score, the number of tokens, and whether a text
    was shortened.
    """
    if kind == "relevance":
        pairs = [item for item in items if not isinstance(item, str)]
        sizes = [_tokens(model, kind, pair) for pair in pairs]
        scores = model.relevance(pairs)
        return [(score, len(tokens.ids), cut) for score, (tokens, cut) in zip(scores, sizes, strict=True)]
    texts = [item for item in items if isinstance(item, str)]
    if kind == "answers":
        return model.answers(texts) or []
    if kind == "labels":
        return model.classify(texts)
    if kind == "values":
        return model.predict(texts)
    states = model.embed(texts, passage=kind == "passages").tolist()
    return list(zip(states, [len(_tokens(model, kind, text)[0].ids) for text in texts], strict=True))


def _tokens(model: LocalModel, kind: Kind, item: Item) -> tuple[Tokens, bool]:
    """Return the tokens of a text or pair, and whether a text of a pair was shortened."""
    if isinstance(item, str):
        return model.tokens(item, passage=kind == "passages"), False
    return model.objective.pair(*item, model.template, limit=model.limit)


def _fitting(model: LocalModel, kind: Kind, items: Sequence[Item], tokens: int) -> int:
    """Return how many of the first texts or pairs fit into a number of tokens."""
    used = 0
    for count, item in enumerate(items):
        used += len(_tokens(model, kind, item)[0].ids)
        if used > tokens:
            return count
    return len(items)

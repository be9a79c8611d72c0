"""What the server has done, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunesmith.inference.answering import AnsweringEngine
from tunesmith.inference.row import Piece


class Metrics:
    """Counters of one server; nothing in them but routes, statuses and names of models."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tunesmith_requests", "requests answered", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "tunesmith_request_seconds", "from request to answer", ["route"], registry=self._registry
        )
        self._tokens = Counter(
            "tunesmith_tokens",
            "tokens of whole answers and their questions",
            ["model", "kind"],
            registry=self._registry,
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        """One request more."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def drew(self, model: str, last: Piece) -> None:
        """One answer more."""
        self._tokens.labels(model, "prompt").inc(last.prompt_tokens)
        self._tokens.labels(model, "answer").inc(last.new_tokens)

    def page(self, engine: AnsweringEngine) -> tuple[bytes, str]:
        """The text that Prometheus reads, and its type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

        now = CollectorRegistry()
        now.register(_Now(engine))
        return generate_latest(self._registry) + generate_latest(now), CONTENT_TYPE_LATEST


class _Now:
    """What an engine does at this moment, and what it did since it began."""

    def __init__(self, engine: AnsweringEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Any]:
        """The figures, one family each."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        engine, counts = self._engine, self._engine.counts
        yield GaugeMetricFamily("tunesmith_answering", "answers being written", engine.at_work)
        yield GaugeMetricFamily("tunesmith_waiting", "questions that wait", engine.queued)
        yield CounterMetricFamily("tunesmith_drawn_tokens", "tokens drawn", counts.tokens)
        yield CounterMetricFamily("tunesmith_steps", "steps of all answers together", counts.steps)
        yield CounterMetricFamily("tunesmith_reused_tokens", "tokens of questions not read again", counts.reused)
        yield CounterMetricFamily("tunesmith_failures", "answers lost to a bug", counts.failed)

"""Prometheus metrics of the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunesmith.inference.serving.live_answer import CompletionChunk
from tunesmith.inference.serving.protocol import AnsweringEngine


class Metrics:
    """Counters of one server; labels are routes, statuses and model names, never content."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._registry = CollectorRegistry()
        self._requests = Counter("tunesmith_requests", "HTTP requests", ["route", "status"], registry=self._registry)
        self._seconds = Histogram(
            "tunesmith_request_seconds", "time from request to response", ["route"], registry=self._registry
        )
        self._tokens = Counter(
            "tunesmith_tokens",
            "tokens of finished requests",
            ["model", "kind"],
            registry=self._registry,
        )

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count one request with the path of its route, HTTP status and seconds."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_tokens(self, model: str, last: CompletionChunk) -> None:
        """Count the tokens of one finished answer of a model."""
        self._tokens.labels(model, "prompt").inc(last.prompt_tokens)
        self._tokens.labels(model, "answer").inc(last.new_tokens)

    def page(self, engine: AnsweringEngine) -> tuple[bytes, str]:
        """Return the metrics in Prometheus' text format, and their content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

        current = CollectorRegistry()
        current.register(_EngineCollector(engine))
        return generate_latest(self._registry) + generate_latest(current), CONTENT_TYPE_LATEST


class _EngineCollector:
    """Current load and totals of an engine."""

    def __init__(self, engine: AnsweringEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Any]:
        """Yield one metric family per value."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        engine, counts = self._engine, self._engine.counts
        yield GaugeMetricFamily("tunesmith_answering", "requests being generated", engine.at_work)
        yield GaugeMetricFamily("tunesmith_waiting", "queued requests", engine.queued)
        yield CounterMetricFamily("tunesmith_drawn_tokens", "generated tokens", counts.tokens)
        yield CounterMetricFamily("tunesmith_steps", "decoding steps of the running batch", counts.steps)
        yield CounterMetricFamily(
            "tunesmith_reused_tokens", "prompt tokens reused from the prefix cache", counts.reused
        )
        yield CounterMetricFamily("tunesmith_failures", "requests that failed with an internal error", counts.failed)

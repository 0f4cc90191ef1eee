"""Prometheus metrics, and the probes ``/health`` and ``/ready``."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.registry import Collector

from trunkline.errors import ForbiddenError, UnavailableError
from trunkline.serving.collectors import EngineCollector, RouterCollector
from trunkline.serving.service import Context
from trunkline.serving.version_labels import VersionLabels

if TYPE_CHECKING:
    from trunkline.inference.image_engine import AnyEngine
    from trunkline.inference.request_state import RequestStats

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, Any]:
    """The process is alive."""
    return {"status": "alive"}


@router.get("/ready")
async def ready(context: Context) -> Response:
    """The base is loaded and the server accepts requests; otherwise 503."""
    service = context.service
    if service.draining:
        raise UnavailableError("The server is shutting down.")
    return JSONResponse({"status": "ready", "base": service.base.name})


async def _require_all_adapters(context: Context) -> None:
    """Refuse keys for some adapters only, because the metrics name all adapters."""
    key = context.key
    if key is not None and "*" not in key.adapters:
        raise ForbiddenError(
            f"The key {key.id} may not use every adapter, and the metrics name all of them.",
            "Create a key for all adapters with: trunkline keys create OWNER.",
        )


@router.get("/metrics", dependencies=[Depends(_require_all_adapters)])
async def metrics(context: Context) -> Response:
    """Metrics in Prometheus' text format, for keys that may use every adapter."""
    service = context.service
    text = await service.query(service.metrics.render, len(service.in_flight))
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@dataclass(frozen=True, slots=True)
class Latency:
    """How long requests took, in seconds; an upper bound where a bucket has no end."""

    requests: int
    p50: float
    p95: float

    @classmethod
    def of(cls, buckets: Sequence[tuple[float, float]]) -> Self:
        """Interpolate within buckets, given as upper bound and cumulative count."""
        return cls(int(buckets[-1][1]), _quantile(0.5, buckets), _quantile(0.95, buckets))


def _quantile(share: float, buckets: Sequence[tuple[float, float]]) -> float:
    """Linear within a bucket, as Prometheus' ``histogram_quantile``."""
    rank = share * buckets[-1][1]
    lower = below = 0.0
    for bound, count in buckets:
        if count >= rank and count > below:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower


class Metrics:
    """The metrics of one server. Safe from any thread.

    Args:
        max_versions: how many versions get labels of their own, the most used ones; the others
            count as ``other``. A label is always a version that has answered, never text that a
            client sent.
    """

    def __init__(self, *, max_versions: int = 200) -> None:
        self._registry = CollectorRegistry()
        self._engines: list[AnyEngine] = []
        self._lock = threading.Lock()
        self._labels = VersionLabels(max_versions)
        self._by_engine = EngineCollector(self._engines, self._label)
        self.add(self._by_engine)
        self.add(RouterCollector(self._engines))
        by_version = ["version"]

        def counter(name: str, text: str, labels: list[str]) -> Counter:
            return Counter(f"trunkline_{name}", text, labels, registry=self._registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(
                f"trunkline_{name}", text, by_version, buckets=buckets, registry=self._registry
            )

        self._requests = counter(
            "requests", "Requests to the engine, by outcome.", ["version", "outcome"]
        )
        self._errors = counter(
            "errors", "HTTP requests answered with an error.", ["version", "status"]
        )
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts.", by_version)
        self._cached_tokens = counter(
            "cached_prompt_tokens", "Prompt tokens taken from the prefix cache.", by_version
        )
        self._generation_tokens = counter("generation_tokens", "Generated tokens.", by_version)
        self._queue_time = histogram(
            "queue_time_seconds", "From submission to the first step.", _SECONDS
        )
        self._total_time = histogram(
            "request_time_seconds", "From submission to the end.", _SECONDS
        )
        self._first_token = histogram(
            "time_to_first_token_seconds", "From submission to the first token.", _SECONDS
        )
        self._per_token = histogram(
            "time_per_output_token_seconds",
            "Between two tokens of a request; all of its choices count together.",
            _TOKEN_SECONDS,
        )
        self._by_version = (
            *(self._requests, self._errors, self._prompt_tokens, self._cached_tokens),
            *(self._generation_tokens, self._queue_time, self._total_time, self._first_token),
            self._per_token,
        )
        self._responses = counter("http_responses", "HTTP responses.", ["route", "status"])
        self._in_flight = Gauge(
            "trunkline_http_requests_in_flight", "HTTP requests in flight.", registry=self._registry
        )
        self._log_lines = counter("request_log_lines", "Lines of the request log.", ["outcome"])
        for outcome in ("written", "failed"):
            self._log_lines.labels(outcome)

    def add(self, collector: Collector) -> None:
        """Also report what a collector yields."""
        self._registry.register(collector)

    def watch(self, engine: AnyEngine) -> None:
        """Also report the state of an engine and its adapter pool."""
        self._engines.append(engine)

    def observe(self, stats: RequestStats) -> None:
        """Count a request that has ended in the engine."""
        with self._lock:
            version, ended = self._labels.use(stats.name)
            if ended is not None:
                self._forget(ended)
            self._requests.labels(version, stats.outcome).inc()
            self._prompt_tokens.labels(version).inc(stats.prompt_tokens)
            self._cached_tokens.labels(version).inc(stats.cached_tokens)
            self._generation_tokens.labels(version).inc(stats.new_tokens)
            self._queue_time.labels(version).observe(stats.queue_seconds)
            self._total_time.labels(version).observe(stats.seconds)
            if stats.first_token_seconds is not None:
                self._first_token.labels(version).observe(stats.first_token_seconds)
                if stats.new_tokens > 1:
                    decode_seconds = stats.seconds - stats.first_token_seconds
                    self._per_token.labels(version).observe(decode_seconds / (stats.new_tokens - 1))

    def count_error(self, version: str | None, status: int) -> None:
        """Count an error response; ``version`` is None if no model was resolved."""
        with self._lock:
            label = "" if version is None else self._labels.of(version)
            self._errors.labels(label, status).inc()

    def count_log_lines(self, lines: int, *, written: bool) -> None:
        """Count lines of the request log that were committed, or could not be."""
        self._log_lines.labels("written" if written else "failed").inc(lines)

    def count_response(self, route: str, status: int) -> None:
        """Count a response; ``route`` is the template of a path, never the path."""
        self._responses.labels(route, status).inc()

    def latencies(self) -> dict[str, Latency]:
        """Version → its requests and quantiles of their times, as far as the buckets tell."""
        buckets: dict[str, list[tuple[float, float]]] = {}
        for metric in self._total_time.collect():
            for sample in metric.samples:
                if sample.name.endswith("_bucket"):
                    bound, count = float(sample.labels["le"]), sample.value
                    buckets.setdefault(sample.labels["version"], []).append((bound, count))
        return {version: Latency.of(counts) for version, counts in buckets.items()}

    def render(self, in_flight: int) -> bytes:
        """All metrics in Prometheus' text format; blocks."""
        self._in_flight.set(in_flight)
        return generate_latest(self._registry)

    def _label(self, name: str) -> str:
        with self._lock:
            return self._labels.of(name)

    def _forget(self, version: str) -> None:
        """Drop the series of a version; what it counted is not added to another one."""
        for metric in self._by_version:
            metric.remove_by_labels({"version": version})
        self._by_engine.forget(version)

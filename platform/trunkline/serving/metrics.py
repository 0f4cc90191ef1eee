"""Prometheus metrics, and the probes ``/health`` and ``/ready``."""

from __future__ import annotations

import threading
from collections import Counter as Sums
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from trunkline.errors import ForbiddenError, UnavailableError
from trunkline.serving.service import Context

if TYPE_CHECKING:
    from trunkline.contracts import Modality
    from trunkline.inference.image_engine import AnyEngine
    from trunkline.inference.request_state import RequestStats
    from trunkline.lora.pool import AdapterPool

OTHER = "other"

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
        max_versions: how many versions get labels of their own; later ones count as ``other``. A
            label is always a version that has answered, never text that a client sent.
    """

    def __init__(self, *, max_versions: int = 1000) -> None:
        self._max_versions = max_versions
        self._registry = CollectorRegistry()
        self._engines: list[AnyEngine] = []
        self._registry.register(_EngineCollector(self._engines, self._label))
        self._lock = threading.Lock()
        self._names: set[str] = set()
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
        self._responses = counter("http_responses", "HTTP responses.", ["route", "status"])
        self._in_flight = Gauge(
            "trunkline_http_requests_in_flight", "HTTP requests in flight.", registry=self._registry
        )

    def watch(self, engine: AnyEngine) -> None:
        """Also report the state of an engine and its adapter pool."""
        self._engines.append(engine)

    def observe(self, stats: RequestStats) -> None:
        """Count a request that has ended in the engine."""
        version = self._label(stats.name)
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
        self._errors.labels("" if version is None else self._label(version), status).inc()

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
            if name not in self._names:
                if len(self._names) >= self._max_versions:
                    return OTHER
                self._names.add(name)
            return name


class _EngineCollector(Collector):
    """Reads the engines and their adapter pools whenever the metrics are rendered."""

    def __init__(self, engines: Sequence[AnyEngine], label: Callable[[str], str]) -> None:
        self._engines = engines
        self._label = label

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        engines = [*self._engines]
        states = {one.modality: one.state() for one in engines}
        for name, field, text in (
            ("queue_length", "waiting", "Sequences or pictures waiting for a row of the batch."),
            ("batch_running", "running", "Sequences or pictures in the batch."),
            ("batch_rows", "rows", "Rows of the batch."),
        ):
            values = {modality: getattr(state, field) for modality, state in states.items()}
            yield _by_modality(GaugeMetricFamily, name, text, values)
        steps = {modality: state.steps for modality, state in states.items()}
        yield _by_modality(CounterMetricFamily, "engine_steps", "Steps of the engine.", steps)
        if (state := states.get("text")) is not None:
            for name, value, text in (
                ("used", state.kv_tokens_used, "KV cache used by running requests."),
                ("prefix", state.cached_tokens, "Unused KV cache that keeps prompts."),
                ("capacity", state.kv_tokens, "Size of the KV cache."),
            ):
                yield GaugeMetricFamily(f"trunkline_kv_cache_{name}_tokens", text, value)
        pools = {one.modality: one.pool for one in engines}
        yield from self._collect_versions([*pools.values()])
        for name, field, text in (
            ("used_bytes", "total_bytes", "Memory used by adapters."),
            ("capacity_bytes", "budget_bytes", "Memory limit of the adapter pool."),
        ):
            values = {modality: getattr(pool, field) for modality, pool in pools.items()}
            yield _by_modality(GaugeMetricFamily, f"adapter_pool_{name}", text, values)

    def _collect_versions(self, pools: Sequence[AdapterPool]) -> Iterator[Metric]:
        resident: Sums[tuple[str, str]] = Sums()
        loads: Sums[str] = Sums()
        evictions: Sums[str] = Sums()
        for pool in pools:
            for adapter in pool.residents():
                resident[self._label(adapter.name), adapter.tier] += adapter.bytes
            for name, counters in pool.all_counters():
                version = self._label(name)
                loads[version] += counters.loads
                evictions[version] += counters.evictions
        sizes = GaugeMetricFamily(
            "trunkline_adapter_pool_resident_bytes",
            "Memory of a resident adapter.",
            labels=["version", "tier"],
        )
        for labels, size in resident.items():
            sizes.add_metric(labels, size)
        yield sizes
        for name, text, sums in (
            ("loads", "Adapters loaded from disk.", loads),
            ("evictions", "Adapters evicted from the pool.", evictions),
        ):
            family = CounterMetricFamily(f"trunkline_adapter_pool_{name}", text, labels=["version"])
            for version, count in sums.items():
                family.add_metric([version], count)
            yield family


def _by_modality(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    text: str,
    values: Mapping[Modality, float],
) -> Metric:
    """A metric with a value for the engine of texts, and for that of pictures if it is loaded."""
    family = kind(f"trunkline_{name}", text, labels=["modality"])
    for modality, value in values.items():
        family.add_metric([modality], value)
    return family

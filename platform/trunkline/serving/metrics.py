"""What Prometheus is told.

Owns: the names of the figures, and the bound on their labels: a label is only ever the name of a
version that answered, and there are at most 1,000 of them; the rest counts as ``other``. Must not
know: requests; the engine tells how each ended.
"""

from __future__ import annotations

import threading
from collections import Counter as Sums
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from trunkline.inference.engine import Engine
    from trunkline.inference.request_state import RequestStats

MOST_VERSIONS = 1000
OTHER = "other"

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """The figures of one server; safe from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
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
            "requests", "Requests by how they ended in the engine.", ["version", "outcome"]
        )
        self._errors = counter(
            "errors", "Requests that were answered with an error.", ["version", "status"]
        )
        self._prompt = counter("prompt_tokens", "Tokens of prompts.", by_version)
        self._cached = counter("cached_tokens", "Of these, not computed anew.", by_version)
        self._new = counter("new_tokens", "Tokens of answers.", by_version)
        self._queue = histogram("queue_seconds", "From submission to the first step.", _SECONDS)
        self._first = histogram(
            "time_to_first_token_seconds", "From submission to the first token.", _SECONDS
        )
        self._each = histogram(
            "time_per_token_seconds",
            "From one token of a request to the next; its choices count together.",
            _TOKEN_SECONDS,
        )
        self._http = counter("http_responses", "Responses of HTTP.", ["route", "status"])
        self._in_flight = Gauge(
            "trunkline_http_in_flight", "Requests of HTTP in flight.", registry=self._registry
        )

    def watch(self, engine: Engine) -> None:
        """Tell the engine's and the adapter pool's own figures, too, whenever they are asked
        for."""
        self._registry.register(_Watching(engine, self._labeled))

    def observe(self, served: RequestStats) -> None:
        """Count a request that the engine has ended."""
        version = self._labeled(served.name)
        self._requests.labels(version, served.outcome).inc()
        self._prompt.labels(version).inc(served.prompt_tokens)
        self._cached.labels(version).inc(served.cached_tokens)
        self._new.labels(version).inc(served.new_tokens)
        self._queue.labels(version).observe(served.queue_seconds)
        if served.first_token_seconds is not None:
            self._first.labels(version).observe(served.first_token_seconds)
            if served.new_tokens > 1:
                rest = served.seconds - served.first_token_seconds
                self._each.labels(version).observe(rest / (served.new_tokens - 1))

    def count_error(self, version: str | None, status: int) -> None:
        """Count a request that ended in an error; ``version`` None: it came to none."""
        self._errors.labels("" if version is None else self._labeled(version), status).inc()

    def count_response(self, route: str, status: int) -> None:
        """Count a response; ``route`` is the template of a path, never the path."""
        self._http.labels(route, status).inc()

    def exposition(self, in_flight: int) -> bytes:
        """Everything in Prometheus' text format; blocks for as long as it takes to write."""
        self._in_flight.set(in_flight)
        return generate_latest(self._registry)

    def _labeled(self, name: str) -> str:
        with self._lock:
            if name not in self._names:
                if len(self._names) >= MOST_VERSIONS:
                    return OTHER
                self._names.add(name)
            return name


class _Watching(Collector):
    """Reads the engine and the adapter pool when figures are asked for."""

    def __init__(self, engine: Engine, labeled: Callable[[str], str]) -> None:
        self._engine = engine
        self._labeled = labeled

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        state = self._engine.state()
        for name, value, text in (
            ("engine_waiting", state.waiting, "Requests that wait for a row."),
            ("engine_running", state.running, "Requests in the batch."),
            ("engine_rows", state.rows, "Rows of the batch at most."),
            ("kv_tokens_used", state.kv_tokens_used, "Tokens with keys and values kept."),
            ("kv_tokens_cached", state.cached_tokens, "Beside these, kept for prompts to come."),
            ("kv_tokens", state.kv_tokens, "Tokens with keys and values at most."),
        ):
            yield GaugeMetricFamily(f"trunkline_{name}", text, value)
        yield CounterMetricFamily("trunkline_engine_steps", "Steps of the batch.", state.steps)
        yield from self._pool()

    def _pool(self) -> Iterator[Metric]:
        pool = self._engine.pool
        held: Sums[tuple[str, str]] = Sums()
        for one in pool.residents():
            held[self._labeled(one.name), one.tier] += one.bytes
        sizes = GaugeMetricFamily(
            "trunkline_adapter_bytes", "Memory for an adapter.", labels=["version", "tier"]
        )
        for labels, size in held.items():
            sizes.add_metric(labels, size)
        loads: Sums[str] = Sums()
        evictions: Sums[str] = Sums()
        for name, counted in pool.all_counters():
            version = self._labeled(name)
            loads[version] += counted.loads
            evictions[version] += counted.evictions
        yield sizes
        for told, text, sums in (
            ("adapter_loads", "Adapters read from disk.", loads),
            ("adapter_evictions", "Adapters that made room.", evictions),
        ):
            family = CounterMetricFamily(f"trunkline_{told}", text, labels=["version"])
            for version, number in sums.items():
                family.add_metric([version], number)
            yield family
        yield GaugeMetricFamily(
            "trunkline_adapter_pool_bytes", "Memory for adapters.", pool.total_bytes
        )
        yield GaugeMetricFamily(
            "trunkline_adapter_pool_budget_bytes", "Its limit.", pool.budget_bytes
        )

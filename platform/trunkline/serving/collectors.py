"""What the metrics read when they are rendered: engines, adapter pools, registry and disk."""

from __future__ import annotations

import threading
import time
from collections import Counter as Sums
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from trunkline.lora.pool import Counters
from trunkline.machine import disk_space
from trunkline.workspace import cache_folder

if TYPE_CHECKING:
    from trunkline.contracts import Modality
    from trunkline.inference.image_engine import AnyEngine
    from trunkline.lora.pool import AdapterPool
    from trunkline.serving.service import Service


class EngineCollector(Collector):
    """Reads the engines and their adapter pools whenever the metrics are rendered."""

    def __init__(self, engines: Sequence[AnyEngine], label: Callable[[str], str]) -> None:
        self._engines = engines
        self._label = label
        self._seen: dict[tuple[int, str], Counters] = {}
        self._loads: Sums[str] = Sums()
        self._evictions: Sums[str] = Sums()
        self._lock = threading.Lock()

    def forget(self, version: str) -> None:
        """End the counters of a version that has no label of its own any more."""
        with self._lock:
            self._loads.pop(version, None)
            self._evictions.pop(version, None)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        engines = [*self._engines]
        states = {one.modality: one.state() for one in engines}
        for name, field, text in (
            ("queue_length", "waiting", "Sequences or pictures waiting for a row of the batch."),
            ("batch_running", "running", "Sequences or pictures in the batch."),
            ("batch_rows", "rows", "Rows of the batch."),
            ("queue_wait_seconds", "wait_seconds", "The longest wait of a request in the queue."),
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
        totals: dict[tuple[int, str], Counters] = {}
        for index, pool in enumerate(pools):
            for adapter in pool.residents():
                resident[self._label(adapter.name), adapter.tier] += adapter.bytes
            for name, counters in pool.all_counters():
                other = totals.get((index, name), Counters())
                totals[index, name] = Counters(
                    other.loads + counters.loads, other.evictions + counters.evictions
                )
        loads, evictions = self._count(totals)
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

    def _count(
        self, totals: Mapping[tuple[int, str], Counters]
    ) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Loads and evictions by label: what happened since the last time goes to today's label."""
        labels = {key: self._label(key[1]) for key in totals}
        with self._lock:
            for key, now in totals.items():
                seen = self._seen.get(key, Counters())
                self._loads[labels[key]] += now.loads - seen.loads
                self._evictions[labels[key]] += now.evictions - seen.evictions
            self._seen = dict(totals)
            return dict(self._loads), dict(self._evictions)


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


class RouterCollector(Collector):
    """The gauges that routers on Kubernetes read, under vLLM's names.

    They are those of the model server protocol of the Gateway API inference extension. A router
    compares adapters with the text of the field ``model``, so an adapter in its slots is listed
    under its version and under its plain name, and ``max_lora`` is twice the number of slots.
    """

    def __init__(self, engines: Sequence[AnyEngine]) -> None:
        self._engines = engines

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        engines = [*self._engines]
        if not engines:
            return
        states = [one.state() for one in engines]
        name = engines[0].base.info.name
        model = PurePath(name).name if PurePath(name).is_absolute() else name
        capacity = sum(one.kv_tokens for one in states)
        used = sum(one.kv_tokens_used for one in states)
        for metric, text, value in (
            ("num_requests_waiting", "Requests in the queue.", sum(one.waiting for one in states)),
            ("num_requests_running", "Requests in the batch.", sum(one.running for one in states)),
            ("kv_cache_usage_perc", "KV cache in use; 1 is all.", used / max(1, capacity)),
        ):
            family = GaugeMetricFamily(f"vllm:{metric}", text, labels=["model_name"])
            family.add_metric([model], value)
            yield family
        resident = {
            one.name
            for engine in engines
            for one in engine.pool.residents()
            if one.tier == "device"
        }
        waiting = {name for one in states for name in one.waiting_adapters} - resident
        slots = sum(one.pool.pages for one in engines)
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters in slots and adapters that requests wait for; the value is the Unix time.",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        family.add_metric([str(2 * slots), _names(resident), _names(waiting)], time.time())
        yield family


def _names(versions: set[str]) -> str:
    """Versions and the plain names of their adapters, separated by commas."""
    return ",".join(sorted({*versions, *(name.partition("@")[0] for name in versions)}))


class DeploymentCollector(Collector):
    """Whether this server is ready, what its heartbeat saw of the registry, and the disk."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        service = self._service
        yield GaugeMetricFamily(
            "trunkline_ready",
            "Whether the base is loaded and requests are accepted.",
            float(service.ready and not service.draining),
        )
        health = service.registry_health
        if health is not None:
            yield GaugeMetricFamily(
                "trunkline_registry_heartbeat_timestamp_seconds",
                "When the registry last recorded this server's heartbeat.",
                health.recorded_at,
            )
            yield GaugeMetricFamily(
                "trunkline_registry_schema_usable",
                "Whether this release may use the schema of the registry.",
                float(health.schema_usable),
            )
            chains = GaugeMetricFamily(
                "trunkline_audit_chain_intact",
                "Whether the last rows of a hash chain match their hashes.",
                labels=["chain"],
            )
            for chain, intact in health.chains.items():
                chains.add_metric([chain], float(intact))
            yield chains
        yield from self._disk()

    def _disk(self) -> Iterator[Metric]:
        free = GaugeMetricFamily("trunkline_disk_free_bytes", "Free disk space.", labels=["place"])
        size = GaugeMetricFamily("trunkline_disk_size_bytes", "Size of the disk.", labels=["place"])
        root = self._service.platform.workspace.root
        for place, path in (("workspace", root), ("cache", cache_folder())):
            space = disk_space(path)
            free.add_metric([place], space.free)
            size.add_metric([place], space.total)
        yield from (free, size)

"""Adapters on the device, in memory and on disk: eviction, pinning, and what operators see."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pools import (
    FIRST,
    LABELS,
    LAST,
    NEXT,
    acquired,
    artifacts,
    base,
    computes,
    count_numbers,
    digests,
    full,
    fused_layers,
    model,
    small_pool,
    tiers,
    write_artifact,
)  # fmt: skip
from trunkline.adapters.artifact import Artifact, read_artifact
from trunkline.bases.linear import FusedLayers
from trunkline.errors import BusyError, NotFoundError, RefusedError
from trunkline.lora.pool import AdapterPool, Counters, ResidentInfo
from trunkline.lora.slots import LoraSlots

__all__ = ["artifacts", "base", "full", "fused_layers", "model"]


def test_least_recently_used_is_evicted_first(full: AdapterPool, artifacts: list[Artifact]) -> None:
    full.release(acquired(full, artifacts[FIRST]))
    full.load(artifacts[NEXT])
    assert digests(full) == {artifacts[FIRST].digest, artifacts[NEXT].digest}


def test_pinned_adapter_stays_although_least_recently_used(
    full: AdapterPool, artifacts: list[Artifact]
) -> None:
    full.pin(artifacts[FIRST].digest)
    full.load(artifacts[NEXT])
    assert digests(full) == {artifacts[FIRST].digest, artifacts[NEXT].digest}


def test_unpinned_adapter_can_be_evicted_again(
    full: AdapterPool, artifacts: list[Artifact]
) -> None:
    full.pin(artifacts[FIRST].digest)
    full.pin(artifacts[FIRST].digest, False)
    full.load(artifacts[NEXT])
    assert digests(full) == {artifacts[LAST].digest, artifacts[NEXT].digest}


def test_adapter_in_use_stays_although_least_recently_used(
    full: AdapterPool, fused_layers: FusedLayers, artifacts: list[Artifact]
) -> None:
    resident = acquired(full, artifacts[FIRST])
    full.release(acquired(full, artifacts[LAST]))
    full.load(artifacts[NEXT])
    assert digests(full) == {artifacts[FIRST].digest, artifacts[NEXT].digest}
    assert computes(full, fused_layers, resident)


def test_pool_full_of_pinned_adapters_is_busy(full: AdapterPool, artifacts: list[Artifact]) -> None:
    for index in (FIRST, LAST):
        full.pin(artifacts[index].digest)
    with pytest.raises(BusyError, match="no slot") as caught:
        full.load(artifacts[NEXT])
    assert "Unpin" in (caught.value.hint or "")
    assert caught.value.retry_after > 0


def test_memory_full_of_adapters_in_use_is_busy(
    model: Any, fused_layers: FusedLayers, base: str, artifacts: list[Artifact]
) -> None:
    pool = small_pool(model, fused_layers, base, pages=1, ranks=20)
    for index in (FIRST, LAST):
        pool.load(artifacts[index])
    pool.pin(artifacts[FIRST].digest)
    acquired(pool, artifacts[LAST])
    with pytest.raises(BusyError, match="no memory") as caught:
        pool.load(artifacts[NEXT])
    assert "Unpin" in (caught.value.hint or "")
    assert caught.value.retry_after > 0
    assert digests(pool) == {artifacts[FIRST].digest, artifacts[LAST].digest}


def test_nothing_is_evicted_if_that_is_not_enough(
    full: AdapterPool, artifacts: list[Artifact]
) -> None:
    full.pin(artifacts[FIRST].digest)
    with pytest.raises(BusyError):
        full.load(artifacts[2])
    assert digests(full) == {artifacts[FIRST].digest, artifacts[LAST].digest}


def test_adapter_larger_than_the_memory_is_refused_and_nothing_is_evicted(
    model: Any, fused_layers: FusedLayers, base: str, artifacts: list[Artifact]
) -> None:
    pool = small_pool(model, fused_layers, base, pages=1, ranks=6)
    pool.load(artifacts[1])
    with pytest.raises(RefusedError, match="MiB") as caught:
        pool.load(artifacts[FIRST], "toy/big@2")
    assert "toy/big@2" in caught.value.message
    assert "--adapter-mib" in (caught.value.hint or "")
    assert digests(pool) == {artifacts[1].digest}


def test_rank_that_needs_more_pages_than_there_are_is_refused(
    model: Any, fused_layers: FusedLayers, base: str, artifacts: list[Artifact]
) -> None:
    pool = small_pool(model, fused_layers, base, pages=2, ranks=64)
    with pytest.raises(RefusedError, match=r"rank 24 and needs 3 slots") as caught:
        pool.load(artifacts[4])
    assert caught.value.hint
    assert len(pool) == 0


def test_bytes_are_those_of_the_matrices_the_head_and_the_pages(
    model: Any, fused_layers: FusedLayers, base: str, tmp_path: Path
) -> None:
    artifact = write_artifact(tmp_path / "headed", fused_layers, base, 9, head=True)
    pool = small_pool(model, fused_layers, base, pages=2, ranks=20)
    pool.load(artifact)
    matrices, head = 9 * count_numbers(fused_layers) * 4, LABELS * 32 * 4
    assert pool.total_bytes == matrices + head + 2 * LoraSlots.page_bytes(fused_layers, 4)


# ------------------------------------------------------------------------- device and host


@pytest.fixture
def crowded(
    model: Any, fused_layers: FusedLayers, base: str, artifacts: list[Artifact]
) -> AdapterPool:
    """One page and much host memory: the first adapter is on the device, the last on the host."""
    pool = small_pool(model, fused_layers, base, pages=1, ranks=64)
    for index in (LAST, FIRST):
        pool.load(artifacts[index])
    return pool


def test_least_recently_used_leaves_the_device_and_stays_in_memory(
    crowded: AdapterPool, artifacts: list[Artifact]
) -> None:
    assert tiers(crowded) == {artifacts[FIRST].digest: "device", artifacts[LAST].digest: "host"}
    assert crowded.counters(artifacts[LAST].digest) == Counters(loads=1, evictions=0)


def test_recently_used_adapter_stays_on_the_device(
    model: Any, fused_layers: FusedLayers, base: str, artifacts: list[Artifact]
) -> None:
    pool = small_pool(model, fused_layers, base, pages=2, ranks=64)
    for index in (FIRST, LAST):
        pool.load(artifacts[index])
    pool.release(acquired(pool, artifacts[FIRST]))
    pool.load(artifacts[NEXT])
    assert {one for one, tier in tiers(pool).items() if tier == "device"} == {
        artifacts[FIRST].digest,
        artifacts[NEXT].digest,
    }


def test_adapter_on_the_host_is_uploaded_without_the_disk(
    model: Any, fused_layers: FusedLayers, base: str, artifacts: list[Artifact], tmp_path: Path
) -> None:
    pool = small_pool(model, fused_layers, base, pages=1, ranks=64)
    folder = shutil.copytree(artifacts[LAST].folder, tmp_path / "copy")
    copied = read_artifact(folder)
    pool.load(copied)
    pool.load(artifacts[FIRST])
    shutil.rmtree(folder)
    assert pool.needs_load(copied.digest)
    pool.load(copied)
    assert not pool.needs_load(copied.digest)
    resident = acquired(pool, artifacts[LAST])
    assert tiers(pool) == {artifacts[FIRST].digest: "host", artifacts[LAST].digest: "device"}
    assert pool.counters(artifacts[LAST].digest).loads == 1
    assert computes(pool, fused_layers, replace(resident, artifact=artifacts[LAST]))


def test_page_in_use_is_not_taken(
    crowded: AdapterPool, fused_layers: FusedLayers, artifacts: list[Artifact]
) -> None:
    resident = acquired(crowded, artifacts[FIRST])
    crowded.load(artifacts[LAST])
    assert crowded.acquire(artifacts[LAST].digest) is None
    assert computes(crowded, fused_layers, resident)


def test_page_of_a_pinned_adapter_is_not_taken(
    crowded: AdapterPool, artifacts: list[Artifact]
) -> None:
    crowded.pin(artifacts[FIRST].digest)
    with pytest.raises(BusyError, match="no slot"):
        crowded.load(artifacts[LAST])
    assert tiers(crowded) == {artifacts[FIRST].digest: "device", artifacts[LAST].digest: "host"}


def test_page_can_be_taken_when_the_last_request_of_its_adapter_ends(
    crowded: AdapterPool, fused_layers: FusedLayers, artifacts: list[Artifact]
) -> None:
    residents = [acquired(crowded, artifacts[FIRST]) for _ in range(2)]
    crowded.release(residents[0])
    assert crowded.acquire(artifacts[LAST].digest) is None
    assert not crowded.needs_load(artifacts[LAST].digest)
    crowded.release(residents[1])
    assert crowded.needs_load(artifacts[LAST].digest)
    crowded.load(artifacts[LAST])
    assert computes(crowded, fused_layers, acquired(crowded, artifacts[LAST]))


def test_loading_while_every_page_is_in_use_keeps_the_adapter_on_the_host(
    crowded: AdapterPool, artifacts: list[Artifact]
) -> None:
    acquired(crowded, artifacts[FIRST])
    crowded.load(artifacts[NEXT])
    assert tiers(crowded)[artifacts[NEXT].digest] == "host"


# ---------------------------------------------------------------------------------- unloading


def test_adapter_in_use_is_dropped_when_its_last_request_ends(
    full: AdapterPool, fused_layers: FusedLayers, artifacts: list[Artifact]
) -> None:
    residents = [acquired(full, artifacts[FIRST]) for _ in range(2)]
    assert full.unload(artifacts[FIRST].digest) is False
    full.release(residents[0])
    assert computes(full, fused_layers, residents[1])
    full.release(residents[1])
    assert artifacts[FIRST].digest not in full
    assert full.counters(artifacts[FIRST].digest) == Counters(loads=1, evictions=0)


def test_loading_cancels_an_unloading(full: AdapterPool, artifacts: list[Artifact]) -> None:
    resident = acquired(full, artifacts[FIRST])
    full.unload(artifacts[FIRST].digest)
    assert full.load(artifacts[FIRST]) is resident
    full.release(resident)
    assert artifacts[FIRST].digest in full


def test_pinned_adapter_can_be_unloaded(full: AdapterPool, artifacts: list[Artifact]) -> None:
    full.pin(artifacts[FIRST].digest)
    assert full.unload(artifacts[FIRST].digest) is True
    assert artifacts[FIRST].digest not in full


@pytest.mark.parametrize("method", [AdapterPool.unload, AdapterPool.pin], ids=["unload", "pin"])
def test_adapter_that_is_not_in_memory_raises(full: AdapterPool, method: Any) -> None:
    with pytest.raises(NotFoundError, match="sha256:0000") as caught:
        method(full, "sha256:" + "0" * 64)
    assert "trunkline ps" in (caught.value.hint or "")


def test_activating_an_adapter_that_is_not_on_the_device_is_refused(
    full: AdapterPool, artifacts: list[Artifact]
) -> None:
    with (
        pytest.raises(RefusedError, match="not on the device"),
        full.activate(artifacts[NEXT].digest),
    ):
        pass


# ------------------------------------------------------------------------------- looking at it


def test_residents_are_listed_by_last_use(full: AdapterPool, artifacts: list[Artifact]) -> None:
    full.pin(artifacts[FIRST].digest)
    for index in (FIRST, LAST):
        full.release(acquired(full, artifacts[index]))
    acquired(full, artifacts[FIRST]).requests += 1
    residents = full.residents()
    size = residents[0].bytes
    assert [replace(one, idle_seconds=0.0) for one in residents] == [
        ResidentInfo(
            digest=artifacts[index].digest,
            name=f"toy/{index}@1",
            tier="device",
            bytes=size,
            rank=8,
            pinned=index == FIRST,
            in_use=int(index == FIRST),
            requests=int(index == FIRST),
            idle_seconds=0.0,
        )
        for index in (FIRST, LAST)
    ]
    assert residents[0].idle_seconds == 0.0
    assert residents[1].idle_seconds > 0.0


def test_counters_of_an_unknown_adapter_are_nothing(full: AdapterPool) -> None:
    assert full.counters("sha256:" + "0" * 64) == Counters(0, 0)


def test_counters_continue_when_an_adapter_is_loaded_again(
    full: AdapterPool, artifacts: list[Artifact]
) -> None:
    for _ in range(3):
        full.unload(artifacts[FIRST].digest)
        full.load(artifacts[FIRST])
    assert full.counters(artifacts[FIRST].digest) == Counters(loads=4, evictions=0)


def test_evictions_are_counted_and_unloads_are_not(
    full: AdapterPool, artifacts: list[Artifact]
) -> None:
    full.load(artifacts[NEXT])
    assert full.counters(artifacts[FIRST].digest) == Counters(loads=1, evictions=1)

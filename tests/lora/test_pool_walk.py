"""An adapter pool keeps its invariants after any steps, and leaks nothing after very many."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pools import acquired, artifacts, base, computes, digests, fused_layers, model, small_pool
from trunkline.adapters.artifact import Artifact
from trunkline.bases.linear import FusedLayers
from trunkline.errors import BusyError, NotFoundError
from trunkline.lora.pool import AdapterPool, Counters, Resident

__all__ = ["artifacts", "base", "fused_layers", "model"]


class Walk:
    """An adapter pool with a model of what must be true of it after any steps."""

    def __init__(
        self, pool: AdapterPool, fused_layers: FusedLayers, artifacts: Sequence[Artifact]
    ) -> None:
        self.pool, self.fused_layers, self.artifacts = pool, fused_layers, artifacts
        self.held: list[tuple[Resident, tuple[int, ...]]] = []
        self.pinned: set[str] = set()
        self.leaving: set[str] = set()
        self.order: list[str] = []
        self.loads = dict.fromkeys((one.digest for one in artifacts), 0)
        self.evictions = dict(self.loads)

    def touch(self, digest: str) -> None:
        self.order = [one for one in self.order if one != digest] + [digest]

    def users(self, digest: str) -> int:
        return sum(resident.artifact.digest == digest for resident, _ in self.held)

    def step(self, action: str, index: int) -> None:
        artifact = self.artifacts[index % len(self.artifacts)]
        getattr(self, action)(artifact, index)
        self.check()

    def load(self, artifact: Artifact, _: int) -> None:
        digest, before = artifact.digest, digests(self.pool)
        idle = [
            one
            for one in self.order
            if one in before and one not in self.pinned and not self.users(one)
        ]
        kept = self.kept_pages(but=digest)
        try:
            resident = self.pool.load(artifact)
        except BusyError:
            assert digests(self.pool) == before
            return
        assert resident.pages or kept + resident.pages_needed > self.pool.pages
        evicted = before - digests(self.pool)
        assert evicted == set(idle[: len(evicted)])
        for one in evicted:
            self.evictions[one] += 1
        self.loads[digest] += digest not in before
        self.leaving.discard(digest)
        self.touch(digest)

    def acquire(self, artifact: Artifact, _: int) -> None:
        resident = self.pool.acquire(artifact.digest)
        if resident is None:
            resident = self.pool.get(artifact.digest)
            assert resident is None or not resident.pages
            return
        self.held.append((resident, resident.pages))
        self.touch(artifact.digest)

    def release(self, _: Artifact, index: int) -> None:
        if not self.held:
            return
        resident, _ = self.held.pop(index % len(self.held))
        digest = resident.artifact.digest
        self.pool.release(resident)
        self.touch(digest)
        if digest in self.leaving and not self.users(digest):
            self.forget(digest)

    def pin(self, artifact: Artifact, index: int) -> None:
        if artifact.digest in self.pool:
            self.pool.pin(artifact.digest, bool(index % 2))
            (self.pinned.add if index % 2 else self.pinned.discard)(artifact.digest)

    def unload(self, artifact: Artifact, _: int) -> None:
        digest = artifact.digest
        if digest not in self.pool:
            with pytest.raises(NotFoundError):
                self.pool.unload(digest)
            return
        self.leaving.add(digest)
        assert self.pool.unload(digest) == (not self.users(digest))
        if not self.users(digest):
            self.forget(digest)

    def forget(self, digest: str) -> None:
        assert digest not in self.pool
        self.pinned.discard(digest)
        self.leaving.discard(digest)

    def kept_pages(self, but: str) -> int:
        """How many pages can't be taken from other adapters."""
        staying = {one for one in digests(self.pool) if one in self.pinned or self.users(one)}
        residents = (self.pool.get(digest) for digest in staying - {but})
        return sum(len(one.pages) for one in residents if one is not None)

    def check(self) -> None:
        pool = self.pool
        assert pool.total_bytes <= pool.budget_bytes
        assert pool.total_bytes == sum(one.bytes for one in pool.residents())
        assert self.pinned <= digests(pool)
        taken = [page for one in digests(pool) for page in pool.get(one).pages]  # type: ignore[union-attr]
        assert len(taken) == len(set(taken))
        assert set(taken) <= set(range(1, pool.pages + 1))
        assert len(taken) + pool.free_pages == pool.pages
        for resident, pages in self.held:
            assert pool.get(resident.artifact.digest) is resident
            assert resident.pages == pages
        for info in pool.residents():
            assert info.in_use == self.users(info.digest)
            assert info.pinned == (info.digest in self.pinned)
        for digest, loads in self.loads.items():
            assert pool.counters(digest) == Counters(loads, self.evictions[digest])


ACTIONS = st.sampled_from(["load", "load", "acquire", "acquire", "release", "pin", "unload"])


class Setup:
    """What every walk starts from; kept out of a failed example's description."""

    def __init__(
        self, model: Any, fused_layers: FusedLayers, base: str, artifacts: list[Artifact]
    ) -> None:
        self.fused_layers, self.artifacts = fused_layers, artifacts
        self.pool = partial(small_pool, model, fused_layers, base, pages=4, ranks=40)


@pytest.fixture(scope="module")
def setup(model: Any, fused_layers: FusedLayers, base: str, artifacts: list[Artifact]) -> Setup:
    return Setup(model, fused_layers, base, artifacts)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(ACTIONS, st.integers(0, 39)), min_size=10, max_size=50))
def test_any_walk_keeps_budget_pages_and_promises(
    setup: Setup, steps: list[tuple[str, int]]
) -> None:
    walk = Walk(setup.pool(), setup.fused_layers, setup.artifacts)
    for action, index in steps:
        walk.step(action, index)
    for resident, _ in walk.held:
        assert computes(walk.pool, setup.fused_layers, resident)


def cycle(
    pool: AdapterPool, fused_layers: FusedLayers, artifacts: Sequence[Artifact], times: int
) -> None:
    """Load, use and unload one after the other."""
    for turn in range(times):
        artifact = artifacts[turn % len(artifacts)]
        pool.load(artifact)
        resident = acquired(pool, artifact)
        if turn % 10 == 0:
            assert computes(pool, fused_layers, resident)
        pool.release(resident)
        pool.unload(artifact.digest)


def count_residents() -> int:
    gc.collect()
    return sum(type(one) is Resident for one in gc.get_objects())


def test_nothing_is_left_of_50_unloaded_adapters(
    model: Any, fused_layers: FusedLayers, base: str, artifacts: list[Artifact]
) -> None:
    pool, before = small_pool(model, fused_layers, base, pages=4, ranks=64), count_residents()
    cycle(pool, fused_layers, artifacts, 50)
    assert count_residents() == before
    assert (len(pool), pool.total_bytes, pool.free_pages) == (0, 0, pool.pages)
    assert len(pool.all_counters()) == len(artifacts)


@pytest.mark.slow
def test_memory_is_flat_over_1000_loads_and_unloads(
    model: Any, fused_layers: FusedLayers, base: str, artifacts: list[Artifact]
) -> None:
    import psutil

    process = psutil.Process()
    pool = small_pool(model, fused_layers, base, pages=4, ranks=64)
    cycle(pool, fused_layers, artifacts, 200)
    gc.collect()
    before = process.memory_info().rss
    cycle(pool, fused_layers, artifacts, 1000)
    gc.collect()
    grown = process.memory_info().rss - before
    # A leak of one adapter each time would be 1,000 times 20 to 150 KiB.
    assert grown < 8 << 20, grown

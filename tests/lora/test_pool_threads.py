"""An adapter pool in several threads: no step waits for a disk, no adapter is read twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pools import (
    FIRST,
    LAST,
    NEXT,
    acquired,
    artifacts,
    base,
    computes,
    full,
    fused_layers,
    model,
    small_pool,
)  # fmt: skip
from trunkline.adapters.artifact import Artifact
from trunkline.bases.linear import FusedLayers
from trunkline.errors import IntegrityError
from trunkline.lora import pool as pool_module
from trunkline.lora.pool import AdapterPool, Resident
from trunkline.lora.routing import Routing
from trunkline.lora.slots import LoraSlots

__all__ = ["artifacts", "base", "full", "fused_layers", "model"]


class Gate:
    """Stops the callers of a function until it is opened, and counts the calls."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.entered, self.open = threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        self.entered.set()
        assert self.open.wait(30)
        return self.inner(*args)


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Reading from disk stops until the gate is opened."""
    gate = Gate(pool_module.read_weights)
    monkeypatch.setattr(pool_module, "read_weights", gate)
    yield gate
    gate.open.set()


@pytest.fixture
def uploading(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Writing into pages stops until the gate is opened."""
    gate = Gate(LoraSlots.write)
    monkeypatch.setattr(LoraSlots, "write", lambda *args: gate(*args))
    yield gate
    gate.open.set()


def started(function: Any, *args: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=args)
    thread.start()
    return thread


def test_eight_threads_that_want_one_adapter_read_it_once(
    full: AdapterPool, artifacts: list[Artifact], reading: Gate
) -> None:
    residents: list[Resident] = []
    threads = [started(lambda: residents.append(full.load(artifacts[NEXT]))) for _ in range(8)]
    assert reading.entered.wait(10)
    for thread in threads:
        thread.join(0.02)
    reading.open.set()
    for thread in threads:
        thread.join(10)
    assert reading.calls == full.counters(artifacts[NEXT].digest).loads == 1
    assert len(residents) == 8
    assert len({id(one) for one in residents}) == 1


def test_every_thread_gets_the_error_of_a_damaged_adapter(
    full: AdapterPool, artifacts: list[Artifact], tmp_path: Path
) -> None:
    artifact = replace(artifacts[NEXT], folder=tmp_path / "nowhere")
    errors: list[Exception] = []

    def load() -> None:
        try:
            full.load(artifact)
        except IntegrityError as error:
            errors.append(error)

    threads = [started(load) for _ in range(4)]
    for thread in threads:
        thread.join(10)
    assert len(errors) == 4


def test_loading_does_not_wait_for_the_step_that_runs(
    full: AdapterPool, artifacts: list[Artifact]
) -> None:
    resident = acquired(full, artifacts[FIRST])
    with full.route(Routing([resident.pages])):
        thread = started(full.load, artifacts[NEXT])
        thread.join(10)
        assert not thread.is_alive()
        assert artifacts[NEXT].digest in full


def test_steps_and_requests_do_not_wait_for_a_file_that_is_read(
    full: AdapterPool, fused_layers: FusedLayers, artifacts: list[Artifact], reading: Gate
) -> None:
    loading = started(full.load, artifacts[NEXT])
    assert reading.entered.wait(10)
    done = threading.Event()

    def serve() -> None:
        resident = acquired(full, artifacts[FIRST])
        assert computes(full, fused_layers, resident)
        full.release(resident)
        full.residents()
        done.set()

    serving = started(serve)
    assert done.wait(10)
    reading.open.set()
    for thread in (serving, loading):
        thread.join(10)


def test_adapter_can_not_be_acquired_before_it_is_written(
    model: Any, fused_layers: FusedLayers, base: str, artifacts: list[Artifact], uploading: Gate
) -> None:
    pool = small_pool(model, fused_layers, base, pages=2, ranks=64)
    loading = started(pool.load, artifacts[FIRST])
    assert uploading.entered.wait(10)
    acquired_residents: list[Resident | None] = []
    started(lambda: acquired_residents.append(pool.acquire(artifacts[FIRST].digest))).join(5)
    uploading.open.set()
    loading.join(10)
    assert acquired_residents == [None]
    assert computes(pool, fused_layers, acquired(pool, artifacts[FIRST]))


def test_second_thread_waits_for_the_upload(
    model: Any, fused_layers: FusedLayers, base: str, artifacts: list[Artifact], uploading: Gate
) -> None:
    pool = small_pool(model, fused_layers, base, pages=2, ranks=64)
    residents: list[Resident | None] = []

    def load() -> None:
        pool.load(artifacts[FIRST])
        residents.append(pool.acquire(artifacts[FIRST].digest))

    threads = [started(load)]
    assert uploading.entered.wait(10)
    threads.append(started(load))
    threads[1].join(0.1)
    uploading.open.set()
    for thread in threads:
        thread.join(10)
    assert residents == [pool.get(artifacts[FIRST].digest)] * 2


def test_adapter_unloaded_while_it_is_written_is_dropped_after_that(
    model: Any, fused_layers: FusedLayers, base: str, artifacts: list[Artifact], uploading: Gate
) -> None:
    pool = small_pool(model, fused_layers, base, pages=1, ranks=64)
    loading = started(pool.load, artifacts[FIRST])
    assert uploading.entered.wait(10)
    assert pool.unload(artifacts[FIRST].digest) is False
    uploading.open.set()
    loading.join(10)
    assert artifacts[FIRST].digest not in pool
    assert pool.total_bytes == 0


@pytest.mark.parametrize("moment", ["from disk", "from the host"])
def test_failed_upload_takes_no_page(
    model: Any,
    fused_layers: FusedLayers,
    base: str,
    artifacts: list[Artifact],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    pool = small_pool(model, fused_layers, base, pages=1, ranks=64)
    if moment == "from the host":
        for index in (LAST, FIRST):
            pool.load(artifacts[index])
    with monkeypatch.context() as patch:
        patch.setattr(LoraSlots, "write", fail)
        with pytest.raises(MemoryError):
            pool.load(artifacts[LAST])
    assert artifacts[LAST].digest not in pool
    pool.load(artifacts[LAST])
    assert computes(pool, fused_layers, acquired(pool, artifacts[LAST]))

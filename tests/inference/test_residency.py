"""Adapters are evicted and reloaded under requests; each answer comes from the requested one."""

from __future__ import annotations

import gc
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from driving import EngineDriver, MakeDriver, MakeEngine, count_ties, make_request
from trunkline.adapters.artifact import Artifact, read_artifact
from trunkline.bases import Base
from trunkline.errors import BusyError, IntegrityError, PinnedError, RefusedError
from trunkline.inference.request_state import GenerationHandle
from trunkline.inference.settings import EngineSettings
from trunkline.lora.pool import AdapterPool
from workbench import make_artifact, reseal

LONG = "organic whole milk, one gallon, from the dairy department: what is it? " * 2
NEW = 4


def assert_own(driver: EngineDriver, handle: GenerationHandle, truth: Any) -> None:
    """A greedy answer is that of plain PEFT."""
    handle.answer(0)
    count_ties(truth, driver.record(handle, 0), end_ids=driver.engine.end_ids, limit=NEW)


def small_pool(base: Base, adapters: float, artifact: Artifact, *, slots: int) -> AdapterPool:
    """A pool whose host memory suffices for this many adapters of the artifact's size."""
    size = AdapterPool(base.model, base.digest, base.fused_layers).load(artifact).bytes
    return AdapterPool(
        base.model, base.digest, base.fused_layers, slots=slots, host_bytes=int(size * adapters)
    )


def tier(driver: EngineDriver, artifact: Artifact) -> str | None:
    residents = driver.engine.pool.residents()
    return next((info.tier for info in residents if info.digest == artifact.digest), None)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> list[tuple[Artifact, Any]]:
    """Five adapters of one size, with their truths."""
    folder = tmp_path_factory.mktemp("many")
    truths = [
        make_artifact(folder / f"a{seed}", tiny, "generation", seed=seed, r=8) for seed in range(5)
    ]
    return [(read_artifact(folder / f"a{seed}"), truth) for seed, truth in enumerate(truths)]


def test_more_adapters_than_the_device_holds(
    make_driver: MakeDriver, many: list[tuple[Artifact, Any]]
) -> None:
    driver = make_driver(slots=1, rows=4, chunk_tokens=16)
    handles = [driver.submit(artifact, LONG, max_new_tokens=NEW) for artifact, _ in many * 2]
    driver.finish()
    for handle, (_, truth) in zip(handles, many * 2, strict=True):
        assert_own(driver, handle, truth)
    driver.assert_nothing_is_held()


def test_requests_of_the_base_pass_those_whose_adapter_has_no_slot(
    make_driver: MakeDriver, many: list[tuple[Artifact, Any]]
) -> None:
    driver = make_driver(slots=1, rows=4, end_ids=())
    first = driver.submit(many[0][0], max_new_tokens=20)
    driver.step()
    second = driver.submit(many[1][0], max_new_tokens=2)
    third = driver.submit(None, max_new_tokens=2)
    for _ in range(4):
        driver.step()
    assert [handle.ended for handle in (first, second, third)] == [False, False, True]
    driver.finish()
    assert second.answer(0).new_tokens == 2


def test_more_adapters_than_memory_holds_are_read_again(
    base: Base, make_engine: MakeEngine, many: list[tuple[Artifact, Any]]
) -> None:
    requests = [
        make_request(artifact, f"{LONG}{number}", max_new_tokens=NEW)
        for number in range(4)
        for artifact, _ in many
    ]
    expected = [answer.text for answer in make_engine().run(requests)]
    pool = small_pool(base, 2.5, many[0][0], slots=2)
    engine = make_engine(EngineSettings(rows=3), pool=pool)
    assert [answer.text for answer in engine.run(requests)] == expected
    assert sum(engine.pool.counters(artifact.digest).loads for artifact, _ in many) > len(many)
    assert len(engine.pool) == 2


def test_adapter_unloaded_while_its_request_waits_is_loaded_again(
    make_driver: MakeDriver, many: list[tuple[Artifact, Any]]
) -> None:
    driver = make_driver(rows=1)
    first = driver.submit(None, max_new_tokens=3)
    artifact, truth = many[0]
    waiting = driver.submit(artifact, LONG, max_new_tokens=NEW)
    driver.step()
    assert driver.engine.pool.unload(artifact.digest)
    driver.finish()
    assert first.ended
    assert_own(driver, waiting, truth)
    assert driver.engine.pool.counters(artifact.digest).loads == 2


def test_adapter_deleted_while_its_request_waits_fails_it(
    make_driver: MakeDriver, tiny: Path, tmp_path: Path
) -> None:
    make_artifact(tmp_path / "gone", tiny, "generation")
    artifact = read_artifact(tmp_path / "gone")
    driver = make_driver(rows=1)
    other = driver.submit(None, max_new_tokens=2)
    handle = driver.submit(artifact, LONG, max_new_tokens=NEW)
    driver.engine.pool.unload(artifact.digest)
    shutil.rmtree(tmp_path / "gone")
    driver.finish()
    assert isinstance(driver.error(handle), IntegrityError)
    assert other.answer(0).text is not None
    driver.assert_nothing_is_held()


def test_adapter_deleted_between_two_answers_of_one_request_fails_it(
    make_driver: MakeDriver, tiny: Path, tmp_path: Path
) -> None:
    make_artifact(tmp_path / "gone", tiny, "generation")
    artifact = read_artifact(tmp_path / "gone")
    driver = make_driver(rows=1)
    handle = driver.submit(artifact, LONG, max_new_tokens=1, n=3)
    driver.step()
    driver.engine.pool.unload(artifact.digest)
    shutil.rmtree(tmp_path / "gone")
    driver.finish()
    assert isinstance(driver.error(handle), IntegrityError)
    driver.assert_nothing_is_held()


def test_adapter_unloaded_while_in_use_stays_to_the_end(
    make_driver: MakeDriver, many: list[tuple[Artifact, Any]]
) -> None:
    driver = make_driver()
    (artifact, truth), (other, other_truth) = many[:2]
    handle = driver.submit(artifact, LONG, max_new_tokens=NEW)
    driver.step()
    assert not driver.engine.pool.unload(artifact.digest)
    neighbor = driver.submit(other, LONG, max_new_tokens=NEW)
    driver.finish()
    assert_own(driver, handle, truth)
    assert_own(driver, neighbor, other_truth)
    assert artifact.digest not in driver.engine.pool


def test_adapter_in_use_is_never_evicted(
    make_driver: MakeDriver, many: list[tuple[Artifact, Any]]
) -> None:
    driver = make_driver(slots=2, end_ids=())
    running = driver.submit(many[0][0], max_new_tokens=40)
    driver.step()
    for artifact, truth in many[1:] * 2:
        handle = driver.submit(artifact, LONG, max_new_tokens=NEW)
        driver.finish(handle)
        assert_own(driver, handle, truth)
        assert tier(driver, many[0][0]) == "device"
    driver.finish()
    drawn = driver.record(running, 0)
    count_ties(many[0][1], drawn, end_ids=frozenset(), limit=40)


def test_flood_of_a_small_rank_does_not_starve_a_large_one(
    make_driver: MakeDriver, many: list[tuple[Artifact, Any]], tiny: Path, tmp_path: Path
) -> None:
    make_artifact(tmp_path / "large", tiny, "generation", r=16)
    driver = make_driver(slots=2, rows=2, end_ids=())
    artifact = many[0][0]
    driver.submit(artifact, max_new_tokens=5)
    driver.step()
    large = driver.submit(read_artifact(tmp_path / "large"), "a goat", max_new_tokens=2)
    for _ in range(500):
        if driver.engine.state().waiting < 3:
            driver.submit(artifact, max_new_tokens=5)
        driver.step_or_wait()
        if large.ended:
            break
    assert large.ended


def submit_evicted(driver: EngineDriver, many: list[tuple[Artifact, Any]]) -> GenerationHandle:
    """A request whose adapter was evicted from memory while it waited for a row.

    Memory suffices for two adapters, both in use.
    """
    (first, _), (second, _), (third, _) = many[:3]
    for number in range(driver.engine.settings.rows):
        driver.submit(first, max_new_tokens=4 + 5 * number)
    driver.step()
    waiting = driver.submit(third, LONG, max_new_tokens=NEW)
    driver.submit(second, max_new_tokens=60)
    assert tier(driver, third) is None
    return waiting


def test_flood_that_fills_the_memory_does_not_starve_an_evicted_adapter(
    base: Base, make_driver: MakeDriver, many: list[tuple[Artifact, Any]]
) -> None:
    pool = small_pool(base, 2.5, many[0][0], slots=3)
    driver = make_driver(rows=6, pool=pool, end_ids=())
    waiting = submit_evicted(driver, many)
    flood: dict[int, list[GenerationHandle]] = {0: [], 1: []}
    for step in range(1000):
        for index, handles in flood.items():
            flood[index] = [handle for handle in handles if not handle.ended]
            while len(flood[index]) < 6:
                length = 6 + (7 * step + len(flood[index])) % 25
                flood[index].append(driver.submit(many[index][0], max_new_tokens=length))
        driver.step_or_wait()
        if waiting.ended:
            break
    assert_own(driver, waiting, many[2][1])
    driver.finish()
    driver.assert_nothing_is_held()


def test_request_fails_if_its_memory_is_pinned_while_it_waits(
    base: Base, make_driver: MakeDriver, many: list[tuple[Artifact, Any]]
) -> None:
    pool = small_pool(base, 2.5, many[0][0], slots=3)
    driver = make_driver(rows=6, pool=pool, end_ids=())
    waiting = submit_evicted(driver, many)
    for artifact, _ in many[:2]:
        driver.engine.pool.pin(artifact.digest)
    driver.finish()
    error = driver.error(waiting)
    assert isinstance(error, PinnedError)
    assert "no memory for an adapter" in error.message
    assert error.hint
    driver.assert_nothing_is_held()


def test_a_request_counts_once_however_long_it_waits(
    make_driver: MakeDriver, many: list[tuple[Artifact, Any]]
) -> None:
    driver = make_driver(kv_tokens=64, end_ids=())
    for count in (1, 1, 3):
        driver.submit(many[0][0], max_new_tokens=30, n=count)
    driver.finish()
    (info,) = driver.engine.pool.residents()
    assert info.requests == 3


def test_request_fails_if_its_slot_is_pinned_while_it_waits(
    make_driver: MakeDriver, many: list[tuple[Artifact, Any]]
) -> None:
    driver = make_driver(slots=1)
    first = driver.submit(many[0][0], LONG, max_new_tokens=NEW)
    driver.step()
    waiting = driver.submit(many[1][0])
    driver.engine.pool.pin(many[0][0].digest)
    after = driver.submit(many[0][0], LONG, max_new_tokens=NEW)
    driver.finish()
    error = driver.error(waiting)
    assert isinstance(error, BusyError)
    assert "1 of 1" in error.message
    assert error.hint
    assert_own(driver, first, many[0][1])
    assert_own(driver, after, many[0][1])


def test_a_rank_that_never_fits_is_refused_at_once(
    make_driver: MakeDriver, tiny: Path, tmp_path: Path
) -> None:
    make_artifact(tmp_path / "large", tiny, "generation", r=20)
    driver = make_driver(slots=2)
    with pytest.raises(RefusedError, match="rank 20") as caught:
        driver.submit(read_artifact(tmp_path / "large"))
    assert caught.value.hint


def test_loading_beside_running_requests_changes_nothing_for_them(
    make_engine: MakeEngine, many: list[tuple[Artifact, Any]]
) -> None:
    engine = make_engine(EngineSettings(slots=2, rows=4))
    requests = [
        make_request(many[0][0], f"goat {number}", max_new_tokens=20) for number in range(12)
    ]
    expected = [answer.text for answer in engine.run(requests)]
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for artifact, _ in many[1:]:
                engine.pool.load(artifact, "churn")
                engine.pool.unload(artifact.digest)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert [answer.text for answer in engine.run(requests)] == expected
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_loading_and_unloading_a_thousand_times_leaves_memory_flat(
    make_engine: MakeEngine, many: list[tuple[Artifact, Any]]
) -> None:
    engine = make_engine(EngineSettings(slots=2))
    sizes = []
    for number in range(1000):
        artifact = many[number % 5][0]
        engine.run([make_request(artifact, f"goat {number}", max_new_tokens=2)])
        engine.pool.unload(artifact.digest)
        if number in (200, 999):
            gc.collect()
            sizes.append(resident_bytes())
    assert sizes[1] - sizes[0] < 8 << 20
    assert engine.pool.total_bytes == 0


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ----------------------------------------------------------------------------- broken adapters


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Artifact:
    """Finite weights that make every output NaN."""
    make_artifact(tmp_path / "broken", tiny, "generation")
    path = tmp_path / "broken" / "adapter_model.safetensors"
    tensors = {name: tensor * 1e25 for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    reseal(tmp_path / "broken")
    return read_artifact(tmp_path / "broken")


@pytest.mark.parametrize("position", [0, 1, 2])
def test_invalid_outputs_fail_their_request_alone(
    make_driver: MakeDriver, adapters: dict[str, Any], truth: Any, broken: Artifact, position: int
) -> None:
    driver = make_driver(rows=8, chunk_tokens=64)
    requested: list[tuple[Any, Any]] = [
        (adapters["low"].artifact, adapters["low"].truth),
        (None, truth),
    ]
    requested.insert(position, (broken, None))
    handles = [
        driver.submit(artifact, f"{LONG[: 20 * number]}goat", max_new_tokens=NEW)
        for number, (artifact, _) in enumerate(requested)
    ]
    driver.finish()
    for handle, (artifact, own) in zip(handles, requested, strict=True):
        if artifact is broken:
            error = driver.error(handle)
            assert isinstance(error, IntegrityError)
            assert error.hint
        else:
            assert_own(driver, handle, own)
    driver.assert_nothing_is_held()


def test_blocks_with_nan_do_not_affect_later_requests(
    make_driver: MakeDriver, adapters: dict[str, Any], truth: Any, broken: Artifact
) -> None:
    driver = make_driver(rows=4, kv_tokens=256)
    driver.submit(broken, LONG, max_new_tokens=NEW)
    driver.finish()
    handles = [driver.submit(None, LONG[:length], max_new_tokens=NEW) for length in (9, 60, 30, 90)]
    driver.finish()
    for handle in handles:
        assert_own(driver, handle, truth)


def test_invalid_head_outputs_fail_their_request_alone(
    make_driver: MakeDriver, adapters: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    make_artifact(tmp_path / "broken", tiny, "classification")
    path = tmp_path / "broken" / "adapter_model.safetensors"
    tensors = {name: tensor * 1e25 for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    reseal(tmp_path / "broken")
    driver = make_driver()
    handle = driver.submit(read_artifact(tmp_path / "broken"))
    other = driver.submit(adapters["labels"].artifact)
    driver.finish()
    assert isinstance(driver.error(handle), IntegrityError)
    assert other.answer(0).label is not None

"""Adapters come and go under requests; who asked is answered by the one that was asked."""

from __future__ import annotations

import gc
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from driving import Driven, count_ties, work_for
from trunkline.adapters.artifact import Artifact, read_artifact
from trunkline.bases import Base
from trunkline.errors import BusyError, IntegrityError, PinnedError, RefusedError
from trunkline.inference.engine import Engine
from trunkline.inference.request_state import GenerationHandle
from trunkline.inference.settings import EngineSettings
from trunkline.lora.pool import AdapterPool
from workbench import make_artifact, reseal

LONG = "organic whole milk, one gallon, from the dairy department: what is it? " * 2
NEW = 4


def assert_own(driven: Driven, handle: GenerationHandle, truth: Any) -> None:
    """A greedy answer is that of plain PEFT."""
    handle.answer(0)
    count_ties(truth, driven.drawn[handle, 0], ends=driven.engine._ends, limit=NEW)


def only(pool: AdapterPool, adapters: float, like: Artifact) -> None:
    """Let the host hold so many adapters of one's size."""
    size = pool.load(like).bytes
    pool.unload(like.digest)
    pool._host_budget = int(size * adapters)


def tier(driven: Driven, artifact: Artifact) -> str | None:
    found = [info for info in driven.engine.pool.residents() if info.digest == artifact.digest]
    return found[0].tier if found else None


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> list[tuple[Artifact, Any]]:
    """Five adapters of one size, with their truths."""
    room = tmp_path_factory.mktemp("many")
    truths = [
        make_artifact(room / f"a{seed}", tiny, "generation", seed=seed, r=8) for seed in range(5)
    ]
    return [(read_artifact(room / f"a{seed}"), truth) for seed, truth in enumerate(truths)]


def test_more_adapters_than_the_device_holds(
    driven: Callable[..., Driven], many: list[tuple[Artifact, Any]]
) -> None:
    one = driven(slots=1, rows=4, chunk_tokens=16)
    handles = [one.ask(artifact, LONG, max_new_tokens=NEW) for artifact, _ in many * 2]
    one.finish()
    for handle, (_, truth) in zip(handles, many * 2, strict=True):
        assert_own(one, handle, truth)
    one.assert_nothing_is_held()


def test_requests_of_the_base_pass_those_whose_adapter_has_no_place(
    driven: Callable[..., Driven], many: list[tuple[Artifact, Any]]
) -> None:
    one = driven(slots=1, rows=4)
    one.engine._ends = frozenset()
    first = one.ask(many[0][0], max_new_tokens=20)
    one.step()
    second = one.ask(many[1][0], max_new_tokens=2)
    third = one.ask(None, max_new_tokens=2)
    for _ in range(4):
        one.step()
    assert [handle.ended for handle in (first, second, third)] == [False, False, True]
    one.finish()
    assert second.answer(0).new_tokens == 2


def test_more_adapters_than_memory_holds_are_read_again(
    base: Base, many: list[tuple[Artifact, Any]]
) -> None:
    plain = Engine(base)
    works = [
        work_for(artifact, f"{LONG}{number}", max_new_tokens=NEW)
        for number in range(4)
        for artifact, _ in many
    ]
    expected = [answer.text for answer in plain.run(works)]
    plain.close()
    engine = Engine(base, EngineSettings(slots=2, rows=3))
    only(engine.pool, 2.5, many[0][0])
    assert [answer.text for answer in engine.run(works)] == expected
    assert sum(engine.pool.counters(artifact.digest).loads for artifact, _ in many) > len(many)
    assert len(engine.pool) == 2
    engine.close()


def test_adapter_that_left_memory_while_its_request_waited_is_read_again(
    driven: Callable[..., Driven], many: list[tuple[Artifact, Any]]
) -> None:
    one = driven(rows=1)
    first = one.ask(None, max_new_tokens=3)
    artifact, truth = many[0]
    waiting = one.ask(artifact, LONG, max_new_tokens=NEW)
    one.step()
    assert one.engine.pool.unload(artifact.digest)
    one.finish()
    assert first.ended
    assert_own(one, waiting, truth)
    assert one.engine.pool.counters(artifact.digest).loads == 2


def test_adapter_that_vanished_while_its_request_waited_is_told(
    driven: Callable[..., Driven], tiny: Path, tmp_path: Path
) -> None:
    make_artifact(tmp_path / "gone", tiny, "generation")
    artifact = read_artifact(tmp_path / "gone")
    one = driven(rows=1)
    other = one.ask(None, max_new_tokens=2)
    handle = one.ask(artifact, LONG, max_new_tokens=NEW)
    one.engine.pool.unload(artifact.digest)
    shutil.rmtree(tmp_path / "gone")
    one.finish()
    assert isinstance(one.error(handle), IntegrityError)
    assert other.answer(0).text is not None
    one.assert_nothing_is_held()


def test_adapter_that_vanished_between_two_answers_of_one_request_is_told(
    driven: Callable[..., Driven], tiny: Path, tmp_path: Path
) -> None:
    make_artifact(tmp_path / "gone", tiny, "generation")
    artifact = read_artifact(tmp_path / "gone")
    one = driven(rows=1)
    handle = one.ask(artifact, LONG, max_new_tokens=1, n=3)
    one.step()
    one.engine.pool.unload(artifact.digest)
    shutil.rmtree(tmp_path / "gone")
    one.finish()
    assert isinstance(one.error(handle), IntegrityError)
    one.assert_nothing_is_held()


def test_adapter_unloaded_while_in_use_goes_on_to_the_end(
    driven: Callable[..., Driven], many: list[tuple[Artifact, Any]]
) -> None:
    one = driven()
    (artifact, truth), (other, other_truth) = many[:2]
    handle = one.ask(artifact, LONG, max_new_tokens=NEW)
    one.step()
    assert not one.engine.pool.unload(artifact.digest)
    neighbor = one.ask(other, LONG, max_new_tokens=NEW)
    one.finish()
    assert_own(one, handle, truth)
    assert_own(one, neighbor, other_truth)
    assert artifact.digest not in one.engine.pool


def test_adapter_in_use_is_never_put_away_for_another(
    driven: Callable[..., Driven], many: list[tuple[Artifact, Any]]
) -> None:
    one = driven(slots=2)
    one.engine._ends = frozenset()
    running = one.ask(many[0][0], max_new_tokens=40)
    one.step()
    for artifact, truth in many[1:] * 2:
        handle = one.ask(artifact, LONG, max_new_tokens=NEW)
        one.finish(handle)
        assert_own(one, handle, truth)
        assert tier(one, many[0][0]) == "device"
    one.finish()
    drawn = one.drawn[running, 0]
    count_ties(many[0][1], drawn, ends=frozenset(), limit=40)


def test_flood_of_a_small_rank_does_not_starve_one_that_needs_more_room(
    driven: Callable[..., Driven], many: list[tuple[Artifact, Any]], tiny: Path, tmp_path: Path
) -> None:
    make_artifact(tmp_path / "large", tiny, "generation", r=16)
    one = driven(slots=2, rows=2)
    one.engine._ends = frozenset()
    artifact = many[0][0]
    one.ask(artifact, max_new_tokens=5)
    one.step()
    large = one.ask(read_artifact(tmp_path / "large"), "a goat", max_new_tokens=2)
    for _ in range(500):
        if len(one.engine._waiting) < 3:
            one.ask(artifact, max_new_tokens=5)
        one.go()
        if large.ended:
            break
    assert large.ended
    assert large.digest not in one.engine._passed_over


def crowded_out(one: Driven, many: list[tuple[Artifact, Any]]) -> GenerationHandle:
    """A request whose adapter went out of memory for another while it waited for a row.

    Memory holds two adapters, both in use.
    """
    (first, _), (second, _), (third, _) = many[:3]
    only(one.engine.pool, 2.5, first)
    one.engine._ends = frozenset()
    for number in range(one.engine.settings.rows):
        one.ask(first, max_new_tokens=4 + 5 * number)
    one.step()
    waiting = one.ask(third, LONG, max_new_tokens=NEW)
    one.ask(second, max_new_tokens=60)
    assert tier(one, third) is None
    return waiting


def test_flood_that_fills_the_memory_does_not_starve_one_that_went_out_of_it(
    driven: Callable[..., Driven], many: list[tuple[Artifact, Any]]
) -> None:
    one = driven(slots=3, rows=6)
    waiting = crowded_out(one, many)
    flood: dict[int, list[GenerationHandle]] = {0: [], 1: []}
    for step in range(1000):
        for index, handles in flood.items():
            flood[index] = [handle for handle in handles if not handle.ended]
            while len(flood[index]) < 6:
                length = 6 + (7 * step + len(flood[index])) % 25
                flood[index].append(one.ask(many[index][0], max_new_tokens=length))
        one.go()
        if waiting.ended:
            break
    assert_own(one, waiting, many[2][1])
    assert waiting.digest not in one.engine._passed_over
    one.finish()
    one.assert_nothing_is_held()


def test_one_whose_memory_was_pinned_while_it_waited_is_told(
    driven: Callable[..., Driven], many: list[tuple[Artifact, Any]]
) -> None:
    one = driven(slots=3, rows=6)
    waiting = crowded_out(one, many)
    for artifact, _ in many[:2]:
        one.engine.pool.pin(artifact.digest)
    one.finish()
    error = one.error(waiting)
    assert isinstance(error, PinnedError)
    assert "no room for an adapter" in error.message
    assert error.hint
    one.assert_nothing_is_held()


def test_requests_of_an_adapter_count_once_however_long_they_wait(
    driven: Callable[..., Driven], many: list[tuple[Artifact, Any]]
) -> None:
    one = driven(kv_tokens=64)
    one.engine._ends = frozenset()
    for count in (1, 1, 3):
        one.ask(many[0][0], max_new_tokens=30, n=count)
    one.finish()
    (info,) = one.engine.pool.residents()
    assert info.requests == 3


def test_one_whose_place_was_pinned_while_it_waited_is_told(
    driven: Callable[..., Driven], many: list[tuple[Artifact, Any]]
) -> None:
    one = driven(slots=1)
    first = one.ask(many[0][0], LONG, max_new_tokens=NEW)
    one.step()
    waiting = one.ask(many[1][0])
    one.engine.pool.pin(many[0][0].digest)
    after = one.ask(many[0][0], LONG, max_new_tokens=NEW)
    one.finish()
    error = one.error(waiting)
    assert isinstance(error, BusyError)
    assert "1 of 1" in error.message
    assert error.hint
    assert_own(one, first, many[0][1])
    assert_own(one, after, many[0][1])


def test_a_rank_that_never_fits_is_told_at_once(
    driven: Callable[..., Driven], tiny: Path, tmp_path: Path
) -> None:
    make_artifact(tmp_path / "large", tiny, "generation", r=20)
    one = driven(slots=2)
    with pytest.raises(RefusedError, match="rank 20") as caught:
        one.ask(read_artifact(tmp_path / "large"))
    assert caught.value.hint


def test_loading_beside_running_requests_changes_nothing_for_them(
    base: Base, many: list[tuple[Artifact, Any]]
) -> None:
    engine = Engine(base, EngineSettings(slots=2, rows=4))
    works = [work_for(many[0][0], f"goat {number}", max_new_tokens=20) for number in range(12)]
    expected = [answer.text for answer in engine.run(works)]
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for artifact, _ in many[1:]:
                engine.pool.load(artifact, "churn")
                engine.pool.unload(artifact.digest)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert [answer.text for answer in engine.run(works)] == expected
    finally:
        stop.set()
        thread.join()
        engine.close()


@pytest.mark.slow
def test_loading_and_unloading_a_thousand_times_leaves_memory_flat(
    base: Base, many: list[tuple[Artifact, Any]]
) -> None:
    engine = Engine(base, EngineSettings(slots=2))
    sizes = []
    for number in range(1000):
        artifact = many[number % 5][0]
        engine.run([work_for(artifact, f"goat {number}", max_new_tokens=2)])
        engine.pool.unload(artifact.digest)
        if number in (200, 999):
            gc.collect()
            sizes.append(resident_bytes())
    assert sizes[1] - sizes[0] < 8 << 20
    assert engine.pool.total_bytes == 0
    engine.close()


def resident_bytes() -> int:
    """Of this process."""
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


@pytest.mark.parametrize("place", [0, 1, 2])
def test_outputs_that_are_no_numbers_fail_their_request_alone(
    driven: Callable[..., Driven], made: dict[str, Any], truth: Any, broken: Artifact, place: int
) -> None:
    one = driven(rows=8, chunk_tokens=64)
    asked: list[tuple[Any, Any]] = [
        (made["low"].artifact, made["low"].truth),
        (None, truth),
    ]
    asked.insert(place, (broken, None))
    handles = [
        one.ask(artifact, f"{LONG[: 20 * number]}goat", max_new_tokens=NEW)
        for number, (artifact, _) in enumerate(asked)
    ]
    one.finish()
    for handle, (artifact, own) in zip(handles, asked, strict=True):
        if artifact is broken:
            error = one.error(handle)
            assert isinstance(error, IntegrityError)
            assert error.hint
        else:
            assert_own(one, handle, own)
    one.assert_nothing_is_held()


def test_blocks_that_held_no_numbers_harm_nobody_later(
    driven: Callable[..., Driven], made: dict[str, Any], truth: Any, broken: Artifact
) -> None:
    one = driven(rows=4, kv_tokens=256)
    one.ask(broken, LONG, max_new_tokens=NEW)
    one.finish()
    handles = [one.ask(None, LONG[:length], max_new_tokens=NEW) for length in (9, 60, 30, 90)]
    one.finish()
    for handle in handles:
        assert_own(one, handle, truth)


def test_head_that_gives_no_numbers_fails_its_request_alone(
    driven: Callable[..., Driven], made: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    make_artifact(tmp_path / "broken", tiny, "classification")
    path = tmp_path / "broken" / "adapter_model.safetensors"
    tensors = {name: tensor * 1e25 for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    reseal(tmp_path / "broken")
    one = driven()
    handle = one.ask(read_artifact(tmp_path / "broken"))
    other = one.ask(made["labels"].artifact)
    one.finish()
    assert isinstance(one.error(handle), IntegrityError)
    assert other.answer(0).label is not None

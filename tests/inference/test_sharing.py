"""One prompt under several versions: each uses the prefix cache of its own version only."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from driving import EngineDriver, MakeDriver, count_ties, make_request
from trunkline.adapters.artifact import read_artifact
from trunkline.inference.engine import Engine
from trunkline.inference.request_state import GenerationHandle
from workbench import make_artifact

PROMPT = "organic whole milk, one gallon, from the dairy department: what is it? " * 2
NAMES = ("low", "middle", "high", "base")
NEW = 6


@pytest.fixture
def versions(adapters: dict[str, Any], truth: Any) -> dict[str, tuple[Any, Any]]:
    """Name → artifact (None: the base) and its truth."""
    return {name: (adapters[name].artifact, adapters[name].truth) for name in NAMES[:3]} | {
        "base": (None, truth)
    }


def submit_all(
    driver: EngineDriver, versions: dict[str, tuple[Any, Any]], order: Sequence[str]
) -> list[tuple[str, GenerationHandle]]:
    return [(name, driver.submit(versions[name][0], PROMPT, max_new_tokens=NEW)) for name in order]


def assert_own_answers(
    driver: EngineDriver,
    submitted: list[tuple[str, GenerationHandle]],
    versions: dict[str, tuple[Any, Any]],
) -> None:
    for name, handle in submitted:
        handle.answer(0)
        record = driver.record(handle, 0)
        count_ties(versions[name][1], record, end_ids=driver.engine.end_ids, limit=NEW)


def test_each_version_gets_its_own_answer_in_any_order(
    make_driver: MakeDriver, versions: dict[str, tuple[Any, Any]]
) -> None:
    driver = make_driver(rows=4, chunk_tokens=16)
    submitted = submit_all(driver, versions, NAMES)
    driver.finish()
    assert_own_answers(driver, submitted, versions)
    own = {name: driver.record(handle, 0).ids for name, handle in submitted}
    assert len({tuple(ids) for ids in own.values()}) == 4
    for order in itertools.permutations(NAMES):
        driver.engine.reset_prefix_cache()
        for is_cached in (False, True):
            submitted = submit_all(driver, versions, order)
            driver.finish()
            assert {name: driver.record(handle, 0).ids for name, handle in submitted} == own
            assert [handle.answer(0).cached_tokens > 0 for _, handle in submitted] == [
                is_cached
            ] * 4


def test_each_version_uses_its_own_cached_prompt_alone(
    make_driver: MakeDriver, versions: dict[str, tuple[Any, Any]]
) -> None:
    driver = make_driver(rows=4)
    for is_cached in (False, True):
        for name in NAMES:
            submitted = submit_all(driver, versions, [name])
            driver.finish()
            assert_own_answers(driver, submitted, versions)
            answer = submitted[0][1].answer(0)
            complete = (answer.prompt_tokens - 1) // 16 * 16
            assert answer.cached_tokens == (complete if is_cached else 0)


def test_an_incomplete_prompt_is_shared_as_far_as_it_is_computed(
    make_driver: MakeDriver, versions: dict[str, tuple[Any, Any]]
) -> None:
    driver = make_driver(rows=4, chunk_tokens=16)
    first = submit_all(driver, versions, ["low"])
    driver.step()
    driver.step()
    second = submit_all(driver, versions, ["low", "high"])
    driver.finish()
    assert_own_answers(driver, first + second, versions)
    assert [handle.answer(0).cached_tokens for _, handle in first + second] == [0, 32, 0]


def test_tokens_of_an_answer_are_cached_for_the_next_turn(make_driver: MakeDriver) -> None:
    driver = make_driver(rows=2)
    handle = driver.submit(None, PROMPT, max_new_tokens=40)
    driver.finish()
    record = driver.record(handle, 0)
    tokens = record.prompt + record.ids
    cached = driver.engine.state().cached_tokens
    assert cached == (len(tokens) - 1) // 16 * 16 > len(record.prompt)


def test_without_the_cache_answers_are_the_same(
    make_driver: MakeDriver, versions: dict[str, tuple[Any, Any]]
) -> None:
    driver = make_driver(rows=4, prefix_cache=False)
    for _ in range(2):
        submitted = submit_all(driver, versions, NAMES)
        driver.finish()
        assert_own_answers(driver, submitted, versions)
        assert [handle.answer(0).cached_tokens for _, handle in submitted] == [0, 0, 0, 0]


def test_a_nearly_full_cache_never_mixes_tokens(
    make_driver: MakeDriver, versions: dict[str, tuple[Any, Any]]
) -> None:
    """The cache suffices for two requests, so cached blocks are evicted each time."""
    driver = make_driver(rows=4, chunk_tokens=16, kv_tokens=192)
    for turn in range(6):
        submitted = submit_all(
            driver, versions, [NAMES[(turn * 3 + place) % 4] for place in range(4)]
        )
        driver.finish()
        assert_own_answers(driver, submitted, versions)
    driver.assert_nothing_is_held()


def test_a_new_version_never_gets_the_old_one_s_keys_and_values(
    make_driver: MakeDriver, tiny: Path, tmp_path: Path
) -> None:
    driver = make_driver()
    answers = {}
    for version in (1, 2, 1, 2):
        folder = tmp_path / f"v{version}" / "plurals"
        exists = folder.is_dir()
        if not exists:
            truth = make_artifact(folder, tiny, "generation", seed=version)
            answers[version] = (read_artifact(folder), truth)
        artifact, truth = answers[version]
        handle = driver.submit(artifact, PROMPT, max_new_tokens=NEW)
        driver.finish()
        count_ties(truth, driver.record(handle, 0), end_ids=driver.engine.end_ids, limit=NEW)
        assert handle.answer(0).digest == artifact.digest
        assert (handle.answer(0).cached_tokens > 0) == exists


def test_a_version_that_was_reloaded_uses_its_cached_prompt(
    make_driver: MakeDriver, versions: dict[str, tuple[Any, Any]]
) -> None:
    driver = make_driver()
    for name in ("low", "high", "low"):
        submitted = submit_all(driver, versions, [name])
        driver.finish()
        assert_own_answers(driver, submitted, versions)
        artifact = versions[name][0]
        driver.engine.pool.unload(artifact.digest)
    assert submitted[0][1].answer(0).cached_tokens > 0


@pytest.mark.parametrize("name", ["labels", "number"])
def test_labels_and_numbers_use_the_cache_too(
    make_driver: MakeDriver, adapters: dict[str, Any], name: str
) -> None:
    driver = make_driver()
    results = []
    for _ in range(2):
        (answer,) = driver.answers([driver.submit(adapters[name].artifact, PROMPT)])
        results.append((answer.cached_tokens > 0, list((answer.probabilities or {}).values())))
        results[-1][1].append(answer.value or 0.0)
    assert [is_cached for is_cached, _ in results] == [False, True]
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-4)


@pytest.mark.slow
def test_many_threads_and_orders_for_a_while(
    engine: Engine, versions: dict[str, tuple[Any, Any]]
) -> None:
    texts = {
        name: engine.run([make_request(artifact, PROMPT, max_new_tokens=NEW)])[0].text
        for name, (artifact, _) in versions.items()
    }
    wrong: list[str] = []

    def run(order: Sequence[str]) -> None:
        for name in order * 20:
            request = make_request(versions[name][0], PROMPT, max_new_tokens=NEW)
            if engine.run([request])[0].text != texts[name]:
                wrong.append(name)

    threads = [
        threading.Thread(target=run, args=(order,)) for order in itertools.permutations(NAMES)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []

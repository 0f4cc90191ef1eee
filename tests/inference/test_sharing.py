"""One prompt under several versions: the cache is used, and nobody gets another's answer."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from driving import Driven, count_ties, work_for
from trunkline.adapters.artifact import read_artifact
from trunkline.bases import Base
from trunkline.inference.engine import Engine
from trunkline.inference.request_state import GenerationHandle
from workbench import make_artifact

PROMPT = "organic whole milk, one gallon, from the dairy department: what is it? " * 2
NAMES = ("low", "middle", "high", "base")
NEW = 6


@pytest.fixture
def versions(made: dict[str, Any], truth: Any) -> dict[str, tuple[Any, Any]]:
    """Name → artifact (None: the base) and its truth."""
    return {name: (made[name].artifact, made[name].truth) for name in NAMES[:3]} | {
        "base": (None, truth)
    }


def ask_all(
    driven: Driven, versions: dict[str, tuple[Any, Any]], order: Sequence[str]
) -> list[tuple[str, GenerationHandle]]:
    return [(name, driven.ask(versions[name][0], PROMPT, max_new_tokens=NEW)) for name in order]


def assert_own_answers(
    driven: Driven, asked: list[tuple[str, GenerationHandle]], versions: dict[str, tuple[Any, Any]]
) -> None:
    for name, handle in asked:
        handle.answer(0)
        drawn = driven.drawn[handle, 0]
        count_ties(versions[name][1], drawn, ends=driven.engine._ends, limit=NEW)


def test_in_all_orders_each_gets_its_own_answer(
    driven: Callable[..., Driven], versions: dict[str, tuple[Any, Any]]
) -> None:
    one = driven(rows=4, chunk_tokens=16)
    asked = ask_all(one, versions, NAMES)
    one.finish()
    assert_own_answers(one, asked, versions)
    own = {name: one.drawn[handle, 0].ids for name, handle in asked}
    assert len({tuple(ids) for ids in own.values()}) == 4
    for order in itertools.permutations(NAMES):
        one.engine._blocks.forget()
        for known in (False, True):
            asked = ask_all(one, versions, order)
            one.finish()
            assert {name: one.drawn[handle, 0].ids for name, handle in asked} == own
            assert [handle.answer(0).cached_tokens > 0 for _, handle in asked] == [known] * 4


def test_one_after_the_other_each_finds_its_own_beginning_alone(
    driven: Callable[..., Driven], versions: dict[str, tuple[Any, Any]]
) -> None:
    one = driven(rows=4)
    for known in (False, True):
        for name in NAMES:
            asked = ask_all(one, versions, [name])
            one.finish()
            assert_own_answers(one, asked, versions)
            answer = asked[0][1].answer(0)
            whole = (answer.prompt_tokens - 1) // 16 * 16
            assert answer.cached_tokens == (whole if known else 0)


def test_a_prompt_that_is_still_being_read_is_shared_as_far_as_it_is(
    driven: Callable[..., Driven], versions: dict[str, tuple[Any, Any]]
) -> None:
    one = driven(rows=4, chunk_tokens=16)
    first = ask_all(one, versions, ["low"])
    one.step()
    one.step()
    second = ask_all(one, versions, ["low", "high"])
    one.finish()
    assert_own_answers(one, first + second, versions)
    assert [handle.answer(0).cached_tokens for _, handle in first + second] == [0, 32, 0]


def test_an_answer_s_own_tokens_are_kept_for_the_next_turn(driven: Callable[..., Driven]) -> None:
    one = driven(rows=2)
    handle = one.ask(None, PROMPT, max_new_tokens=40)
    one.finish()
    drawn = one.drawn[handle, 0]
    tokens = drawn.prompt + drawn.ids
    lease = one.engine._blocks.lease(handle.digest, [*tokens, 5], len(tokens) + 1)
    assert lease is not None
    assert lease.cached == (len(tokens) - 1) // 16 * 16 > len(drawn.prompt)


def test_without_the_cache_answers_are_the_same(
    driven: Callable[..., Driven], versions: dict[str, tuple[Any, Any]]
) -> None:
    one = driven(rows=4, prefix_cache=False)
    for _ in range(2):
        asked = ask_all(one, versions, NAMES)
        one.finish()
        assert_own_answers(one, asked, versions)
        assert [handle.answer(0).cached_tokens for _, handle in asked] == [0, 0, 0, 0]


def test_a_pool_that_is_nearly_full_gives_nobody_another_s_tokens(
    driven: Callable[..., Driven], versions: dict[str, tuple[Any, Any]]
) -> None:
    """Room for two at once: each time somebody's kept blocks are taken for another."""
    one = driven(rows=4, chunk_tokens=16, kv_tokens=192)
    for turn in range(6):
        asked = ask_all(one, versions, [NAMES[(turn * 3 + place) % 4] for place in range(4)])
        one.finish()
        assert_own_answers(one, asked, versions)
    one.assert_nothing_is_held()


def test_a_new_version_never_gets_the_old_one_s_keys_and_values(
    driven: Callable[..., Driven], tiny: Path, tmp_path: Path
) -> None:
    one = driven()
    answers = {}
    for version in (1, 2, 1, 2):
        folder = tmp_path / f"v{version}" / "plurals"
        known = folder.is_dir()
        if not known:
            truth = make_artifact(folder, tiny, "generation", seed=version)
            answers[version] = (read_artifact(folder), truth)
        artifact, truth = answers[version]
        handle = one.ask(artifact, PROMPT, max_new_tokens=NEW)
        one.finish()
        count_ties(truth, one.drawn[handle, 0], ends=one.engine._ends, limit=NEW)
        assert handle.answer(0).digest == artifact.digest
        assert (handle.answer(0).cached_tokens > 0) == known


def test_a_version_that_was_unloaded_and_came_back_finds_its_prompt_again(
    driven: Callable[..., Driven], versions: dict[str, tuple[Any, Any]]
) -> None:
    one = driven()
    for name in ("low", "high", "low"):
        asked = ask_all(one, versions, [name])
        one.finish()
        assert_own_answers(one, asked, versions)
        artifact = versions[name][0]
        one.engine.pool.unload(artifact.digest)
    assert asked[0][1].answer(0).cached_tokens > 0


@pytest.mark.parametrize("name", ["labels", "number"])
def test_labels_and_numbers_use_the_cache_too(
    driven: Callable[..., Driven], made: dict[str, Any], name: str
) -> None:
    one = driven()
    told = []
    for _ in range(2):
        (answer,) = one.answers([one.ask(made[name].artifact, PROMPT)])
        told.append((answer.cached_tokens > 0, list((answer.probabilities or {}).values())))
        told[-1][1].append(answer.value or 0.0)
    assert [known for known, _ in told] == [False, True]
    assert told[1][1] == pytest.approx(told[0][1], rel=1e-4)


@pytest.mark.slow
def test_many_threads_and_orders_for_a_while(
    base: Base, versions: dict[str, tuple[Any, Any]]
) -> None:
    engine = Engine(base)
    texts = {
        name: engine.run([work_for(artifact, PROMPT, max_new_tokens=NEW)])[0].text
        for name, (artifact, _) in versions.items()
    }
    wrong: list[str] = []

    def ask(order: Sequence[str]) -> None:
        for name in order * 20:
            work = work_for(versions[name][0], PROMPT, max_new_tokens=NEW)
            if engine.run([work])[0].text != texts[name]:
                wrong.append(name)

    threads = [
        threading.Thread(target=ask, args=(order,)) for order in itertools.permutations(NAMES)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert wrong == []

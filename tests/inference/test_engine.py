"""Answers come back in order, each from its own adapter, whatever stood beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from driving import Driven
from trunkline.adapters.artifact import Artifact, read_artifact
from trunkline.errors import BaseMismatchError, DataError, UsageError
from trunkline.inference.engine import Engine
from trunkline.inference.request import Answer, Request, ResolvedRequest
from workbench import LABELS, make_artifact

Artifacts = dict[str, Artifact]
KINDS = ("classification", "regression", "generation")


def work(artifacts: Artifacts, kind: str, text: str, **asked: Any) -> ResolvedRequest:
    """A request for the artifact of a task; ``base`` is the bare base."""
    if kind == "base":
        return ResolvedRequest(Request(None, text, **asked))
    return ResolvedRequest(Request(kind, text, **asked), artifacts[kind], f"toy/{kind}@1")


def figures(answer: Answer) -> Any:
    """What an answer says, comparable."""
    if answer.probabilities is not None:
        return pytest.approx(list(answer.probabilities.values()), abs=1e-5)
    return pytest.approx(answer.value, rel=1e-4) if answer.value is not None else answer.text


def plain(answer: Answer) -> Any:
    if answer.probabilities is not None:
        return list(answer.probabilities.values())
    return answer.value if answer.value is not None else answer.text


def test_nothing_asked_nothing_answered(engine: Engine) -> None:
    assert engine.run([]) == []


def test_mixed_requests_come_back_in_order(engine: Engine, artifacts: Artifacts) -> None:
    asked = [
        work(artifacts, kind, text)
        for text in ("a hen", "the young carp and an old otter", "x")
        for kind in ("generation", "base", "classification", "regression")
    ]
    together = engine.run(asked)
    assert [answer.adapter for answer in together] == [one.name for one in asked]
    for one, answer in zip(asked, together, strict=True):
        assert plain(answer) == figures(engine.run([one])[0])


def test_adapters_differ_from_the_base_and_from_one_another(
    engine: Engine, artifacts: Artifacts, tiny: Path, tmp_path: Path
) -> None:
    make_artifact(tmp_path / "other", tiny, "generation", seed=77)
    other = read_artifact(tmp_path / "other")
    asked = [
        work(artifacts, "base", "goat"),
        work(artifacts, "generation", "goat"),
        ResolvedRequest(Request("other", "goat"), other, "toy/other@1"),
    ]
    texts = [answer.text for answer in engine.run(asked)]
    assert len(set(texts)) == 3


def test_classification_gives_labels_with_probabilities(
    engine: Engine, artifacts: Artifacts
) -> None:
    answer = engine.run([work(artifacts, "classification", "a hen")])[0]
    assert answer.task == "classification"
    assert answer.probabilities is not None
    assert list(answer.probabilities) == LABELS
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert answer.confidence == max(answer.probabilities.values())


def test_regression_gives_the_number_in_its_unit(engine: Engine, artifacts: Artifacts) -> None:
    answer = engine.run([work(artifacts, "regression", "3 kg")])[0]
    assert answer.unit == "EUR"
    assert answer.value is not None
    assert answer.value > 0


def test_adapter_s_own_limit_of_new_tokens_counts(engine: Engine, artifacts: Artifacts) -> None:
    answer = engine.run([work(artifacts, "generation", "goat")])[0]
    assert answer.new_tokens <= 8


def test_adapter_s_own_template_is_used(engine: Engine, artifacts: Artifacts) -> None:
    loud, low = (work(artifacts, "regression", text) for text in ("THREE KG", "three kg"))
    one, other = engine.run([loud, low])
    assert one.value == pytest.approx(other.value, rel=1e-5)


def test_digest_of_the_version_is_named(engine: Engine, artifacts: Artifacts) -> None:
    answers = engine.run([work(artifacts, kind, "x") for kind in ("regression", "base")])
    assert [one.digest for one in answers] == [artifacts["regression"].digest, engine.base.digest]


def test_same_requests_in_other_batches_give_the_same(engine: Engine, artifacts: Artifacts) -> None:
    asked = [
        work(artifacts, kind, "word " * length)
        for length in (1, 9, 4, 20, 2)
        for kind in ("classification", "base")
    ]
    together = engine.run(asked)
    for one, answer in zip(asked, together, strict=True):
        assert plain(engine.run([one])[0]) == figures(answer)


def test_done_items_are_told(engine: Engine, artifacts: Artifacts) -> None:
    told: list[int] = []
    engine.run([work(artifacts, "regression", "x")] * 5, on_done=told.append)
    assert sum(told) == 5


# ------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("kind", [*KINDS, "base"])
@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_empty_text_is_told(engine: Engine, artifacts: Artifacts, kind: str, text: str) -> None:
    with pytest.raises(DataError, match="empty") as caught:
        engine.run([work(artifacts, kind, text)])
    assert caught.value.hint


@pytest.mark.parametrize("kind", [*KINDS, "base"])
def test_text_beyond_the_context_is_told(engine: Engine, artifacts: Artifacts, kind: str) -> None:
    with pytest.raises(DataError, match="context of 256") as caught:
        engine.run([work(artifacts, kind, "abcdefgh " * 100)])
    assert "'abcdefgh" in caught.value.message
    assert len(caught.value.message) < 200


def test_bad_text_among_many_is_told_by_its_place(engine: Engine, artifacts: Artifacts) -> None:
    asked = [work(artifacts, "regression", text) for text in ("one", "two", " ", "four")]
    with pytest.raises(DataError, match="Text 3 of 4"):
        engine.run(asked)


def test_bad_text_among_many_stops_all_before_anything_is_computed(
    engine: Engine, artifacts: Artifacts
) -> None:
    told: list[int] = []
    asked = [work(artifacts, "regression", text) for text in ("one", "")]
    with pytest.raises(DataError):
        engine.run(asked, on_done=told.append)
    assert told == []


def test_more_new_tokens_than_the_context_holds_are_told(
    engine: Engine, artifacts: Artifacts
) -> None:
    with pytest.raises(DataError, match="and 400 new ones"):
        engine.run([work(artifacts, "base", "goat", max_new_tokens=400)])


def test_adapter_of_another_base_is_refused(engine: Engine, tiny: Path, tmp_path: Path) -> None:
    make_artifact(tmp_path / "foreign", tiny, base_digest="0" * 64)
    with pytest.raises(BaseMismatchError, match="trained on tiny"):
        engine.run([ResolvedRequest(Request("x", "hen"), read_artifact(tmp_path / "foreign"))])


def test_talk_with_a_classifier_is_refused(engine: Engine, artifacts: Artifacts) -> None:
    talk = Request("x", messages=({"role": "user", "content": "hello"},))
    with pytest.raises(UsageError, match="can't hold a talk"):
        engine.run([ResolvedRequest(talk, artifacts["classification"], "toy/animals@1")])


TALK = (
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "a goat"},
)


def test_adapter_s_template_is_applied_to_the_last_message_of_a_talk(
    engine: Engine, artifacts: Artifacts
) -> None:
    filled = (*TALK[:2], {"role": "user", "content": "Plural: a goat"})
    ours = engine.submit(
        ResolvedRequest(Request("x", messages=TALK, max_new_tokens=4), artifacts["generation"])
    )
    base = engine.submit(ResolvedRequest(Request(None, messages=filled, max_new_tokens=4)))
    assert ours.prompt_tokens == base.prompt_tokens > 20
    assert ours.answer().text != base.answer().text


def test_a_talk_of_one_message_is_the_text_itself(engine: Engine, artifacts: Artifacts) -> None:
    talk = Request("x", messages=TALK[2:], max_new_tokens=4)
    text = work(artifacts, "generation", "a goat", max_new_tokens=4)
    one, other = engine.run([ResolvedRequest(talk, artifacts["generation"]), text])
    assert (one.text, one.prompt_tokens) == (other.text, other.prompt_tokens)


def test_talk_that_does_not_end_with_the_user_is_refused(
    engine: Engine, artifacts: Artifacts
) -> None:
    talk = Request("x", messages=TALK[:2])
    with pytest.raises(UsageError, match="'assistant'") as caught:
        engine.run([ResolvedRequest(talk, artifacts["generation"])])
    assert caught.value.hint


def test_raw_prompt_is_read_as_it_is(engine: Engine) -> None:
    text = " spaces kept "
    handle = engine.submit(ResolvedRequest(Request(None, text, raw=True, max_new_tokens=1)))
    ids = engine.base.tokenizer(text, add_special_tokens=False).input_ids
    assert handle.prompt_tokens == len(ids)


# --------------------------------------------------------------------------------------- steps


def test_long_prompt_does_not_stall_an_answer(
    driven: Callable[..., Driven], artifacts: Artifacts
) -> None:
    one = driven(chunk_tokens=8)
    one.engine._ends = frozenset()
    writing = one.ask(None, "goat", max_new_tokens=60)
    one.step()
    long = one.ask(artifacts["generation"], "abcdefgh " * 16, max_new_tokens=2)
    steps = 0
    while not one.ids(long):
        before = len(one.ids(writing))
        one.step()
        steps += 1
        assert len(one.ids(writing)) == before + 1
    assert steps == -(-long.prompt_tokens // 8) > 10


def test_long_prompts_of_one_adapter_do_not_stall_a_short_one_of_another(
    driven: Callable[..., Driven], artifacts: Artifacts
) -> None:
    one = driven(chunk_tokens=16, kv_tokens=8192)
    for number in range(8):
        one.ask(artifacts["generation"], f"{number} " + "abcdefgh " * 16, max_new_tokens=2)
    one.step()
    short = one.ask(artifacts["classification"], "a hen")
    steps = 0
    while not short.ended:
        one.step()
        steps += 1
    assert steps <= 2 + -(-short.prompt_tokens // 16)


def test_time_in_the_queue_ends_with_the_first_step_not_with_the_place(
    driven: Callable[..., Driven], artifacts: Artifacts
) -> None:
    one = driven(chunk_tokens=8)
    first = one.ask(artifacts["generation"], "abcdefgh " * 16, max_new_tokens=1)
    second = one.ask(artifacts["generation"], "abcdefgh " * 16, max_new_tokens=1)
    one.step()
    assert one.engine.state().running == 2
    assert [asked.handle for asked in one.engine._open if asked.begun is not None] == [first]
    one.finish()
    assert second.stats is not None
    assert second.stats.queue_seconds > 0


def test_requests_join_while_others_are_running(driven: Callable[..., Driven]) -> None:
    one = driven(rows=4)
    one.engine._ends = frozenset()
    handles = []
    for count in range(1, 5):
        handles.append(one.ask(None, "goat", max_new_tokens=50))
        one.step()
        assert one.engine.state().running == count
    assert [len(one.ids(handle)) for handle in handles] == [4, 3, 2, 1]


def test_flood_for_one_adapter_does_not_keep_another_waiting(
    driven: Callable[..., Driven], made: dict[str, Any]
) -> None:
    one = driven(rows=4, queue=2000)
    one.engine._ends = frozenset()
    flood = [one.ask(made["low"].artifact, "goat", max_new_tokens=3) for _ in range(1000)]
    for _ in range(10):
        one.step()
    few = [one.ask(made["high"].artifact, "goat", max_new_tokens=3) for _ in range(5)]
    done = sum(handle.ended for handle in flood)
    one.finish(*few)
    assert sum(handle.ended for handle in flood) - done <= 12


def test_memory_for_keys_and_values_bounds_what_runs(driven: Callable[..., Driven]) -> None:
    one = driven(rows=8, kv_tokens=128)
    one.engine._ends = frozenset()
    handles = [one.ask(None, "goat", max_new_tokens=40) for _ in range(6)]
    most = 0
    while not all(handle.ended for handle in handles):
        one.step()
        state = one.engine.state()
        assert state.kv_tokens_used <= state.kv_tokens == 128
        most = max(most, state.running)
    assert 2 <= most <= 3
    assert all(handle.answer(0).new_tokens == 40 for handle in handles)


def test_text_that_the_memory_never_holds_is_told(driven: Callable[..., Driven]) -> None:
    one = driven(kv_tokens=64)
    with pytest.raises(DataError, match="64 tokens") as caught:
        one.ask(None, "goat", max_new_tokens=100)
    assert caught.value.hint


def test_steps_are_counted(driven: Callable[..., Driven]) -> None:
    one = driven()
    one.engine._ends = frozenset()
    one.ask(None, "goat", max_new_tokens=4)
    one.finish()
    assert one.engine.state().steps == 4

"""Answers come back in order, each from its own adapter, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from driving import Clock, MakeDriver
from trunkline.adapters.artifact import Artifact, read_artifact
from trunkline.errors import BaseMismatchError, DataError, UsageError
from trunkline.inference.engine import Engine
from trunkline.inference.request import Answer, Request, ResolvedRequest
from workbench import LABELS, make_artifact

Artifacts = dict[str, Artifact]
KINDS = ("classification", "regression", "generation")


def make_request(artifacts: Artifacts, kind: str, text: str, **options: Any) -> ResolvedRequest:
    """A request for the artifact of a task; ``base`` is the bare base."""
    if kind == "base":
        return ResolvedRequest(Request(None, text, **options))
    return ResolvedRequest(Request(kind, text, **options), artifacts[kind], f"toy/{kind}@1")


def approx(answer: Answer) -> Any:
    """The content of an answer, for comparison with :func:`content`."""
    if answer.probabilities is not None:
        return pytest.approx(list(answer.probabilities.values()), abs=1e-5)
    return pytest.approx(answer.value, rel=1e-4) if answer.value is not None else answer.text


def content(answer: Answer) -> Any:
    if answer.probabilities is not None:
        return list(answer.probabilities.values())
    return answer.value if answer.value is not None else answer.text


def test_no_requests_give_no_answers(engine: Engine) -> None:
    assert engine.run([]) == []


def test_mixed_requests_come_back_in_order(engine: Engine, artifacts: Artifacts) -> None:
    requests = [
        make_request(artifacts, kind, text)
        for text in ("a hen", "the young carp and an old otter", "x")
        for kind in ("generation", "base", "classification", "regression")
    ]
    together = engine.run(requests)
    assert [answer.adapter for answer in together] == [one.name for one in requests]
    for one, answer in zip(requests, together, strict=True):
        assert content(answer) == approx(engine.run([one])[0])


def test_adapters_differ_from_the_base_and_from_one_another(
    engine: Engine, artifacts: Artifacts, tiny: Path, tmp_path: Path
) -> None:
    make_artifact(tmp_path / "other", tiny, "generation", seed=77)
    other = read_artifact(tmp_path / "other")
    requests = [
        make_request(artifacts, "base", "goat"),
        make_request(artifacts, "generation", "goat"),
        ResolvedRequest(Request("other", "goat"), other, "toy/other@1"),
    ]
    texts = [answer.text for answer in engine.run(requests)]
    assert len(set(texts)) == 3


def test_classification_gives_labels_with_probabilities(
    engine: Engine, artifacts: Artifacts
) -> None:
    answer = engine.run([make_request(artifacts, "classification", "a hen")])[0]
    assert answer.task == "classification"
    assert answer.probabilities is not None
    assert list(answer.probabilities) == LABELS
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert answer.confidence == max(answer.probabilities.values())


def test_regression_gives_the_number_in_its_unit(engine: Engine, artifacts: Artifacts) -> None:
    answer = engine.run([make_request(artifacts, "regression", "3 kg")])[0]
    assert answer.unit == "EUR"
    assert answer.value is not None
    assert answer.value > 0


def test_adapter_s_own_limit_of_new_tokens_counts(engine: Engine, artifacts: Artifacts) -> None:
    answer = engine.run([make_request(artifacts, "generation", "goat")])[0]
    assert answer.new_tokens <= 8


def test_adapter_s_own_template_is_used(engine: Engine, artifacts: Artifacts) -> None:
    loud, low = (make_request(artifacts, "regression", text) for text in ("THREE KG", "three kg"))
    one, other = engine.run([loud, low])
    assert one.value == pytest.approx(other.value, rel=1e-5)


def test_digest_of_the_version_is_named(engine: Engine, artifacts: Artifacts) -> None:
    answers = engine.run([make_request(artifacts, kind, "x") for kind in ("regression", "base")])
    assert [one.digest for one in answers] == [artifacts["regression"].digest, engine.base.digest]


def test_same_requests_in_other_batches_give_the_same(engine: Engine, artifacts: Artifacts) -> None:
    requests = [
        make_request(artifacts, kind, "text " * length)
        for length in (1, 9, 4, 20, 2)
        for kind in ("classification", "base")
    ]
    together = engine.run(requests)
    for one, answer in zip(requests, together, strict=True):
        assert content(engine.run([one])[0]) == approx(answer)


def test_done_requests_are_counted(engine: Engine, artifacts: Artifacts) -> None:
    done: list[int] = []
    engine.run([make_request(artifacts, "regression", "x")] * 5, on_done=done.append)
    assert sum(done) == 5


# ------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("kind", [*KINDS, "base"])
@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_empty_text_is_refused(engine: Engine, artifacts: Artifacts, kind: str, text: str) -> None:
    with pytest.raises(DataError, match="empty") as caught:
        engine.run([make_request(artifacts, kind, text)])
    assert caught.value.hint


@pytest.mark.parametrize("kind", [*KINDS, "base"])
def test_text_beyond_the_context_is_refused(
    engine: Engine, artifacts: Artifacts, kind: str
) -> None:
    with pytest.raises(DataError, match="context of 256") as caught:
        engine.run([make_request(artifacts, kind, "abcdefgh " * 100)])
    assert "'abcdefgh" in caught.value.message
    assert len(caught.value.message) < 200


def test_invalid_text_among_many_is_named_by_its_position(
    engine: Engine, artifacts: Artifacts
) -> None:
    requests = [make_request(artifacts, "regression", text) for text in ("one", "two", " ", "four")]
    with pytest.raises(DataError, match="Text 3 of 4"):
        engine.run(requests)


def test_invalid_text_among_many_stops_all_before_anything_is_computed(
    engine: Engine, artifacts: Artifacts
) -> None:
    done: list[int] = []
    requests = [make_request(artifacts, "regression", text) for text in ("one", "")]
    with pytest.raises(DataError):
        engine.run(requests, on_done=done.append)
    assert done == []


def test_answer_ends_where_the_context_does(engine: Engine, artifacts: Artifacts) -> None:
    (answer,) = engine.run([make_request(artifacts, "base", "goat", max_new_tokens=10**6)])
    context = engine.base.info.context
    assert answer.prompt_tokens + answer.new_tokens <= context
    assert answer.finish == "stop" or answer.prompt_tokens + answer.new_tokens == context


def test_adapter_of_another_base_is_refused(engine: Engine, tiny: Path, tmp_path: Path) -> None:
    make_artifact(tmp_path / "foreign", tiny, base_digest="0" * 64)
    with pytest.raises(BaseMismatchError, match="trained on tiny"):
        engine.run([ResolvedRequest(Request("x", "hen"), read_artifact(tmp_path / "foreign"))])


def test_conversation_with_a_classifier_is_refused(engine: Engine, artifacts: Artifacts) -> None:
    conversation = Request("x", messages=({"role": "user", "content": "hello"},))
    with pytest.raises(UsageError, match="can't continue a conversation"):
        engine.run([ResolvedRequest(conversation, artifacts["classification"], "toy/animals@1")])


CONVERSATION = (
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "a goat"},
)


def test_adapter_s_template_is_applied_to_the_last_message_of_a_conversation(
    engine: Engine, artifacts: Artifacts
) -> None:
    filled = (*CONVERSATION[:2], {"role": "user", "content": "Plural: a goat"})
    ours = engine.submit(
        ResolvedRequest(
            Request("x", messages=CONVERSATION, max_new_tokens=4), artifacts["generation"]
        )
    )
    base = engine.submit(ResolvedRequest(Request(None, messages=filled, max_new_tokens=4)))
    assert ours.prompt_tokens == base.prompt_tokens > 20
    assert ours.answer().text != base.answer().text


def test_a_conversation_of_one_message_equals_its_text(
    engine: Engine, artifacts: Artifacts
) -> None:
    conversation = Request("x", messages=CONVERSATION[2:], max_new_tokens=4)
    text = make_request(artifacts, "generation", "a goat", max_new_tokens=4)
    one, other = engine.run([ResolvedRequest(conversation, artifacts["generation"]), text])
    assert (one.text, one.prompt_tokens) == (other.text, other.prompt_tokens)


def test_conversation_that_does_not_end_with_the_user_is_refused(
    engine: Engine, artifacts: Artifacts
) -> None:
    conversation = Request("x", messages=CONVERSATION[:2])
    with pytest.raises(UsageError, match="'assistant'") as caught:
        engine.run([ResolvedRequest(conversation, artifacts["generation"])])
    assert caught.value.hint


def test_raw_prompt_is_not_changed(engine: Engine) -> None:
    text = " spaces kept "
    handle = engine.submit(ResolvedRequest(Request(None, text, raw=True, max_new_tokens=1)))
    ids = engine.base.tokenizer(text, add_special_tokens=False).input_ids
    assert handle.prompt_tokens == len(ids)


# --------------------------------------------------------------------------------------- steps


def test_long_prompt_does_not_stall_an_answer(
    make_driver: MakeDriver, artifacts: Artifacts
) -> None:
    driver = make_driver(chunk_tokens=8, end_ids=())
    writing = driver.submit(None, "goat", max_new_tokens=60)
    driver.step()
    long = driver.submit(artifacts["generation"], "abcdefgh " * 16, max_new_tokens=2)
    steps = 0
    while not driver.ids(long):
        before = len(driver.ids(writing))
        driver.step()
        steps += 1
        assert len(driver.ids(writing)) == before + 1
    assert steps == -(-long.prompt_tokens // 8) > 10


def test_long_prompts_of_one_adapter_do_not_stall_a_short_one_of_another(
    make_driver: MakeDriver, artifacts: Artifacts
) -> None:
    driver = make_driver(chunk_tokens=16, kv_tokens=8192)
    for number in range(8):
        driver.submit(artifacts["generation"], f"{number} " + "abcdefgh " * 16, max_new_tokens=2)
    driver.step()
    short = driver.submit(artifacts["classification"], "a hen")
    steps = 0
    while not short.ended:
        driver.step()
        steps += 1
    assert steps <= 2 + -(-short.prompt_tokens // 16)


def test_time_in_the_queue_ends_with_the_first_step_not_with_the_row(
    make_driver: MakeDriver, artifacts: Artifacts
) -> None:
    clock = Clock()
    driver = make_driver(chunk_tokens=8, clock=clock)
    first = driver.submit(artifacts["generation"], "abcdefgh " * 16, max_new_tokens=1)
    second = driver.submit(artifacts["generation"], "abcdefgh " * 16, max_new_tokens=1)
    driver.step()
    assert driver.engine.state().running == 2
    clock.advance(5)
    driver.finish()
    assert first.stats is not None
    assert second.stats is not None
    assert (first.stats.queue_seconds, second.stats.queue_seconds) == (0, 5)


def test_requests_join_while_others_are_running(make_driver: MakeDriver) -> None:
    driver = make_driver(rows=4, end_ids=())
    handles = []
    for count in range(1, 5):
        handles.append(driver.submit(None, "goat", max_new_tokens=50))
        driver.step()
        assert driver.engine.state().running == count
    assert [len(driver.ids(handle)) for handle in handles] == [4, 3, 2, 1]


def test_flood_for_one_adapter_does_not_keep_another_waiting(
    make_driver: MakeDriver, adapters: dict[str, Any]
) -> None:
    driver = make_driver(rows=4, queue=2000, end_ids=())
    flood = [driver.submit(adapters["low"].artifact, "goat", max_new_tokens=3) for _ in range(1000)]
    for _ in range(10):
        driver.step()
    others = [driver.submit(adapters["high"].artifact, "goat", max_new_tokens=3) for _ in range(5)]
    done = sum(handle.ended for handle in flood)
    driver.finish(*others)
    assert sum(handle.ended for handle in flood) - done <= 12


def test_kv_cache_limits_what_runs(make_driver: MakeDriver) -> None:
    driver = make_driver(rows=8, kv_tokens=128, end_ids=())
    handles = [driver.submit(None, "goat", max_new_tokens=40) for _ in range(6)]
    most = 0
    while not all(handle.ended for handle in handles):
        driver.step()
        state = driver.engine.state()
        assert state.kv_tokens_used <= state.kv_tokens == 128
        most = max(most, state.running)
    assert 2 <= most <= 3
    assert all(handle.answer(0).new_tokens == 40 for handle in handles)


def test_text_beyond_the_kv_cache_is_refused(make_driver: MakeDriver) -> None:
    driver = make_driver(kv_tokens=64)
    with pytest.raises(DataError, match="64 tokens") as caught:
        driver.submit(None, "goat " * 80, max_new_tokens=100)
    assert caught.value.hint


def test_steps_are_counted(make_driver: MakeDriver) -> None:
    driver = make_driver(end_ids=())
    driver.submit(None, "goat", max_new_tokens=4)
    driver.finish()
    assert driver.engine.state().steps == 4

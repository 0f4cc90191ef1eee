"""Answers come back in order, each from its own adapter, whatever stood beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trunkline.adapters.artifact import Artifact, read_artifact
from trunkline.errors import BaseMismatchError, DataError, UsageError
from trunkline.inference.engine import Engine, Work
from trunkline.inference.request import Answer, Request
from workbench import LABELS, make_artifact

Artifacts = dict[str, Artifact]
KINDS = ("classification", "regression", "generation")


def work(artifacts: Artifacts, kind: str, text: str, **asked: Any) -> Work:
    """A request for the artifact of a task; ``base`` is the bare base."""
    if kind == "base":
        return Work(Request(None, text, **asked))
    return Work(Request(kind, text, **asked), artifacts[kind], f"toy/{kind}@1")


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
        Work(Request("other", "goat"), other, "toy/other@1"),
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


@pytest.mark.parametrize(("last", "finish"), [("end", "stop"), ("goat", "length")])
def test_generation_says_why_it_ended(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, last: str, finish: str
) -> None:
    ids = [40, 41, engine.base.tokenizer.eos_token_id if last == "end" else 42]
    monkeypatch.setattr("trunkline.inference.engine.new_tokens", lambda *_: [ids])
    answer = engine.run([Work(Request(None, "goat"))])[0]
    assert (answer.finish, answer.new_tokens) == (finish, 3)


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
    one = engine.run(asked, batch_size=1)
    other = engine.run(asked, batch_size=7)
    for first, second in zip(one, other, strict=True):
        assert plain(first) == figures(second)


def test_done_items_are_told(engine: Engine, artifacts: Artifacts) -> None:
    told: list[int] = []
    engine.run([work(artifacts, "regression", "x")] * 5, batch_size=2, on_done=told.append)
    assert told == [2, 2, 1]


# ------------------------------------------------------------------------------------- sampling


def test_sampled_answer_depends_on_its_seed_alone(engine: Engine, artifacts: Artifacts) -> None:
    asked = work(artifacts, "base", "goat", temperature=1.5, seed=4, max_new_tokens=12)
    alone = engine.run([asked])[0].text
    torch.manual_seed(123)
    others = [work(artifacts, kind, "sheep", temperature=1.0, seed=9) for kind in ("base",) * 3]
    among = engine.run([*others, asked, work(artifacts, "generation", "cow")])[3].text
    assert among == alone


def test_other_seeds_give_other_texts(engine: Engine, artifacts: Artifacts) -> None:
    asked = [
        work(artifacts, "base", "goat", temperature=1.5, seed=seed, max_new_tokens=12)
        for seed in range(4)
    ]
    assert len({answer.text for answer in engine.run(asked)}) > 1


def test_sampling_leaves_the_callers_random_numbers_alone(
    engine: Engine, artifacts: Artifacts
) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    engine.run([work(artifacts, "base", "goat", temperature=1.0, max_new_tokens=2)])
    assert torch.equal(torch.rand(3), expected)


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
        engine.run([Work(Request("x", "hen"), read_artifact(tmp_path / "foreign"))])


def test_talk_with_a_classifier_is_refused(engine: Engine, artifacts: Artifacts) -> None:
    talk = Request("x", messages=({"role": "user", "content": "hello"},))
    with pytest.raises(UsageError, match="can't hold a talk"):
        engine.run([Work(talk, artifacts["classification"], "toy/animals@1")])


def test_talk_is_continued(engine: Engine, artifacts: Artifacts) -> None:
    messages = (
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "a goat"},
    )
    answers = engine.run(
        [Work(Request(None, messages=messages, max_new_tokens=4)),
         Work(Request("x", messages=messages, max_new_tokens=4), artifacts["generation"])]
    )  # fmt: skip
    assert answers[0].prompt_tokens == answers[1].prompt_tokens > 10


def test_base_is_bare_after_a_failure(
    engine: Engine, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = work(artifacts, "base", "goat")
    before = engine.run([asked])[0].text

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run([work(artifacts, "generation", "goat")], on_done=fail)
    assert engine.run([asked])[0].text == before

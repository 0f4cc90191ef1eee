"""Log probabilities of a prompt's tokens, compared with transformers and PEFT."""

from __future__ import annotations

from typing import Any

import pytest

from driving import EngineDriver, MakeDriver, reference_logits
from trunkline.errors import DataError
from trunkline.inference.request import Answer

TEXT = "organic whole milk, one gallon, from the dairy department ✓: what is it? 🐐"
HEAT: dict[str, Any] = {"temperature": 1.3, "seed": 4}


def submit(driver: EngineDriver, artifact: Any, text: str = TEXT, **options: Any) -> Any:
    """Submit a request that is echoed."""
    options = {"max_new_tokens": 0, "logprobs": 4, "echo": True, **options}
    return driver.submit(artifact, text, **options)


def assert_scores_are_those_of(model: Any, prompt: list[int], answer: Answer, count: int) -> None:
    scores = answer.prompt_scores
    assert [score.id for score in scores] == prompt
    assert (scores[0].logprob, scores[0].top) == (None, ())
    truth = reference_logits(model, prompt[:1], prompt[1:]).log_softmax(-1)
    for score, row in zip(scores[1:], truth, strict=True):
        assert score.logprob == pytest.approx(float(row[score.id]), abs=1e-4)
        best = row.topk(count).values.tolist()
        assert [one.logprob for one in score.top] == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("name", [None, "low", "high"])
@pytest.mark.parametrize("chunk_tokens", [7, 256])
@pytest.mark.parametrize("new_tokens", [0, 3])
def test_scores_are_those_of_the_reference(
    make_driver: MakeDriver,
    adapters: dict[str, Any],
    truth: Any,
    name: str | None,
    chunk_tokens: int,
    new_tokens: int,
) -> None:
    driver = make_driver(rows=4, chunk_tokens=chunk_tokens)
    artifact = adapters[name].artifact if name else None
    for other in (None, adapters["low"].artifact):
        driver.submit(other, TEXT[:40], max_new_tokens=8, **HEAT)
    handle = submit(driver, artifact, max_new_tokens=new_tokens)
    (answer,) = driver.answers([handle])
    model = adapters[name].truth if name else truth
    assert_scores_are_those_of(model, handle.state.prompt, answer, 4)
    (choice,) = answer.choices
    assert (len(choice.scores), choice.new_tokens) == (answer.new_tokens, answer.new_tokens)
    assert answer.new_tokens <= new_tokens


def test_cached_prompt_is_scored_again(make_driver: MakeDriver, truth: Any) -> None:
    driver = make_driver(chunk_tokens=16)
    driver.answers([driver.submit(None, TEXT, max_new_tokens=1)])
    handles = [submit(driver, None), driver.submit(None, TEXT, max_new_tokens=1)]
    answer, plain = driver.answers(handles)
    assert plain.cached_tokens > 0
    assert answer.cached_tokens == 0
    assert_scores_are_those_of(truth, handles[0].state.prompt, answer, 4)


def test_scored_prompt_is_cached_for_others(make_driver: MakeDriver) -> None:
    driver = make_driver()
    driver.answers([submit(driver, None)])
    (plain,) = driver.answers([driver.submit(None, TEXT, max_new_tokens=1)])
    assert plain.cached_tokens > 0
    driver.assert_nothing_is_held()


def test_answer_is_the_same_with_and_without_an_echo(make_driver: MakeDriver) -> None:
    driver = make_driver()
    options: dict[str, Any] = {"max_new_tokens": 8, "n": 3, "logprobs": 2, **HEAT}
    echoed, plain = driver.answers([
        submit(driver, None, **options), driver.submit(None, TEXT, **options),
    ])  # fmt: skip
    assert [choice.text for choice in echoed.choices] == [choice.text for choice in plain.choices]
    assert plain.prompt_scores == ()


def test_several_choices_of_no_tokens_are_empty(make_driver: MakeDriver) -> None:
    driver = make_driver()
    handle = submit(driver, None, n=3)
    (answer,) = driver.answers([handle])
    assert [(one.text, one.finish, one.new_tokens) for one in answer.choices] == [
        ("", "length", 0)
    ] * 3
    assert [chunk.finish for chunk in handle.chunks()] == ["length"] * 3
    driver.assert_nothing_is_held()


def test_likeliest_token_has_exactly_the_greatest_log_probability(
    make_driver: MakeDriver,
) -> None:
    driver = make_driver(end_ids=())
    (first,) = driver.answers([driver.submit(None, "a goat", max_new_tokens=12, logprobs=1)])
    ids = tuple(driver.engine.base.tokenizer.encode("a goat"))
    ids += tuple(score.id for score in first.choices[0].scores)
    handle = submit(driver, None, "", token_ids=ids, logprobs=1)
    (answer,) = driver.answers([handle])
    own = answer.prompt_scores[-12:]
    assert [score.logprob == score.top[0].logprob for score in own] == [True] * 12


@pytest.mark.parametrize("name", [None, "high"])
def test_token_ids_are_the_prompt(
    make_driver: MakeDriver, adapters: dict[str, Any], truth: Any, name: str | None
) -> None:
    driver = make_driver()
    artifact = adapters[name].artifact if name else None
    ids = [1, 5, 300, 2, 0, 77, 200]
    handle = submit(driver, artifact, "", token_ids=tuple(ids))
    (answer,) = driver.answers([handle])
    model = adapters[name].truth if name else truth
    assert_scores_are_those_of(model, ids, answer, 4)


def test_adapter_gets_an_echoed_text_without_its_template(
    make_driver: MakeDriver, artifacts: dict[str, Any]
) -> None:
    driver = make_driver()
    handle = submit(driver, artifacts["generation"], raw=True)
    driver.finish()
    tokenizer = driver.engine.base.tokenizer
    assert handle.state.prompt == tokenizer.encode(TEXT)


def test_prompt_of_one_token_has_one_entry(make_driver: MakeDriver) -> None:
    driver = make_driver()
    (answer,) = driver.answers([submit(driver, None, "", token_ids=(5,))])
    assert [score.logprob for score in answer.prompt_scores] == [None]


def test_offsets_and_bytes_are_those_of_the_text(make_driver: MakeDriver) -> None:
    driver = make_driver(chunk_tokens=5)
    (answer,) = driver.answers([submit(driver, None)])
    assert b"".join(score.raw_bytes for score in answer.prompt_scores) == TEXT.encode()
    for score in answer.prompt_scores:
        if "\ufffd" not in score.token:
            assert TEXT[score.offset :].startswith(score.token)
    assert {TEXT[one.offset] for one in answer.prompt_scores if "\ufffd" in one.token} == {
        "✓",
        "🐐",
    }


@pytest.mark.parametrize("beyond", [-1, 0, 10**30])
def test_id_outside_the_vocabulary_is_refused(make_driver: MakeDriver, beyond: int) -> None:
    driver = make_driver()
    size = len(driver.engine.base.tokenizer)
    bad = size + beyond if beyond >= 0 else beyond
    with pytest.raises(DataError, match=f"vocabulary of {size}") as caught:
        submit(driver, None, "", token_ids=(5, bad))
    assert str(bad) in caught.value.message


def test_prompt_that_fills_the_context_can_be_scored(make_driver: MakeDriver, truth: Any) -> None:
    driver = make_driver(chunk_tokens=64)
    ids = tuple(place * 7 % 200 + 3 for place in range(256))
    handle = submit(driver, None, "", token_ids=ids)
    (answer,) = driver.answers([handle])
    assert_scores_are_those_of(truth, list(ids), answer, 4)
    with pytest.raises(DataError, match="257 tokens"):
        submit(driver, None, "", token_ids=(*ids, 5))

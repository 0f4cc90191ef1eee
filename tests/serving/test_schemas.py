"""How bodies become requests to the engine, and what validation costs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from trunkline.errors import TooLargeError
from trunkline.inference.request import Request
from trunkline.serving.errors import ApiError
from trunkline.serving.responses import ResponsesBody
from trunkline.serving.schemas import ChatBody, CompletionBody, PredictBody, SamplingBody
from trunkline.serving.service import check_size
from trunkline.serving.settings import ServerSettings

INVALID_ITEMS = 10_000
MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatBody:
    return ChatBody.model_validate({"model": "base", "messages": MESSAGES, **fields})


def test_sampling_defaults_are_openais() -> None:
    sampling = chat().sampling(100)
    assert (sampling["temperature"], sampling["top_p"], sampling["n"]) == (1.0, 1.0, 1)


def test_requests_without_a_seed_get_different_ones() -> None:
    assert len({chat().sampling(100)["seed"] for _ in range(5)}) > 1


@pytest.mark.parametrize("seed", [0, -2, -(2**63), 2**64 - 1])
def test_given_seed_is_used(seed: int) -> None:
    assert chat(seed=seed).sampling(None)["seed"] == seed


def test_seed_of_minus_one_is_random() -> None:
    seeds = {chat(seed=-1).sampling(None)["seed"] for _ in range(5)}
    assert len(seeds) > 1
    assert min(seeds) >= 0


def test_float_without_a_fraction_is_an_integer() -> None:
    sampling = chat(max_tokens=256.0, n=2.0, top_k=5.0, seed=7.0).sampling(None)
    assert [type(sampling[name]) for name in ("max_new_tokens", "n", "top_k", "seed")] == [int] * 4


@pytest.mark.parametrize("stop", [None, "", [], [""], ["", ""]])
def test_empty_stop_text_stops_nothing(stop: Any) -> None:
    assert chat(stop=stop).sampling(None)["stop"] == ()


@pytest.mark.parametrize(
    ("body", "prompt"),
    [(ChatBody, {"messages": MESSAGES}), (CompletionBody, {"prompt": "x"}),
     (ResponsesBody, {"input": "x"})],
)  # fmt: skip
def test_ignore_eos_reaches_the_engine(body: type[SamplingBody], prompt: dict[str, Any]) -> None:
    for value in (True, False, None):
        fields = {"model": "base", "ignore_eos": value, **prompt}
        assert body.model_validate(fields).sampling(None)["ignore_eos"] is bool(value)


@pytest.mark.parametrize("top_k", [None, 0, -1])
def test_top_k_is_off(top_k: int | None) -> None:
    assert chat(top_k=top_k).sampling(None)["top_k"] == 0


def test_body_converts_to_an_engine_request() -> None:
    body = chat(stop="x", temperature=0.5, top_p=0.9, top_k=3, n=2, seed=4, max_tokens=5)
    request = Request(None, logprobs=body.requested_logprobs(), **body.sampling(100))
    assert (request.stop, request.top_k, request.n, request.max_new_tokens) == (("x",), 3, 2, 5)


def test_max_completion_tokens_overrides_max_tokens() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).sampling(100)["max_new_tokens"] == 7


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_beyond_the_operators_limit_is_refused_with_the_option(name: str) -> None:
    with pytest.raises(ApiError, match=f"{name} can't be 101; the limit") as caught:
        chat(**{name: 101}).sampling(100)
    assert (caught.value.http_status, caught.value.param) == (400, name)
    assert "--limit max_new_tokens=101" in (caught.value.hint or "")


def test_max_tokens_has_no_limit_by_default() -> None:
    assert ServerSettings().max_new_tokens is None
    assert chat(max_tokens=10**6).sampling(None)["max_new_tokens"] == 10**6


def test_logprobs_are_off_by_default() -> None:
    assert chat().requested_logprobs() is None


def test_top_logprobs_require_logprobs() -> None:
    with pytest.raises(ValidationError, match="logprobs"):
        chat(top_logprobs=3)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 10**400, True, "2", [2]])
@pytest.mark.parametrize("body", [ChatBody, CompletionBody, PredictBody])
def test_invalid_timeout_is_refused(body: type[BaseModel], timeout: Any) -> None:
    texts = {ChatBody: "messages", CompletionBody: "prompt", PredictBody: "input"}
    text = MESSAGES if body is ChatBody else "x"
    with pytest.raises(ValidationError) as caught:
        body.model_validate({"model": "base", texts[body]: text, "timeout": timeout})
    assert [error["loc"] for error in caught.value.errors()] == [("timeout",)]


@pytest.mark.parametrize("timeout", [2, 0.05, None])
def test_valid_timeout_is_accepted(timeout: float | None) -> None:
    assert chat(timeout=timeout).timeout == timeout


def test_parts_of_a_message_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": parts}, *MESSAGES]
    assert chat(messages=messages).messages[0].to_template() == {"role": "system", "content": "ab"}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "x"},
        {"role": "user", "content": None},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": "\ud800"},
    ],
)
def test_invalid_message_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        chat(messages=[message])


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("x", ["x"]),
        (["x", "y"], ["x", "y"]),
        ([1, 2], [(1, 2)]),
        ([[1], [2, 3]], [(1,), (2, 3)]),
    ],
)
def test_prompts_are_texts_or_token_ids(prompt: Any, expected: list[Any]) -> None:
    assert CompletionBody.model_validate({"model": "base", "prompt": prompt}).prompts() == expected


@pytest.mark.parametrize("prompt", [[], [[]], [[1], []]])
def test_empty_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(ValidationError, match="is empty"):
        CompletionBody.model_validate({"model": "base", "prompt": prompt})


def test_single_text_is_a_list_of_one() -> None:
    assert PredictBody(model="a/b", input="x").inputs() == ["x"]


def test_error_for_an_empty_prompt_names_its_position() -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionBody.model_validate({"model": "base", "prompt": [[1], []]})
    (error,) = caught.value.errors()
    assert error["ctx"]["field"] == "prompt[1]"


def test_empty_input_is_refused() -> None:
    with pytest.raises(ValidationError, match="empty"):
        PredictBody(model="a/b", input=[])


@pytest.mark.parametrize(
    ("texts", "message"), [(["a"] * 4, "4 inputs"), (["aaa", "bbb"], "6 char")]
)
def test_request_beyond_the_size_limits_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(TooLargeError, match=message):
        check_size(texts, 3, 5)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (CompletionBody, {"prompt": [{}] * INVALID_ITEMS}),
        (CompletionBody, {"prompt": [[0.5]] * INVALID_ITEMS}),
        (CompletionBody, {"prompt": [[0.5] * INVALID_ITEMS]}),
        (CompletionBody, {"prompt": "x", "stop": [0] * INVALID_ITEMS}),
        (PredictBody, {"input": [0] * INVALID_ITEMS}),
        (ChatBody, {"messages": [{}] * INVALID_ITEMS}),
        (ChatBody, {"messages": [{"role": "user", "content": [{}] * INVALID_ITEMS}]}),
        (ChatBody, {"messages": MESSAGES * INVALID_ITEMS}),
    ],
)
def test_validation_stops_early_in_a_list_of_invalid_items(
    body: type[BaseModel], fields: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError) as caught:
        body.model_validate({"model": "base", **fields})
    assert caught.value.error_count() < 10


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", True),
        ("temperature", "0.5"),
        ("n", "2"),
        ("n", True),
        ("stream", "yes"),
        ("logprobs", 1),
    ],
)
def test_field_of_the_wrong_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        chat(**{name: value})


def test_integer_temperature_is_accepted() -> None:
    assert chat(temperature=1).sampling(10)["temperature"] == 1.0

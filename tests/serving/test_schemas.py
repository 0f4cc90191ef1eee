"""Which fields of OpenAI's requests are accepted, and which are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from trunkline.errors import TooLargeError
from trunkline.inference.request import Request
from trunkline.serving.errors import ApiError
from trunkline.serving.schemas import ChatBody, CompletionBody, PredictBody
from trunkline.serving.service import check_size

INVALID_ITEMS = 10_000
MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatBody:
    return ChatBody.model_validate({"model": "base", "messages": MESSAGES, **fields})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"50256": -100}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("best_of", 3),
        ("echo", True),
        ("suffix", "the end"),
    ],
)
def test_unsupported_field_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**{name: value}).check_supported()
    assert (caught.value.param, caught.value.http_status) == (name, 400)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}},
        {"modalities": ["text"], "echo": False, "suffix": None},
        {"n": 2, "best_of": 2},
        {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        {"something_of_next_year": 1},
    ],
)
def test_field_without_effect_is_ignored(fields: dict[str, Any]) -> None:
    chat(**fields).check_supported()


def test_sampling_defaults_are_openais() -> None:
    sampling = chat().sampling(100)
    assert (sampling["temperature"], sampling["top_p"], sampling["n"]) == (1.0, 1.0, 1)


def test_requests_without_a_seed_get_different_ones() -> None:
    assert len({chat().sampling(100)["seed"] for _ in range(5)}) > 1


def test_given_seed_is_used() -> None:
    assert chat(seed=0).sampling(100)["seed"] == 0


def test_body_converts_to_an_engine_request() -> None:
    body = chat(stop="x", temperature=0.5, top_p=0.9, top_k=3, n=2, seed=4, max_tokens=5)
    request = Request(None, logprobs=body.requested_logprobs(), **body.sampling(100))
    assert (request.stop, request.top_k, request.n, request.max_new_tokens) == (("x",), 3, 2, 5)


def test_max_completion_tokens_overrides_max_tokens() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).sampling(100)["max_new_tokens"] == 7


def test_max_tokens_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ApiError, match="101"):
        chat(max_tokens=101).sampling(100)


def test_logprobs_are_off_by_default() -> None:
    assert chat().requested_logprobs() is None


def test_top_logprobs_require_logprobs() -> None:
    with pytest.raises(ApiError, match="top_logprobs"):
        chat(top_logprobs=3).requested_logprobs()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 10**400, True, "2", [2]])
@pytest.mark.parametrize("body", [ChatBody, CompletionBody, PredictBody])
def test_invalid_timeout_is_refused(body: type[BaseModel], timeout: Any) -> None:
    fields = {
        "model": "base",
        "messages": MESSAGES,
        "prompt": "x",
        "input": "x",
        "timeout": timeout,
    }
    with pytest.raises(ValidationError) as caught:
        body.model_validate(fields)
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


@pytest.mark.parametrize("prompt", [[1, 2], [[1], [2]], []])
def test_token_ids_as_prompt_are_refused(prompt: Any) -> None:
    with pytest.raises(ApiError, match="prompt"):
        CompletionBody.model_validate({"model": "base", "prompt": prompt}).prompts()


def test_single_text_is_a_list_of_one() -> None:
    assert PredictBody(model="a/b", input="x").texts() == ["x"]


def test_empty_input_is_refused() -> None:
    with pytest.raises(ApiError, match="input"):
        PredictBody(model="a/b", input=[]).texts()


@pytest.mark.parametrize(("texts", "message"), [(["a"] * 4, "4 texts"), (["aaa", "bbb"], "6 char")])
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

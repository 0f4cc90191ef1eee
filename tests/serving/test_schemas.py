"""What of OpenAI's requests is taken, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from trunkline.errors import TooLargeError
from trunkline.inference.request import Request
from trunkline.serving.errors import ApiError
from trunkline.serving.schemas import ChatBody, CompletionBody, PredictBody
from trunkline.serving.service import check_size

FAULTS = 10_000
SAID = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatBody:
    return ChatBody.model_validate({"model": "base", "messages": SAID, **fields})


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
def test_a_field_that_would_change_the_answer_is_refused_by_name(name: str, value: Any) -> None:
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
def test_a_field_that_changes_nothing_is_taken(fields: dict[str, Any]) -> None:
    chat(**fields).check_supported()


def test_sampling_is_as_openais_clients_expect_it_by_default() -> None:
    given = chat().sampling(100)
    assert (given["temperature"], given["top_p"], given["n"]) == (1.0, 1.0, 1)


def test_requests_without_a_seed_are_drawn_apart() -> None:
    assert len({chat().sampling(100)["seed"] for _ in range(5)}) > 1


def test_a_seed_is_kept() -> None:
    assert chat(seed=0).sampling(100)["seed"] == 0


def test_all_of_it_makes_a_request() -> None:
    body = chat(stop="x", temperature=0.5, top_p=0.9, top_k=3, n=2, seed=4, max_tokens=5)
    asked = Request(None, logprobs=body.requested_logprobs(), **body.sampling(100))
    assert (asked.stop, asked.top_k, asked.n, asked.max_new_tokens) == (("x",), 3, 2, 5)


def test_the_newer_name_of_max_tokens_wins() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).sampling(100)["max_new_tokens"] == 7


def test_more_tokens_than_the_server_gives_are_refused() -> None:
    with pytest.raises(ApiError, match="101"):
        chat(max_tokens=101).sampling(100)


def test_log_probabilities_are_off_unless_asked_for() -> None:
    assert chat().requested_logprobs() is None


def test_the_likeliest_tokens_need_log_probabilities() -> None:
    with pytest.raises(ApiError, match="top_logprobs"):
        chat(top_logprobs=3).requested_logprobs()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 10**400, True, "2", [2]])
@pytest.mark.parametrize("body", [ChatBody, CompletionBody, PredictBody])
def test_a_timeout_that_is_no_time_is_refused(body: type[BaseModel], timeout: Any) -> None:
    fields = {"model": "base", "messages": SAID, "prompt": "x", "input": "x", "timeout": timeout}
    with pytest.raises(ValidationError) as caught:
        body.model_validate(fields)
    assert [one["loc"] for one in caught.value.errors()] == [("timeout",)]


@pytest.mark.parametrize("timeout", [2, 0.05, None])
def test_a_timeout_may_have_decimals_or_be_left_out(timeout: float | None) -> None:
    assert chat(timeout=timeout).timeout == timeout


def test_parts_of_a_message_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    said = [{"role": "developer", "content": parts}, *SAID]
    assert chat(messages=said).messages[0].to_template() == {"role": "system", "content": "ab"}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "x"},
        {"role": "user", "content": None},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": "\ud800"},
    ],
)
def test_what_is_no_text_of_a_known_role_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        chat(messages=[message])


@pytest.mark.parametrize("prompt", [[1, 2], [[1], [2]], []])
def test_token_ids_are_no_prompt(prompt: Any) -> None:
    with pytest.raises(ApiError, match="prompt"):
        CompletionBody.model_validate({"model": "base", "prompt": prompt}).prompts()


def test_one_text_is_a_list_of_one() -> None:
    assert PredictBody(model="a/b", input="x").texts() == ["x"]


def test_no_text_is_refused() -> None:
    with pytest.raises(ApiError, match="input"):
        PredictBody(model="a/b", input=[]).texts()


@pytest.mark.parametrize(("texts", "named"), [(["a"] * 4, "4 texts"), (["aaa", "bbb"], "6 char")])
def test_more_than_one_request_may_hold_is_refused(texts: list[str], named: str) -> None:
    with pytest.raises(TooLargeError, match=named):
        check_size(texts, 3, 5)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (CompletionBody, {"prompt": [{}] * FAULTS}),
        (CompletionBody, {"prompt": [[0.5]] * FAULTS}),
        (CompletionBody, {"prompt": [[0.5] * FAULTS]}),
        (CompletionBody, {"prompt": "x", "stop": [0] * FAULTS}),
        (PredictBody, {"input": [0] * FAULTS}),
        (ChatBody, {"messages": [{}] * FAULTS}),
        (ChatBody, {"messages": [{"role": "user", "content": [{}] * FAULTS}]}),
        (ChatBody, {"messages": SAID * FAULTS}),
    ],
)
def test_a_list_of_faults_costs_as_little_as_one(
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
def test_a_field_of_another_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        chat(**{name: value})


def test_a_whole_number_is_a_temperature() -> None:
    assert chat(temperature=1).sampling(10)["temperature"] == 1.0

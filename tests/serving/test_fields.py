"""Fields that could change an answer are refused by name, on every route and at every level."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from json_values import JSON
from trunkline.serving.fields import StrictModel
from trunkline.serving.predict import EmbeddingBody
from trunkline.serving.responses import ResponsesBody
from trunkline.serving.schemas import (
    ChatBody,
    CompletionBody,
    ImagePart,
    ImageUrl,
    Message,
    PredictBody,
    RankBody,
    StreamOptions,
    TextPart,
)

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"

PARTS = [{"type": "text", "text": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "base",
        "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": PARTS}],
        "stream_options": {"include_usage": True},
    },
    "/v1/completions": {"model": "base", "prompt": "hi", "stream_options": {}},
    "/v1/responses": {
        "model": "base",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        "text": {},
    },
    "/v1/embeddings": {"model": "base", "input": ["hi"]},
    "/v1/classify": {"model": "toy/animals", "input": ["hi"]},
    "/v1/regress": {"model": "toy/prices", "input": "hi"},
    "/admin/load": {"ref": "toy/animals"},
    "/admin/unload": {"ref": "toy/animals"},
    "/admin/pin": {"ref": "toy/animals"},
    "/admin/promote": {"ref": "toy/animals"},
    "/admin/rollback": {"ref": "toy/animals"},
}
"""Route → a valid body; on a server without its base it is answered with 503."""

CHAT = "/v1/chat/completions"


def refusal(validating: TestClient, path: str, body: Any) -> dict[str, Any]:
    """The error of a request that is refused with 400."""
    response = validating.post(path, json=body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["param"] is not None
    return error


def is_accepted(validating: TestClient, path: str, **fields: Any) -> bool:
    response = validating.post(path, json=BODIES[path] | fields)
    assert response.status_code in (400, 503), response.text
    return response.status_code == 503


def chat(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"model": "base", "messages": [*messages, {"role": "user", "content": "hi"}]}


# -------------------------------------------------------------------------------- unknown fields


@pytest.mark.parametrize("path", BODIES)
def test_valid_body_is_accepted(validating: TestClient, path: str) -> None:
    assert is_accepted(validating, path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/admin/pin", "pinned"),
        ("/admin/promote", "alias"),
        ("/admin/promote", "force"),
        ("/admin/promote", "reason"),
        ("/admin/rollback", "alias"),
        ("/v1/classify", "abstain"),
        ("/v1/classify", "truncate_prompt_tokens"),
    ],
)
def test_null_is_a_field_that_is_not_set(validating: TestClient, path: str, name: str) -> None:
    assert is_accepted(validating, path, **{name: None})


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("name", ["something_of_next_year", "temprature", "tools_v2", "%", "a b"])
def test_unknown_field_is_refused_by_name(validating: TestClient, path: str, name: str) -> None:
    error = refusal(validating, path, BODIES[path] | {name: 1})
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")


def objects(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a body with its path."""
    if isinstance(value, dict):
        yield path, value
        for name, inner in value.items():
            yield from objects(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from objects(inner, f"{path}[{index}]")


@settings(max_examples=80, deadline=None)
@given(route=st.sampled_from(sorted(BODIES)), name=st.text("abcxyz_.é ", min_size=1, max_size=12),
       value=JSON, choice=st.integers(0, 99))  # fmt: skip
def test_unknown_field_at_any_level_is_refused_with_its_path(
    validating: TestClient, route: str, name: str, value: Any, choice: int
) -> None:
    body = json.loads(json.dumps(BODIES[route]))
    levels = list(objects(body))
    path, level = levels[choice % len(levels)]
    level[name] = value
    error = refusal(validating, route, body)
    assert error["param"] == (f"{path}.{name}" if path else name)
    assert error["code"] == "unsupported_parameter"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/base", "/admin/state", "/v1/classify"])
def test_unknown_query_parameter_is_refused_by_name(validating: TestClient, path: str) -> None:
    method = "POST" if path in BODIES else "GET"
    response = validating.request(method, f"{path}?order=asc", json=BODIES.get(path))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "order")


def test_repeated_query_parameter_is_refused(validating: TestClient) -> None:
    response = validating.get("/v1/models?limit=1&limit=2")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "limit")


@pytest.mark.parametrize("limit", ["0", "10001", "x", "1.5", ""])
def test_query_parameter_out_of_range_is_refused(validating: TestClient, limit: str) -> None:
    response = validating.get(f"/v1/models?limit={limit}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "limit")


# ---------------------------------------------------------------------------- unsupported fields


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"50256": -100}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1),
        ("repetition_penalty", 1.1),
        ("min_p", 0.05),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("reasoning_effort", "high"),
        ("best_of", 3),
        ("echo", True),
        ("continue_final_message", True),
        ("add_generation_prompt", False),
        ("chat_template", "{{ messages }}"),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("guided_json", {}),
        ("guided_choice", ["a"]),
        ("structured_outputs", {"choice": ["a"]}),
        ("grammar", "root ::= 'a'"),
        ("stop_token_ids", [2]),
        ("bad_words", ["no"]),
        ("allowed_token_ids", [1]),
        ("logits_processors", ["x"]),
        ("prompt_logprobs", 1),
        ("typical_p", 0.9),
        ("mirostat", 2),
        ("no_repeat_ngram_size", 3),
        ("use_beam_search", True),
        ("truncate_prompt_tokens", 5),
        ("max_new_tokens", 5),
        ("n_predict", 5),
        ("stop_sequences", ["x"]),
        ("include_stop_str_in_output", True),
        ("min_tokens", 1),
        ("skip_special_tokens", False),
        ("lora_request", {"lora_name": "x"}),
        ("documents", [{"text": "x"}]),
        ("cache_salt", "x"),
        ("priority", 1),
    ],
)
def test_field_that_changes_the_answer_is_refused_by_name(
    validating: TestClient, name: str, value: Any
) -> None:
    error = refusal(validating, CHAT, BODIES[CHAT] | {name: value})
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert error["message"].startswith(name)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {}}},
         "response_format.json_schema"),
        ({"response_format": {"type": "text", "strict": True}}, "response_format.strict"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream_options": {"chunk_size": 5}}, "stream_options.chunk_size"),
    ],
)  # fmt: skip
def test_unsupported_field_inside_another_is_refused_with_its_path(
    validating: TestClient, fields: dict[str, Any], param: str
) -> None:
    error = refusal(validating, CHAT, BODIES[CHAT] | fields)
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"tools": None, "tool_choice": "none", "functions": None, "function_call": "none"},
        {"response_format": {"type": "text"}},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}},
        {"repetition_penalty": 1.0, "typical_p": 1, "min_p": 0.0, "length_penalty": 1.0},
        {"use_beam_search": False, "ignore_eos": False, "min_tokens": 0, "stop_token_ids": []},
        {"modalities": ["text"], "echo": False, "audio": None},
        {"add_generation_prompt": True, "continue_final_message": False},
        {"chat_template": None, "chat_template_kwargs": {}, "guided_json": None, "bad_words": []},
        {"skip_special_tokens": True, "spaces_between_special_tokens": True},
        {"n": 2, "best_of": 2},
        {"best_of": 1},
        {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        {"safety_identifier": "x", "prompt_cache_key": "y", "prediction": {"type": "content"}},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"temperature": None, "top_p": None, "n": None, "stop": None, "max_tokens": None},
        {"response_format": {"type": "text", "json_schema": None}},
    ],
)  # fmt: skip
def test_field_without_effect_is_accepted(validating: TestClient, fields: dict[str, Any]) -> None:
    assert is_accepted(validating, CHAT, **fields)


@pytest.mark.parametrize("name", ["presence_penalty", "min_p", "tools", "echo", "logit_bias"])
@pytest.mark.parametrize("value", [True, "0", "", 0.1, ["x"], {"a": 1}])
def test_value_like_a_neutral_one_is_refused(validating: TestClient, name: str, value: Any) -> None:
    assert not is_accepted(validating, CHAT, **{name: value})


def test_false_is_not_zero(validating: TestClient) -> None:
    assert not is_accepted(validating, CHAT, min_p=False)
    assert not is_accepted(validating, CHAT, echo=0)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_new_tokens", "max_tokens"),
        ("temprature", "temperature"),
        ("stop_sequences", "stop"),
        ("lora_request", "model"),
    ],
)
def test_error_names_the_field_that_was_meant(validating: TestClient, name: str, hint: str) -> None:
    assert hint in refusal(validating, CHAT, BODIES[CHAT] | {name: [1]})["message"]


@pytest.mark.parametrize(
    ("path", "name", "hint"),
    [
        ("/v1/responses", "max_tokens", "Send max_output_tokens."),
        ("/v1/responses", "max_new_tokens", "Send max_output_tokens."),
        ("/v1/responses", "messages", "Send input."),
        ("/v1/completions", "max_completion_tokens", "Send max_tokens."),
        ("/v1/completions", "messages", "Send prompt."),
        (CHAT, "prompt", "Send messages."),
        ("/v1/classify", "max_tokens", "Remove it."),
        ("/v1/embeddings", "stop_sequences", "Remove it."),
    ],
)
def test_hint_names_a_field_of_this_route(
    validating: TestClient, path: str, name: str, hint: str
) -> None:
    assert refusal(validating, path, BODIES[path] | {name: [1]})["message"].endswith(hint)


def test_true_is_no_number_of_answers(validating: TestClient) -> None:
    assert not is_accepted(validating, CHAT, best_of=True)


@pytest.mark.parametrize("reasoning", [{"summary": None}, {"effort": "none", "summary": None}])
def test_null_inside_an_object_is_not_set(validating: TestClient, reasoning: Any) -> None:
    assert is_accepted(validating, "/v1/responses", reasoning=reasoning)


def test_limit_of_a_text_counts_characters(validating: TestClient) -> None:
    error = refusal(validating, CHAT, BODIES[CHAT] | {"model": "x" * 257})
    assert error["message"] == "model is too long. Send at most 256 characters."


def test_error_for_a_query_parameter_shows_its_value(validating: TestClient) -> None:
    error = validating.get("/v1/models?limit=0").json()["error"]
    assert error["message"] == "limit can't be '0'. Send at least 1."


# -------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}, "tool_calls"),
        ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "function_call"),
        ({"role": "tool", "content": "x", "tool_call_id": "x"}, "role"),
        ({"role": "function", "name": "f", "content": "x"}, "role"),
        ({"role": "user", "content": "x", "tool_call_id": "x"}, "tool_call_id"),
    ],
)
def test_tools_in_the_history_are_refused_in_one_way(
    validating: TestClient, message: dict[str, Any], param: str
) -> None:
    error = refusal(validating, CHAT, chat({"role": "system", "content": "x"}, message))
    assert (error["param"], error["code"]) == (f"messages[1].{param}", "unsupported_parameter")
    assert "tools are not supported" in error["message"]


@pytest.mark.parametrize("name", ["tools", "functions"])
def test_tools_are_refused_in_the_same_way(validating: TestClient, name: str) -> None:
    assert "tools are not supported" in refusal(validating, CHAT, chat() | {name: [{}]})["message"]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "audio": None,
         "function_call": None, "tool_calls": None},
        {"role": "assistant", "content": PARTS, "tool_calls": []},
        {"role": "user", "content": [{**PARTS[0], "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "x", "name": None},
    ],
)  # fmt: skip
def test_message_as_clients_send_it_back_is_accepted(
    validating: TestClient, message: dict[str, Any]
) -> None:
    response = validating.post(CHAT, json=chat(message))
    assert response.status_code == 503, response.text


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": None}, "content"),
        ({"role": "user"}, "content"),
        ({"content": "x"}, "role"),
        ({"role": "king", "content": "x"}, "role"),
        ({"role": 3, "content": "x"}, "role"),
        ({"role": "user", "content": 3}, "content"),
        ({"role": "user", "content": {"a text": 1}}, "content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
         "content[0].image_url.url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "https://x/a.png"}]},
         "content[0].image_url"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "content[0].image_url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,",
                                       "size": 1}]}, "content[0].size"),
        ({"role": "assistant", "content": [{"type": "image_url",
                                            "image_url": "data:image/png;base64,"}]},
         "content[0].type"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "content[0].text"),
        ({"role": "user", "content": [*PARTS, "x"]}, "content[1]"),
        ({"role": "user", "content": "x", "name": "Ann"}, "name"),
        ({"role": "assistant", "content": "x", "refusal": "no"}, "refusal"),
        ({"role": "assistant", "content": "x", "reasoning_content": "hm"}, "reasoning_content"),
        ({"role": "user", "content": "x", "content ": "y"}, "content "),
        ("x", None),
        (None, None),
    ],
)  # fmt: skip
def test_error_for_a_message_has_the_path_of_its_field(
    validating: TestClient, message: Any, param: str | None
) -> None:
    error = refusal(validating, CHAT, chat({"role": "user", "content": "x"}, message))
    assert error["param"] == ("messages[1]" if param is None else f"messages[1].{param}")


@pytest.mark.parametrize(
    ("item", "param", "problem"),
    [
        ({"role": "tool", "content": "x"}, "role", "tools are not supported"),
        ({"type": "function_call", "name": "f"}, "type", "tools are not supported"),
        ({"type": "function_call_output", "output": "x"}, "type", "tools are not supported"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "tool_calls",
         "tools are not supported"),
        ({"type": "reasoning", "summary": []}, "type", "Send messages only."),
        ({"type": "item_reference", "id": "x"}, "type", "Send messages only."),
        ({"type": ["message"], "role": "user", "content": "x"}, "type", "must be 'message'"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]},
         "content[0].type", "only 'input_text' is supported"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}]},
         "content[0].type", "only 'input_text' is supported"),
    ],
)  # fmt: skip
def test_input_item_that_is_no_text_is_refused_by_its_type(
    validating: TestClient, item: dict[str, Any], param: str, problem: str
) -> None:
    body = {"model": "base", "input": [item, {"role": "user", "content": "hi"}]}
    error = refusal(validating, "/v1/responses", body)
    assert error["param"] == f"input[0].{param}"
    assert problem in error["message"]


@pytest.mark.parametrize(
    "item",
    [
        {"role": "assistant", "content": None},
        {"type": None, "role": "user", "content": "x", "name": None},
        {"role": "assistant", "content": "x", "tool_calls": []},
    ],
)
def test_input_message_as_clients_send_it_is_accepted(validating: TestClient, item: Any) -> None:
    assert is_accepted(validating, "/v1/responses", input=[item, {"role": "user", "content": "x"}])


def test_conversation_that_does_not_end_with_the_user_is_refused_by_name(
    validating: TestClient,
) -> None:
    body = {"model": "base", "messages": [{"role": "assistant", "content": "x"}]}
    assert refusal(validating, CHAT, body)["param"] == "messages[0].role"


# -------------------------------------------------------------------------------------- the page


MODELS: dict[str, type[StrictModel]] = {
    "Chat": ChatBody,
    "Completions": CompletionBody,
    "Messages": Message,
    "Text parts": TextPart,
    "Image parts": ImagePart,
    "Image URLs": ImageUrl,
    "Stream options": StreamOptions,
    "Classify, tag and regress": PredictBody,
    "Rank": RankBody,
    "Responses": ResponsesBody,
    "Embeddings": EmbeddingBody,
}
"""Heading on the page → the schema that it describes."""


def tables(heading: str) -> dict[str, list[str]]:
    """The fields of each table below a heading, by what happens to them."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n### {heading}\n")[2]
    section = re.split(r"\n##", text)[0]
    result: dict[str, list[str]] = {}
    for kind, rows in re.findall(r"^\| ([a-z]+) \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", section, re.M):
        cells = [row.split("|")[1] for row in rows.splitlines()]
        result[kind] = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    return result


@pytest.mark.parametrize("heading", MODELS)
def test_page_lists_every_field_in_exactly_one_table(heading: str) -> None:
    model = MODELS[heading]
    listed = tables(heading)
    neutral: Mapping[str, Any] = model.neutral
    extra = ["best_of"] if "n" in model.model_fields else []
    assert sorted(listed.get("honored", [])) == sorted(model.model_fields)
    assert sorted(listed.get("ignored", [])) == sorted(model.ignored)
    assert sorted(listed.get("refused", [])) == sorted([*neutral, *extra])
    every = [name for names in listed.values() for name in names]
    assert len(every) == len(set(every))


def accepted_values(heading: str) -> dict[str, list[Any]]:
    """The values besides null that the page lists for each refused field."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n### {heading}\n")[2]
    table = re.split(r"\n##", text)[0].partition("| refused |")[2].partition("\n\n")[0]
    result: dict[str, list[Any]] = {}
    for names, values in re.findall(r"^\|([^|]+)\|([^|]*)\|$", table, re.M):
        for name in re.findall(r"`([^`]+)`", names):
            quoted = re.findall(r"`([^`]+)`", values)
            result[name] = [json.loads(value) for value in quoted if value != "n"]
    return result


@pytest.mark.parametrize("heading", MODELS)
def test_page_lists_the_values_with_which_a_refused_field_is_accepted(heading: str) -> None:
    listed = accepted_values(heading)
    for name, values in MODELS[heading].neutral.items():
        assert json.dumps(listed[name]) == json.dumps(values), name

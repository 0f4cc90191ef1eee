"""``/v1/responses``: the answers of chat completions in OpenAI's newer objects and events."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from openai import OpenAI

from server_process import MESSAGES, chat_body
from trunkline.api import Platform

PROMPT = MESSAGES[0]["content"]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "base", "input": PROMPT, "temperature": 0, "max_output_tokens": 6, **fields}


@pytest.mark.parametrize("model", ["base", "toy/plurals"])
def test_answer_is_that_of_chat_completions(client: OpenAI, model: str) -> None:
    expected = client.chat.completions.create(**chat_body(model=model))
    response = client.responses.create(**body(model=model))
    assert response.output_text == expected.choices[0].message.content
    assert response.model == expected.model
    usage = response.usage
    assert usage is not None
    assert usage.input_tokens == expected.usage.prompt_tokens
    assert usage.output_tokens == expected.usage.completion_tokens
    assert usage.total_tokens == expected.usage.total_tokens


def test_status_explains_why_the_answer_ended(client: OpenAI) -> None:
    response = client.responses.create(**body())
    finish = client.chat.completions.create(**chat_body()).choices[0].finish_reason
    assert response.status == {"length": "incomplete", "stop": "completed"}[finish]
    if finish == "length":
        assert response.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    "given",
    [
        MESSAGES,
        [{"role": "user", "content": [{"type": "input_text", "text": PROMPT}]}],
        [{"type": "message", "role": "user", "content": PROMPT, "status": "completed"}],
    ],
)
def test_messages_are_an_input_too(client: OpenAI, given: Any) -> None:
    expected = client.responses.create(**body()).output_text
    assert client.responses.create(**body(input=given)).output_text == expected


def test_instructions_are_the_system_message(client: OpenAI) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    expected = client.chat.completions.create(**chat_body(messages=messages))
    response = client.responses.create(**body(instructions="Be brief."))
    assert response.output_text == expected.choices[0].message.content
    assert response.usage.input_tokens == expected.usage.prompt_tokens
    developer = [{"role": "developer", "content": "Be brief."}, *MESSAGES]
    assert client.responses.create(**body(input=developer)).output_text == response.output_text


def test_output_can_be_sent_back_as_input(client: OpenAI) -> None:
    first = client.responses.create(**body(include=["message.output_text.logprobs"]))
    items = [*MESSAGES, *first.output, {"role": "user", "content": "And?"}]
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And?"},
    ]
    expected = client.chat.completions.create(**chat_body(messages=messages))
    response = client.responses.create(**body(input=items))
    assert response.output_text == expected.choices[0].message.content


def test_events_of_a_stream_are_those_of_openai(client: OpenAI) -> None:
    expected = client.responses.create(**body())
    events = list(client.responses.create(**body(), stream=True))
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{expected.status}",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(deltas) == events[-4].text == expected.output_text
    final = events[-1].response
    assert final.output_text == expected.output_text
    assert final.usage.input_tokens == expected.usage.input_tokens
    assert final.usage.output_tokens == expected.usage.output_tokens
    assert {event.item_id for event in events[3:-2]} == {final.output[0].id}


def test_events_are_named_and_the_stream_just_ends(http: TestClient) -> None:
    text = http.post("/v1/responses", json=body(stream=True)).text
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        assert f'"type":"{name.removeprefix("event: ")}"' in data
    assert "[DONE]" not in text


def test_completed_stream_is_accumulated_by_the_client(client: OpenAI) -> None:
    with client.responses.stream(**body(max_output_tokens=39)) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(texts) == client.responses.create(**body(max_output_tokens=39)).output_text


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_chat_completions(client: OpenAI, stream: bool) -> None:
    chat = client.chat.completions.create(**chat_body(logprobs=True, top_logprobs=2))
    expected = [(one.token, one.logprob) for one in chat.choices[0].logprobs.content]
    fields = body(include=["message.output_text.logprobs"], top_logprobs=2)
    if stream:
        events = list(client.responses.create(**fields, stream=True))
        deltas = [event for event in events if event.type == "response.output_text.delta"]
        scores = [one for event in deltas for one in event.logprobs]
        assert [(one.token, one.logprob) for one in events[-4].logprobs] == expected
    else:
        scores = client.responses.create(**fields).output[0].content[0].logprobs
    assert [(one.token, one.logprob) for one in scores] == expected
    assert all(len(one.top_logprobs) == 2 for one in scores)


def test_response_repeats_what_was_requested_and_is_not_stored(client: OpenAI) -> None:
    response = client.responses.create(
        **body(metadata={"a": "b"}, store=True, instructions="Be brief.", top_p=0.5)
    )
    raw = response.model_dump()
    assert (raw["store"], response.metadata, response.top_p) == (False, {"a": "b"}, 0.5)
    assert (response.instructions, response.temperature) == ("Be brief.", 0)
    with pytest.raises(openai.NotFoundError, match="stores no responses"):
        client.responses.retrieve(response.id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"messages": MESSAGES}, "messages"),
        ({"temperature": 11}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 41}, "max_output_tokens"),
        ({"include": ["everything"]}, "include[0]"),
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].type"),
        ({"input": [{"role": "assistant", "content": "I"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input[0].content[0].type"),
        ({"model": "toy/animals"}, "model"),
    ],
)  # fmt: skip
def test_invalid_field_is_refused_by_name(
    http: TestClient, fields: dict[str, Any], param: str
) -> None:
    response = http.post("/v1/responses", json=body(**fields))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"truncation": "disabled", "background": False, "previous_response_id": None},
        {"text": {"format": {"type": "text"}}, "reasoning": {"effort": None}},
        {"include": ["reasoning.encrypted_content"]},
        {"stream_options": {"include_obfuscation": False}},
        {"user": "me", "safety_identifier": "me", "prompt_cache_key": "k", "service_tier": "auto"},
    ],
    ids=str,
)  # fmt: skip
def test_field_without_effect_is_accepted(http: TestClient, fields: dict[str, Any]) -> None:
    assert http.post("/v1/responses", json=body(**fields)).status_code == 200


def test_classifier_is_refused_as_in_chat_completions(http: TestClient) -> None:
    errors = [
        http.post(path, json=fields).json()["error"]
        for path, fields in (
            ("/v1/responses", body(model="toy/animals")),
            ("/v1/chat/completions", chat_body(model="toy/animals")),
        )
    ]
    assert errors[0] == errors[1]


def test_response_is_logged_and_counted(http: TestClient, platform: Platform) -> None:
    response = http.post("/v1/responses", json=body(), headers={"x-request-id": "responded"})
    logged = platform.registry.requests.get("responded")
    assert (logged.route, logged.version) == ("/v1/responses", "base")
    assert logged.new_tokens == response.json()["usage"]["output_tokens"]
    metrics = http.get("/metrics").text
    assert 'trunkline_http_responses_total{route="/v1/responses",status="200"}' in metrics


def test_error_in_a_stream_reaches_the_client(
    client: OpenAI, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    run_step = platform.engine.run_step

    def run_step_or_fail(stepper: Any, parts: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            raise RuntimeError("out of memory")
        return run_step(stepper, parts)

    monkeypatch.setattr(platform.engine, "run_step", run_step_or_fail)
    with pytest.raises(openai.APIError, match="out of memory"):
        list(client.responses.create(**body(max_output_tokens=30), stream=True))

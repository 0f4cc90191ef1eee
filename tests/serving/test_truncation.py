"""A text that is longer than the adapter reads is cut as in training, and the answer says so."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai import OpenAI

LONG = "é" * 100
SHORT = "a goat"
HEADER = "x-trunkline-truncated"


@pytest.mark.parametrize(
    ("route", "model"), [("/v1/classify", "toy/animals"), ("/v1/regress", "toy/prices")]
)
def test_prediction_says_which_texts_were_cut(http: TestClient, route: str, model: str) -> None:
    response = http.post(route, json={"model": model, "input": [SHORT, LONG, SHORT, LONG]})

    assert response.status_code == 200
    assert [one["truncated"] for one in response.json()["data"]] == [False, True, False, True]
    assert response.headers[HEADER] == "1,3"
    assert max(one["prompt_tokens"] for one in response.json()["data"]) <= 120


def test_answer_equals_that_of_the_text_cut_by_hand(http: TestClient) -> None:
    texts = [LONG, "é" * 60]
    data = http.post("/v1/classify", json={"model": "toy/animals", "input": texts}).json()["data"]

    assert data[0]["probabilities"] == pytest.approx(data[1]["probabilities"])
    assert (data[0]["prompt_tokens"], data[1]["truncated"]) == (data[1]["prompt_tokens"], False)


def test_chat_of_one_message_says_that_it_was_cut(client: OpenAI) -> None:
    body: dict[str, Any] = {"model": "toy/plurals", "temperature": 0, "max_tokens": 2}
    messages: Any = [{"role": "user", "content": LONG}]
    raw = client.chat.completions.with_raw_response.create(**body, messages=messages)
    chunks = list(client.chat.completions.create(**body, messages=messages, stream=True))

    assert raw.headers[HEADER] == "0"
    for content in (raw.parse(), *chunks):
        assert (content.model_extra or {})["truncated"] == [0]


def test_completion_says_which_prompts_were_cut(client: OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model="toy/plurals", prompt=[SHORT, LONG], temperature=0, max_tokens=2
    )

    assert raw.headers[HEADER] == "1"
    assert (raw.parse().model_extra or {})["truncated"] == [1]


def test_conversation_that_the_client_wrote_is_not_cut(client: OpenAI) -> None:
    messages: Any = [
        {"role": "user", "content": SHORT},
        {"role": "assistant", "content": "goats"},
        {"role": "user", "content": "é" * 60},
    ]
    raw = client.chat.completions.with_raw_response.create(
        model="toy/plurals", messages=messages, temperature=0, max_tokens=2
    )

    assert HEADER not in raw.headers
    assert "truncated" not in (raw.parse().model_extra or {})
    assert raw.parse().usage.prompt_tokens > 120  # type: ignore[union-attr]


def test_text_that_fits_is_answered_without_a_remark(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="toy/plurals", messages=[{"role": "user", "content": SHORT}], max_tokens=2
    )

    assert HEADER not in raw.headers
    assert "truncated" not in (raw.parse().model_extra or {})


def test_prompt_of_the_bare_base_is_never_cut(http: TestClient) -> None:
    body = {"model": "base", "messages": [{"role": "user", "content": LONG * 2}], "max_tokens": 2}
    assert http.post("/v1/chat/completions", json=body).status_code == 422

"""OpenAI's client, unmodified, and the prediction routes, on a tiny base."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from openai import OpenAI

from server_process import MESSAGES, chat_body, ready_client
from trunkline.api import Platform
from trunkline.serving.settings import ServerSettings
from workbench import LABELS

# --------------------------------------------------------------------------------------- models


def test_every_listed_model_can_be_retrieved(client: OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert [id for id in listed if "animals" in id] == [
        "toy/animals", "toy/animals@champion", "toy/animals@2", "toy/animals@1",
    ]  # fmt: skip
    for id, model in listed.items():
        assert client.models.retrieve(id) == model


def test_model_names_its_base_and_its_version(http: TestClient) -> None:
    response = http.get("/v1/models/toy/animals").json()
    assert (response["root"], response["task"]) == ("toy/animals@1", "classification")
    assert response["parent"] == http.get("/ready").json()["base"]


# ----------------------------------------------------------------------------------------- chat


def test_chat_answers_and_counts_tokens(client: OpenAI) -> None:
    response = client.chat.completions.create(**chat_body())
    (choice,) = response.choices
    assert (response.model, choice.message.role) == ("base", "assistant")
    assert choice.finish_reason in ("stop", "length")
    usage = response.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 1 <= usage.completion_tokens <= 6


def test_response_names_the_version_that_answered(client: OpenAI, platform: Platform) -> None:
    body = chat_body(model="toy/plurals")
    raw = client.chat.completions.with_raw_response.create(**body)
    version = platform.resolve("toy/plurals").version
    assert raw.parse().model == raw.headers["x-trunkline-version"] == "toy/plurals@2"
    assert raw.headers["x-trunkline-digest"] == version.digest


def test_stream_equals_the_answer(client: OpenAI) -> None:
    expected = client.chat.completions.create(**chat_body(model="toy/plurals"))
    chunks = list(client.chat.completions.create(**chat_body(model="toy/plurals"), stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == expected.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == expected.choices[0].finish_reason
    assert {chunk.model for chunk in chunks} == {"toy/plurals@2"}


def test_stream_ends_with_its_usage_on_request(client: OpenAI) -> None:
    expected = client.chat.completions.create(**chat_body())
    body = chat_body(stream=True, stream_options={"include_usage": True})
    *chunks, last = client.chat.completions.create(**body)
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage.completion_tokens == expected.usage.completion_tokens


def test_several_answers_are_several_choices(client: OpenAI) -> None:
    response = client.chat.completions.create(**chat_body(n=3, temperature=1, seed=1))
    assert [choice.index for choice in response.choices] == [0, 1, 2]
    assert response.usage.completion_tokens > 3


def test_stream_of_several_choices_equals_the_answer(client: OpenAI) -> None:
    body = chat_body(n=3, temperature=1, seed=1)
    expected = [one.message.content for one in client.chat.completions.create(**body).choices]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**body, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == expected


def test_same_seed_gives_the_same_answer(client: OpenAI) -> None:
    body = chat_body(temperature=1, seed=5, max_tokens=20)
    texts = {client.chat.completions.create(**body).choices[0].message.content for _ in range(3)}
    assert len(texts) == 1


def test_answer_that_ignores_its_end_has_all_tokens(http: TestClient) -> None:
    fields = {"temperature": 1, "seed": 3, "n": 64, "max_tokens": 20}
    ended, ignored = (
        http.post("/v1/chat/completions", json=chat_body(**fields, ignore_eos=ignore)).json()
        for ignore in (False, True)
    )
    assert "stop" in {choice["finish_reason"] for choice in ended["choices"]}
    assert {choice["finish_reason"] for choice in ignored["choices"]} == {"length"}
    assert ignored["usage"]["completion_tokens"] == 64 * 20
    for one, other in zip(ended["choices"], ignored["choices"], strict=True):
        assert other["message"]["content"].startswith(one["message"]["content"].rstrip("\ufffd"))


def test_answers_without_a_seed_differ(client: OpenAI) -> None:
    body = {"model": "base", "messages": MESSAGES, "max_tokens": 20}
    texts = {client.chat.completions.create(**body).choices[0].message.content for _ in range(3)}
    assert len(texts) > 1


def test_answer_ends_before_a_stop_text(client: OpenAI) -> None:
    body = chat_body(max_tokens=30)
    expected = client.chat.completions.create(**body).choices[0].message.content
    stop = expected[3:5]
    response = client.chat.completions.create(**body, stop=[stop]).choices[0]
    assert response.message.content == expected[: expected.index(stop)]
    assert response.finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_every_token_has_log_probabilities(client: OpenAI, stream: bool) -> None:
    body = chat_body(logprobs=True, top_logprobs=2)
    if stream:
        chunks = client.chat.completions.create(**body, stream=True)
        scores = [
            score
            for chunk in chunks
            if chunk.choices[0].logprobs
            for score in chunk.choices[0].logprobs.content
        ]
    else:
        scores = client.chat.completions.create(**body).choices[0].logprobs.content
    assert len(scores) == 6
    assert all(score.logprob <= 0 and len(score.top_logprobs) == 2 for score in scores)
    assert all(score.logprob == score.top_logprobs[0].logprob for score in scores)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fields", [{}, {"stop": ["e", "a"]}], ids=str)
def test_bytes_of_all_tokens_are_the_message(
    client: OpenAI, stream: bool, fields: dict[str, Any]
) -> None:
    body = chat_body(temperature=1.5, max_tokens=40, logprobs=True, top_logprobs=3, **fields)
    for seed in range(4):
        if stream:
            choices = [
                chunk.choices[0]
                for chunk in client.chat.completions.create(**body, seed=seed, stream=True)
            ]
            text = "".join(choice.delta.content or "" for choice in choices)
            scores = [
                one for choice in choices if choice.logprobs for one in choice.logprobs.content
            ]
        else:
            choice = client.chat.completions.create(**body, seed=seed).choices[0]
            text, scores = choice.message.content, choice.logprobs.content
        joined = b"".join(bytes(score.bytes) for score in scores)
        assert joined.decode(errors="replace") == text
        assert all(top.bytes is not None for score in scores for top in score.top_logprobs)


def test_usage_counts_cached_prompt_tokens(client: OpenAI) -> None:
    body = chat_body(messages=[{"role": "user", "content": "again and again " * 8}])
    client.chat.completions.create(**body)
    assert client.chat.completions.create(**body).usage.prompt_tokens_details.cached_tokens > 0


# ---------------------------------------------------------------------------------- completions


def test_base_completes_a_prompt_without_a_template(client: OpenAI, platform: Platform) -> None:
    response = client.completions.create(
        model="base", prompt="The quick", temperature=0, max_tokens=5
    )
    tokens = platform.engine.base.tokenizer("The quick", add_special_tokens=False)["input_ids"]
    assert response.usage.prompt_tokens - len(tokens) in (0, 1)


def test_prompts_are_answered_in_their_order(client: OpenAI) -> None:
    body: dict[str, Any] = {"model": "base", "temperature": 0, "max_tokens": 5}
    prompts = ["The quick", "Acute", "Organic whole milk"]
    alone = [client.completions.create(**body, prompt=prompt).choices[0].text for prompt in prompts]
    response = client.completions.create(**body, prompt=prompts, n=2)
    assert [choice.index for choice in response.choices] == [0, 1, 2, 3, 4, 5]
    assert [choice.text for choice in response.choices] == [
        text for text in alone for _ in range(2)
    ]


def test_stream_of_several_prompts_equals_the_answers(client: OpenAI) -> None:
    body: dict[str, Any] = {"model": "toy/plurals", "temperature": 0, "max_tokens": 5}
    prompts = ["one", "two"]
    expected = [choice.text for choice in client.completions.create(**body, prompt=prompts).choices]
    texts = ["", ""]
    for chunk in client.completions.create(**body, prompt=prompts, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == expected


def test_completions_have_log_probabilities(client: OpenAI) -> None:
    response = client.completions.create(
        model="base", prompt="The", logprobs=2, max_tokens=4, temperature=0
    )
    scores = response.choices[0].logprobs
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.text_offset) == 4


def test_parts_of_a_character_have_scores_and_the_offset_of_the_character(
    client: OpenAI,
) -> None:
    body: dict[str, Any] = {
        "model": "base", "prompt": "The", "logprobs": 5, "max_tokens": 40, "seed": 3,
    }  # fmt: skip
    response = client.completions.create(**body).choices[0]
    scores, parts = response.logprobs, 0
    assert {len(top) for top in scores.top_logprobs} <= {5, 6}
    for token, offset in zip(scores.tokens, scores.text_offset, strict=True):
        if token.startswith("token_id:"):
            parts += 1
        elif offset < len(response.text):
            assert response.text[offset : offset + len(token)] == token
    assert parts > 3
    streamed = [
        one
        for chunk in client.completions.create(**body, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.text_offset
    ]
    assert streamed == scores.text_offset


def test_too_many_top_logprobs_are_refused_by_name(http: TestClient) -> None:
    response = http.post("/v1/chat/completions", json=chat_body(logprobs=True, top_logprobs=21))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "top_logprobs")


def test_model_of_texts_refuses_a_picture_by_its_type(http: TestClient) -> None:
    parts = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,YQ=="}},
    ]
    response = http.post(
        "/v1/chat/completions", json=chat_body(messages=[{"role": "user", "content": parts}])
    )
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == "messages[0].content[1].type"
    assert error["code"] == "unsupported_parameter"
    assert "base reads text" in error["message"]


def test_error_for_an_empty_text_names_its_position(http: TestClient) -> None:
    response = http.post("/v1/classify", json={"model": "toy/animals", "input": ["a cow", ""]})
    assert response.status_code == 422
    assert response.json()["error"]["message"].startswith("Text 2 of 2: ")


# ---------------------------------------------------------------------------- predictions


def test_texts_are_classified_in_their_order(http: TestClient, platform: Platform) -> None:
    texts = ["a robin", "a herring", "a cow"]
    response = http.post("/v1/classify", json={"model": "toy/animals", "input": texts}).json()
    assert (response["model"], response["object"]) == ("toy/animals@1", "list")
    expected = platform.predict("toy/animals@1", texts)
    for index, (one, answer) in enumerate(zip(response["data"], expected, strict=True)):
        assert (one["index"], one["label"]) == (index, answer.label)
        assert set(one["probabilities"]) == set(LABELS)
        assert sum(one["probabilities"].values()) == pytest.approx(1)


def test_single_text_gives_a_list_of_one(http: TestClient) -> None:
    response = http.post("/v1/classify", json={"model": "toy/animals@2", "input": "a cow"}).json()
    assert (response["model"], len(response["data"])) == ("toy/animals@2", 1)


def test_regression_has_its_unit(http: TestClient) -> None:
    response = http.post("/v1/regress", json={"model": "toy/prices", "input": ["tea"]}).json()
    assert response["data"][0]["unit"] == "EUR"
    assert isinstance(response["data"][0]["value"], float)
    assert response["usage"]["completion_tokens"] == 0


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("model", ["gpt-4o", "toy/none", "toy/plurals@9", "toy/plurals@nobody"])
@pytest.mark.parametrize("stream", [False, True])
def test_unknown_model_is_a_404(client: OpenAI, model: str, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**chat_body(model=model), stream=stream)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"temperature": 11}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": -0.5}, "top_p"),
        ({"n": 129}, "n can't be 129"),
        ({"n": 0}, "n can't be 0"),
        ({"stop": list("abcde" * 13)}, "stop"),
        ({"max_tokens": 41}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
        ({"seed": 2**64}, "seed"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "I"}]}, "user"),
        ({"model": "toy/animals"}, "/v1/classify"),
        ({"model": "toy/prices"}, "/v1/regress"),
    ],
)
def test_error_for_an_invalid_request_names_the_problem(
    client: OpenAI, fields: dict[str, Any], problem: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**chat_body(**fields))
    assert problem in caught.value.message


@pytest.mark.parametrize(
    ("path", "model", "problem"),
    [
        ("/v1/classify", "toy/plurals", "/v1/chat/completions"),
        ("/v1/classify", "toy/prices", "/v1/regress"),
        ("/v1/regress", "toy/animals", "/v1/classify"),
        ("/v1/classify", "base", "/v1/chat/completions"),
    ],
)
def test_error_for_a_wrong_route_names_the_right_one(
    http: TestClient, path: str, model: str, problem: str
) -> None:
    response = http.post(path, json={"model": model, "input": "x"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "wrong_task")
    assert problem in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("texts", "status"),
    [(["a"] * 9, 413), (["a" * 501], 413), ([], 400), ([""], 422), (["ok", "  "], 422)],
)
def test_texts_beyond_the_limits_are_refused(
    http: TestClient, texts: list[str], status: int
) -> None:
    response = http.post("/v1/classify", json={"model": "toy/animals", "input": texts})
    assert response.status_code == status


def test_prompt_beyond_the_context_is_refused(http: TestClient) -> None:
    body = {"model": "base", "prompt": "é ü ñ ß " * 60, "max_tokens": 2}
    assert http.post("/v1/completions", json=body).status_code == 422


def test_lone_surrogate_is_refused(http: TestClient) -> None:
    kind = {"content-type": "application/json"}
    body = b'{"model": "toy/animals", "input": "\\ud800"}'
    response = http.post("/v1/classify", content=body, headers=kind)
    assert response.status_code == 400
    assert "surrogate" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", chat_body(messages=[{"role": "user", "content": ""}]), "messages"),
        ("/v1/completions", {"model": "base", "prompt": ["a", ""]}, "prompt[1]"),
        ("/v1/completions", {"model": "base", "prompt": "é ü ñ ß " * 60}, "prompt"),
        ("/v1/completions", {"model": "base", "prompt": "x" * 501}, "prompt"),
        ("/v1/classify", {"model": "toy/animals", "input": ["a cow", " "]}, "input[1]"),
        ("/v1/classify", {"model": "toy/none", "input": "x"}, "model"),
        ("/v1/classify", {"model": "base", "input": "x"}, "model"),
        ("/admin/load", {"ref": "toy/none"}, "ref"),
        ("/admin/pin", {"ref": "toy/none"}, "ref"),
        ("/admin/rollback", {"ref": "toy/prices"}, "alias"),
        ("/admin/rollback", {"ref": "toy/animals@1"}, "ref"),
    ],
)  # fmt: skip
def test_error_of_the_engine_names_the_field(
    http: TestClient, path: str, body: dict[str, Any], param: str
) -> None:
    response = http.post(path, json=body)
    assert response.status_code in (400, 404, 409, 413, 422), response.text
    assert response.json()["error"]["param"] == param


def test_stream_may_be_read_by_a_page_of_an_allowed_origin(platform: Platform) -> None:
    origin = "http://localhost:3000"
    with ready_client(platform, ServerSettings(cors_origins=(origin,))) as client:
        response = client.post(
            "/v1/chat/completions", json=chat_body(stream=True), headers={"origin": origin}
        )
    assert response.text.endswith("data: [DONE]\n\n")
    assert response.headers["access-control-allow-origin"] == origin


def test_more_tokens_than_the_context_end_with_it(platform: Platform) -> None:
    with ready_client(platform, ServerSettings()) as client:
        body = chat_body(max_tokens=4096, model="toy/plurals")
        response = client.post("/v1/chat/completions", json=body).json()
    assert response["usage"]["total_tokens"] <= platform.engine.base.info.context
    assert response["choices"][0]["finish_reason"] in ("stop", "length")


def test_edges_of_sampling_give_the_likeliest_token_or_an_answer(http: TestClient) -> None:
    def text(**fields: Any) -> str:
        response = http.post("/v1/chat/completions", json=chat_body(**fields))
        assert response.status_code == 200, response.text
        content: str = response.json()["choices"][0]["message"]["content"]
        return content

    greedy = text()
    assert text(temperature=2, top_p=0, seed=1) == greedy
    assert text(temperature=10, top_k=1, top_p=0.5, seed=-1) == greedy
    assert text(temperature=1e-9, seed=2**64 - 1) == greedy
    assert text(stop=[""], seed=-(2**63)) == greedy

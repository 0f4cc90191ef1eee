"""Echoed prompts with their log probabilities, and prompts of token ids, on a tiny base."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai import OpenAI

from trunkline.api import Platform

PROMPT = "Organic whole milk ✓ 🐐"
LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def body(**fields: Any) -> dict[str, Any]:
    """A request for the log probabilities of a prompt."""
    common = {"model": "base", "prompt": PROMPT, "echo": True, "max_tokens": 0, "logprobs": 3}
    return common | fields


@pytest.fixture
def ids(platform: Platform) -> list[int]:
    """The tokens of the prompt."""
    return platform.engine.base.tokenizer.encode(PROMPT)


@pytest.mark.parametrize("model", ["base", "toy/plurals"])
@pytest.mark.parametrize("max_tokens", [0, 4])
def test_echo_returns_the_prompt_with_its_log_probabilities(
    client: OpenAI, ids: list[int], model: str, max_tokens: int
) -> None:
    answer = client.completions.create(**body(model=model, max_tokens=max_tokens, temperature=0))
    (choice,) = answer.choices
    assert choice.text.startswith(PROMPT)
    assert (choice.text == PROMPT) == (max_tokens == 0)
    assert answer.usage.prompt_tokens == len(ids)
    scores = choice.logprobs
    lengths = {len(getattr(scores, name)) for name in LISTS}
    assert lengths == {len(ids) + answer.usage.completion_tokens}
    assert (scores.token_logprobs[0], scores.top_logprobs[0]) == (None, None)
    assert all(value <= 0 for value in scores.token_logprobs[1:])
    for token, offset in zip(scores.tokens, scores.text_offset, strict=True):
        if not token.startswith(("token_id:", "<|")):
            assert choice.text[offset:].startswith(token)


def test_token_ids_give_the_scores_of_their_text(client: OpenAI, ids: list[int]) -> None:
    (text,) = client.completions.create(**body()).choices
    (tokens,) = client.completions.create(**body(prompt=ids)).choices
    assert tokens == text


@pytest.mark.parametrize("text", [" ", "\n", "\t \n"])
def test_white_space_is_a_prompt(client: OpenAI, platform: Platform, text: str) -> None:
    ids = platform.engine.base.tokenizer.encode(text)
    (echoed,) = client.completions.create(**body(prompt=text)).choices
    assert echoed.text == text
    assert len(echoed.logprobs.tokens) == len(ids)
    fields = body(prompt=text, echo=False, max_tokens=4, temperature=0)
    (answer,) = client.completions.create(**fields).choices
    (expected,) = client.completions.create(**{**fields, "prompt": ids}).choices
    assert answer.text == expected.text


def test_batch_of_token_ids_is_scored_in_its_order(client: OpenAI, ids: list[int]) -> None:
    """The request of lm-evaluation-harness, which drops the one new token."""
    prompts = [ids, ids[:5], ids[3:], [2, 1, 0]]
    fields = body(prompt=prompts, max_tokens=1, logprobs=1, seed=1234, temperature=0)
    choices = client.completions.create(**fields).choices
    assert [choice.index for choice in choices] == [0, 1, 2, 3]
    for choice, prompt in zip(choices, prompts, strict=True):
        assert len(choice.logprobs.token_logprobs) == len(prompt) + 1
        alone = client.completions.create(**body(prompt=prompt, logprobs=1)).choices[0].logprobs
        assert choice.logprobs.tokens[:-1] == alone.tokens
        assert choice.logprobs.token_logprobs[1:-1] == pytest.approx(alone.token_logprobs[1:])


def test_special_tokens_of_a_prompt_are_spelled_out(client: OpenAI, platform: Platform) -> None:
    tokenizer = platform.engine.base.tokenizer
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer.encode(text)
    choice = client.completions.create(**body(prompt=ids)).choices[0]
    assert choice.text == text
    assert "".join(choice.logprobs.tokens) == text


def test_top_tokens_include_the_token_itself(client: OpenAI) -> None:
    scores = client.completions.create(**body(logprobs=1)).choices[0].logprobs
    rows = zip(scores.tokens, scores.token_logprobs, scores.top_logprobs, strict=True)
    for token, value, top in list(rows)[1:]:
        assert top[token] == value
        assert len(top) == 1 + (value < max(top.values()))


def test_echo_without_log_probabilities_is_the_text_alone(client: OpenAI) -> None:
    (choice,) = client.completions.create(**body(logprobs=None, max_tokens=3)).choices
    assert choice.text.startswith(PROMPT)
    assert choice.logprobs is None


@pytest.mark.parametrize("max_tokens", [0, 8])
@pytest.mark.parametrize("n", [1, 2])
def test_stream_of_an_echo_equals_the_answer(client: OpenAI, max_tokens: int, n: int) -> None:
    fields = body(prompt=[PROMPT, "Acute"], max_tokens=max_tokens, n=n, seed=3)
    choices = client.completions.create(**fields).choices
    texts = [""] * len(choices)
    scores: list[list[float | None]] = [[] for _ in choices]
    offsets: list[list[int]] = [[] for _ in choices]
    for chunk in client.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.logprobs:
                scores[choice.index] += choice.logprobs.token_logprobs
                offsets[choice.index] += choice.logprobs.text_offset
    assert texts == [choice.text for choice in choices]
    for ours, choice in zip(scores, choices, strict=True):
        assert ours[0] is None
        assert ours[1:] == pytest.approx(choice.logprobs.token_logprobs[1:], abs=1e-5)
    assert offsets == [choice.logprobs.text_offset for choice in choices]


def test_echo_of_an_adapter_is_scored_by_the_adapter(client: OpenAI) -> None:
    base, other = (
        client.completions.create(**body(model=model)).choices[0].logprobs.token_logprobs[1:]
        for model in ("base", "toy/plurals")
    )
    assert not any(math.isclose(*pair, abs_tol=1e-4) for pair in zip(base, other, strict=True))


@pytest.mark.parametrize(
    "prompt", [[], [[]], [[5], []], [5, -1], [5, 10**6], [1.5], [True], ["a", 5], [["a"]], {}, None]
)
def test_invalid_prompt_is_refused(http: TestClient, prompt: Any) -> None:
    response = http.post("/v1/completions", json=body(prompt=prompt))
    assert response.status_code in (400, 422)
    assert response.json()["error"]["message"]


def test_too_many_token_ids_are_refused(http: TestClient) -> None:
    assert http.post("/v1/completions", json=body(prompt=[5] * 501)).status_code == 413
    assert http.post("/v1/completions", json=body(prompt=[[5]] * 9)).status_code == 413


def test_no_new_tokens_without_an_echo_are_refused(http: TestClient) -> None:
    assert http.post("/v1/completions", json=body(echo=False)).status_code == 400


def test_answer_to_token_ids_is_the_answer_to_their_text(client: OpenAI, ids: list[int]) -> None:
    fields = body(echo=False, max_tokens=6, temperature=0)
    texts = [
        client.completions.create(**{**fields, "prompt": prompt}).choices[0].text
        for prompt in (PROMPT, ids)
    ]
    assert texts[0] == texts[1]


def test_usage_of_a_scored_prompt_counts_no_cached_tokens(client: OpenAI) -> None:
    fields = body(prompt=PROMPT * 3)
    for _ in range(2):
        usage = client.completions.create(**fields).usage
    assert usage.prompt_tokens_details.cached_tokens == 0

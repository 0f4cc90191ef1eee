"""Clients that nobody here wrote, unmodified and pinned, get the answers that the server gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PROMPT = "The quick brown fox"
MODELS = ("base", "toy/plurals")

RunClient = Callable[..., Any]
Post = Callable[..., Any]


def chat(
    post: Post, model: str, *before: dict[str, str], prompt: str = PROMPT, max_tokens: int = 8
) -> str:
    """The answer to a conversation without any client."""
    messages = [*before, {"role": "user", "content": prompt}]
    answer = post(
        "/v1/chat/completions", model=model, messages=messages, temperature=0, max_tokens=max_tokens
    )
    return answer["choices"][0]["message"]["content"]


def complete(post: Post, model: str) -> str:
    """The completion of the prompt without any client."""
    answer = post("/v1/completions", model=model, prompt=PROMPT, temperature=0, max_tokens=8)
    return answer["choices"][0]["text"]


def assert_same_embeddings(post: Post, model: str, embeddings: list[list[float]]) -> None:
    texts = [PROMPT, "another"][: len(embeddings)]
    data = post("/v1/embeddings", model=model, input=texts)["data"]
    for ours, one in zip(embeddings, data, strict=True):
        assert ours == pytest.approx(one["embedding"], abs=1e-6)
        assert math.hypot(*ours) == pytest.approx(1)


def test_openai_for_python(run_client: RunClient, post: Post) -> None:
    result = run_client("openai_python")
    assert {"base", "toy/plurals", "toy/animals"} <= set(result["models"])
    assert result["refused"] == "tools"
    for model in MODELS:
        expected, one = chat(post, model), result[model]
        answers = ("chat", "bytes", "stream", "response", "response_stream")
        assert {name: one[name] for name in answers} == dict.fromkeys(answers, expected)
        assert one["stream_tokens"] == one["tokens"] > 0
        assert (one["echo"], one["logprobs"][0]) == (PROMPT, None)
        assert one["response_status"] == ("incomplete" if one["tokens"] == 8 else "completed")
        assert_same_embeddings(post, model, one["embeddings"])


def test_openai_for_node(run_client: RunClient, post: Post) -> None:
    result = run_client("openai_node")
    assert result["refused"] == "logit_bias"
    for model in MODELS:
        expected, one = chat(post, model), result[model]
        answers = ("chat", "stream", "response", "response_stream")
        assert {name: one[name] for name in answers} == dict.fromkeys(answers, expected)
        assert_same_embeddings(post, model, one["embeddings"])


def test_langchain(run_client: RunClient, post: Post) -> None:
    result = run_client("langchain_openai_client")
    for model in MODELS:
        expected, one = chat(post, model), result[model]
        answers = ("chat", "stream", "response", "response_stream")
        assert {name: one[name] for name in answers} == dict.fromkeys(answers, expected)
        system = {"role": "system", "content": "Be brief."}
        assert one["system"] == chat(post, model, system)
        assert one["batch"] == [expected, chat(post, model, prompt="another")]
        assert one["completion"] == complete(post, model)
        assert_same_embeddings(post, model, one["embeddings"])


def test_llama_index(run_client: RunClient, post: Post) -> None:
    result = run_client("llama_index_client")
    for model in MODELS:
        expected = chat(post, model)
        assert result[model] == {
            "chat": expected, "stream": expected, "completion": complete(post, model),
        }  # fmt: skip


def test_litellm(run_client: RunClient, post: Post) -> None:
    result = run_client("litellm_client")
    for model in MODELS:
        expected, one = chat(post, model), result[model]
        assert (one["chat"], one["stream"]) == (expected, expected)
        # It raises a smaller limit of a response to OpenAI's minimum of 16.
        assert one["response"] == chat(post, model, max_tokens=16)
        assert one["completion"] == complete(post, model)
        assert_same_embeddings(post, model, one["embeddings"])


def test_llm_command(run_client: RunClient, post: Post, tmp_path: Any) -> None:
    result = run_client("llm_client", LLM_USER_PATH=str(tmp_path / "llm"))
    for model in MODELS:
        expected = chat(post, model)
        assert result[model] == {"chat": expected, "stream": expected}

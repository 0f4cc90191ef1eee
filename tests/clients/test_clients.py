"""Clients that nobody here wrote, unmodified and pinned, get the answers that the server gives."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from server_process import ServerProcess

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


def test_guidellm(run_client: RunClient, tiny: Path) -> None:
    result = run_client("guidellm_client", str(tiny))
    assert len(result) == 3 * len(MODELS)
    for load in result.values():
        assert load["totals"] == {"successful": 12, "errored": 0, "incomplete": 0, "total": 12}
        for output, tokens in load["requests"]:
            assert output
            assert tokens == 8


# ------------------------------------------------------------------------- lm-evaluation-harness


class DirectEvaluation:
    """Plain transformers and PEFT on texts without a template, as the harness sends them."""

    def __init__(self, base: Path, adapter: Path | None) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        if adapter is not None:
            self.model = PeftModel.from_pretrained(self.model, adapter).eval()

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def loglikelihood(self, before: Sequence[int], ids: Sequence[int]) -> float:
        """Natural log probability of ``ids`` after ``before``."""
        with self.torch.inference_mode():
            logits = self.model(self.torch.tensor([[*before, *ids]])).logits[0]
        rows = logits.double().log_softmax(-1)[len(before) - 1 : -1]
        return float(rows.gather(1, self.torch.tensor(ids)[:, None]).sum())

    def generate(self, text: str, new_tokens: int) -> str:
        prompt = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")
        with self.torch.inference_mode():
            output = self.model.generate(**prompt, max_new_tokens=new_tokens, do_sample=False)
        ids = output[0, prompt.input_ids.shape[1] :]
        return self.tokenizer.decode(ids, skip_special_tokens=True).split("\n\n")[0]


TEXTS = (
    "The quick brown fox", "Type 2 diabetes", "Organic whole milk", "Commercial banking",
    "Acute appendicitis", "credit unions", "classify the following", "The lazy dog",
)  # fmt: skip
CHOICES = ("jumps over the dog", "of the digestive system", "and other lenders", "one gallon")


@pytest.fixture
def tasks(tmp_path: Path, tiny: Path) -> list[Path]:
    """A file of rows for each kind of task; half of the answers are those of the base."""
    direct = DirectEvaluation(tiny, None)
    rows: dict[str, list[dict[str, Any]]] = {
        "choices": [
            {"text": text, "choices": CHOICES, "answer": number % len(CHOICES)}
            for number, text in enumerate(TEXTS)
        ],
        "generation": [
            {"text": text, "answer": direct.generate(text, 8) if number % 2 else "no"}
            for number, text in enumerate(TEXTS)
        ],
        "rolling": [{"text": f"{text} {CHOICES[0]}"} for text in TEXTS],
    }
    files = [tmp_path / f"{name}.jsonl" for name in rows]
    for file, lines in zip(files, rows.values(), strict=True):
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return files


def test_lm_evaluation_harness(
    run_client: RunClient, server: ServerProcess, tiny: Path, tasks: list[Path]
) -> None:
    results = run_client("lm_eval_client", str(tiny), *map(str, tasks))
    seen = []
    for model in MODELS:
        adapter = None if model == "base" else server.workspace.parent / "plurals"
        direct = DirectEvaluation(tiny, adapter)
        result, scores = results[model], results[model]["scores"]
        rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in tasks]

        right = 0
        for row, (_, responses) in zip(rows[0], result["multiple_choice"], strict=True):
            context = direct.encode(row["text"])
            expected = []
            for choice, response in zip(row["choices"], responses, strict=True):
                ids = direct.encode(f"{row['text']} {choice}")[len(context) :]
                expected.append(direct.loglikelihood(context, ids))
                assert float(response[0][0]) == pytest.approx(expected[-1], rel=1e-6)
            right += expected.index(max(expected)) == row["answer"]
        accuracy = scores["multiple_choice"]["acc,none"]
        assert accuracy == pytest.approx(right / len(TEXTS), abs=1e-6)

        texts = [direct.generate(text, 8) for text in TEXTS]
        assert [responses[0][0] for _, responses in result["generate_until"]] == texts
        exact = sum(text == row["answer"] for text, row in zip(texts, rows[1], strict=True))
        exact_match = scores["generate_until"]["exact_match,none"]
        assert exact_match == pytest.approx(exact / len(TEXTS), abs=1e-6)

        first = [direct.tokenizer.bos_token_id]
        total = sum(direct.loglikelihood(first, direct.encode(row["text"])) for row in rows[2])
        size = sum(len(row["text"].encode()) for row in rows[2])
        bits = scores["loglikelihood_rolling"]["bits_per_byte,none"]
        assert bits == pytest.approx(-total / size / math.log(2), abs=1e-6)
        seen.append((accuracy, exact_match, bits))
    assert seen[0][1] >= 0.5
    assert seen[0] != seen[1]

"""``/v1/embeddings``: the mean of the last hidden states, for the base and for adapters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from openai import BadRequestError, OpenAI

from trunkline.api import Platform

TEXTS = ["Organic whole milk ✓", "a", "Acute appendicitis and other diseases " * 4]


@pytest.fixture(scope="module")
def reference(tiny: Path) -> Any:
    """transformers' own model of the base."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny).eval()


@pytest.fixture(scope="module")
def adapted(platform: Platform, tiny: Path) -> Any:
    """PEFT's own model of the newest ``toy/plurals``."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    version = platform.resolve("toy/plurals").version
    folder = platform.workspace.adapters / version.path
    model = AutoModelForCausalLM.from_pretrained(tiny)
    return PeftModel.from_pretrained(model, folder).eval()


def embed(model: Any, ids: list[int]) -> list[float]:
    """The documented formula, computed with transformers."""
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    mean = output.hidden_states[-1][0].double().mean(0)
    return (mean / mean.norm()).tolist()


@pytest.mark.parametrize("name", ["base", "toy/plurals"])
def test_embeddings_are_the_normalized_mean_of_the_last_hidden_states(
    client: OpenAI, platform: Platform, reference: Any, adapted: Any, name: str
) -> None:
    tokenizer = platform.engine.base.tokenizer
    answer = client.embeddings.create(model=name, input=TEXTS)
    ids = [tokenizer.encode(text) for text in TEXTS]
    model = reference if name == "base" else adapted
    for index, (one, tokens) in enumerate(zip(answer.data, ids, strict=True)):
        assert one.index == index
        assert one.embedding == pytest.approx(embed(model, tokens), abs=1e-5)
        assert math.hypot(*one.embedding) == pytest.approx(1, abs=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, ids))


@pytest.mark.parametrize("name", ["base", "toy/plurals", "toy/animals", "toy/prices"])
def test_token_ids_are_embedded_as_their_text(
    client: OpenAI, platform: Platform, name: str
) -> None:
    ids = [platform.engine.base.tokenizer.encode(text) for text in TEXTS]
    texts = client.embeddings.create(model=name, input=TEXTS, encoding_format="float")
    tokens = client.embeddings.create(model=name, input=ids, encoding_format="float")
    for one, other in zip(texts.data, tokens.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    single = client.embeddings.create(model=name, input=ids[0], encoding_format="float")
    assert single.data[0].embedding == pytest.approx(tokens.data[0].embedding, abs=1e-6)


def test_formats_contain_the_same_numbers(client: OpenAI) -> None:
    """The client requests base64 by default."""
    packed = client.embeddings.create(model="base", input="x").data[0].embedding
    plain = client.embeddings.create(model="base", input="x", encoding_format="float")
    assert packed == pytest.approx(plain.data[0].embedding, abs=1e-7)


def test_cached_prompt_is_embedded_again(client: OpenAI) -> None:
    text = "again and again and again and again " * 3
    client.completions.create(model="base", prompt=text, max_tokens=1)
    first, second = (client.embeddings.create(model="base", input=text) for _ in range(2))
    assert first.data[0].embedding == pytest.approx(second.data[0].embedding, abs=1e-6)


def test_text_of_the_longest_length_is_embedded(client: OpenAI, reference: Any) -> None:
    ids = [place * 7 % 200 + 3 for place in range(250)]
    answer = client.embeddings.create(model="base", input=[ids])
    assert answer.data[0].embedding == pytest.approx(embed(reference, ids), abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"dimensions": 8}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": None}, "input"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ],
)
def test_invalid_field_is_refused_by_name(
    http: TestClient, fields: dict[str, Any], param: str
) -> None:
    response = http.post("/v1/embeddings", json={"model": "base", "input": "x", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("given", ["", "  ", ["ok", ""], [10**6], [[5], [-1]]])
def test_input_without_a_meaning_is_refused(http: TestClient, given: Any) -> None:
    response = http.post("/v1/embeddings", json={"model": "base", "input": given})
    assert response.status_code in (400, 422)


def test_input_without_an_embedding_is_refused_by_name(http: TestClient) -> None:
    response = http.post("/v1/embeddings", json={"model": "base", "input": [0]})  # a zero vector
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "input"


def test_inputs_beyond_the_limits_are_refused(http: TestClient) -> None:
    for given in (["a"] * 9, "a" * 501, [5] * 501):
        response = http.post("/v1/embeddings", json={"model": "base", "input": given})
        assert response.status_code == 413


def test_input_beyond_the_context_is_refused_not_cut(http: TestClient) -> None:
    body = {"model": "base", "input": [5] * 257}
    assert http.post("/v1/embeddings", json=body).status_code == 422


def test_unknown_model_is_a_404(client: OpenAI, http: TestClient) -> None:
    response = http.post("/v1/embeddings", json={"model": "toy/none", "input": "x"})
    assert response.json()["error"]["code"] == "model_not_found"


def test_answer_names_the_version(http: TestClient) -> None:
    response = http.post("/v1/embeddings", json={"model": "toy/animals", "input": "x"})
    assert response.json()["model"] == response.headers["x-trunkline-version"] == "toy/animals@1"


def test_embedding_is_logged_and_counted(http: TestClient, platform: Platform) -> None:
    response = http.post(
        "/v1/embeddings",
        json={"model": "toy/animals", "input": "a cow"},
        headers={"x-request-id": "embedded"},
    )
    logged = platform.registry.requests.get("embedded")
    assert (logged.route, logged.version) == ("/v1/embeddings", "toy/animals@1")
    assert logged.prompt_tokens == response.json()["usage"]["prompt_tokens"]
    metrics = http.get("/metrics").text
    assert 'trunkline_http_responses_total{route="/v1/embeddings",status="200"}' in metrics


def test_number_of_dimensions_is_not_chosen_by_the_client(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="dimensions"):
        client.embeddings.create(model="base", input="x", dimensions=4)

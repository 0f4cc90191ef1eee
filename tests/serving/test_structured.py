"""``/v1/classify`` of several labels, ``/v1/tag`` and ``/v1/rank``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from trunkline.api import Platform
from trunkline.bases import describe
from trunkline.refs import Ref
from workbench import LABELS, make_artifact

TEXTS = ["a text of several words", "Straße №7, “ja”"]
DOCUMENTS = ["milk", "a loaf of bread", "tea"]


@pytest.fixture(scope="module", autouse=True)
def published(platform: Platform, tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> None:
    """Publish an adapter of each task."""
    kinds = {
        "colors": "multilabel", "drugs": "tagging", "next": "ranking", "plain": "generation",
    }  # fmt: skip
    for name, kind in kinds.items():
        folder = tmp_path_factory.mktemp(name) / "artifact"
        make_artifact(folder, tiny, kind, seed=5, max_length=120)
        digest = describe(str(tiny)).digest
        platform.store.publish(folder, Ref("toy", name), task=kind, run=None, base_digest=digest)


def post(http: TestClient, path: str, **body: Any) -> Any:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_labels_have_a_probability_from_the_threshold_on(http: TestClient) -> None:
    data = post(http, "/v1/classify", model="toy/colors", input=TEXTS)["data"]
    assert [one["index"] for one in data] == [0, 1]
    for one in data:
        assert "label" not in one
        assert list(one["probabilities"]) == LABELS
        over = [label for label, value in one["probabilities"].items() if value >= 0.4]
        assert one["labels"] == sorted(over)


def test_spans_are_parts_of_the_text(http: TestClient, platform: Platform) -> None:
    data = post(http, "/v1/tag", model="toy/drugs", input=TEXTS)["data"]
    answers = platform.predict("toy/drugs", TEXTS)
    assert any(one["spans"] for one in data)
    for text, one, answer in zip(TEXTS, data, answers, strict=True):
        assert one["spans"] == answer.to_json()["spans"]
        for span in one["spans"]:
            assert span["text"] == text[span["start"] : span["end"]]
            assert span["label"] in LABELS
            assert 0 < span["probability"] <= 1


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/rerank"])
def test_documents_are_ranked(http: TestClient, platform: Platform, path: str) -> None:
    body = {"model": "toy/next", "query": "breakfast", "documents": DOCUMENTS}
    results = post(http, path, **body)["results"]
    expected = platform.rank("toy/next", "breakfast", DOCUMENTS)
    assert tuple(one["document"]["text"] for one in results) == expected.candidates
    assert [one["relevance_score"] for one in results] == pytest.approx(expected.probabilities)
    assert [DOCUMENTS[one["index"]] for one in results] == list(expected.candidates)
    for unset in ({"return_documents": None}, {"top_n": 0}, {"max_tokens_per_doc": None}):
        again = post(http, path, **body, **unset)["results"]
        assert [one["document"] for one in again] == [one["document"] for one in results]
    (first,) = post(http, path, **body, top_n=1, return_documents=False)["results"]
    score = pytest.approx(results[0]["relevance_score"])
    assert first == {"index": results[0]["index"], "relevance_score": score}


REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "a tagging at classify": (
        "/v1/classify", {"model": "toy/drugs", "input": "a"}, "/v1/tag", "model",
    ),
    "a ranking at classify": (
        "/v1/classify", {"model": "toy/next", "input": "a"}, "/v1/rank", "model",
    ),
    "a ranking at chat": (
        "/v1/chat/completions",
        {"model": "toy/next", "messages": [{"role": "user", "content": "a"}]}, "/v1/rank", "model",
    ),
    "labels at tag": ("/v1/tag", {"model": "toy/colors", "input": "a"}, "/v1/classify", "model"),
    "the base at rank": (
        "/v1/rank", {"model": "base", "query": "a", "documents": ["b", "c"]}, "chat", "model",
    ),
    "an empty input": ("/v1/tag", {"model": "toy/drugs", "input": []}, "empty", "input"),
    "an unknown field": (
        "/v1/tag", {"model": "toy/drugs", "input": "a", "abstain": 0.9}, "abstain", "abstain",
    ),
    "one document": (
        "/v1/rank", {"model": "toy/next", "query": "a", "documents": ["b"]}, "two or more",
        "documents",
    ),
    "a document twice": (
        "/v1/rank", {"model": "toy/next", "query": "a", "documents": ["b", "b"]}, "twice",
        "documents",
    ),
    "documents that are objects": (
        "/v1/rank", {"model": "toy/next", "query": "a", "documents": [{"text": "b"}]}, "documents",
        "documents[0]",
    ),
    "a number of documents below zero": (
        "/v1/rank", {"model": "toy/next", "query": "a", "documents": ["b", "c"], "top_n": -1},
        "top_n", "top_n",
    ),
    "an empty query": (
        "/v1/rank", {"model": "toy/next", "query": " ", "documents": ["b", "c"]}, "empty", "query",
    ),
    "an invisible query": (
        "/v1/rank", {"model": "toy/next", "query": "\u200b", "documents": ["b", "c"]}, "empty",
        "query",
    ),
    "an invisible document": (
        "/v1/rank", {"model": "toy/next", "query": "a", "documents": ["b", "\u2060"]}, "no text",
        "documents",
    ),
    "abstaining labels": (
        "/v1/classify", {"model": "toy/colors", "input": "a", "abstain": 0.9},
        "only a classification abstains", "abstain",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_request_that_does_not_fit_is_refused(http: TestClient, case: str) -> None:
    path, body, part, param = REFUSED[case]
    response = http.post(path, json=body)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert part in error["message"]
    assert error["param"] == param


INVISIBLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "tag": ("/v1/tag", {"model": "toy/drugs", "input": "\u200b\u200d"}, "input"),
    "classify": ("/v1/classify", {"model": "toy/colors", "input": ["a", "\ufeff "]}, "input[1]"),
    "embeddings": ("/v1/embeddings", {"model": "base", "input": "\u00ad"}, "input"),
    "chat": (
        "/v1/chat/completions",
        {"model": "base", "messages": [{"role": "user", "content": "\u2060"}]}, "messages",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", INVISIBLE)
def test_text_of_invisible_characters_is_empty(http: TestClient, case: str) -> None:
    path, body, param = INVISIBLE[case]
    error = http.post(path, json=body).json()["error"]
    assert "The text is empty" in error["message"]
    assert error["param"] == param


def test_more_documents_than_the_limit_are_refused(http: TestClient) -> None:
    documents = [f"document {number}" for number in range(9)]
    body = {"model": "toy/next", "query": "a", "documents": documents}
    error = http.post("/v1/rank", json=body).json()["error"]
    assert "8" in error["message"]
    assert error["param"] == "documents"


@pytest.mark.parametrize(
    ("path", "field"), [("/v1/chat/completions", "messages"), ("/v1/responses", "input")]
)
def test_history_for_an_adapter_of_single_texts_names_the_field(
    http: TestClient, path: str, field: str
) -> None:
    messages = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    error = http.post(path, json={"model": "toy/plain", field: messages}).json()["error"]
    assert (error["code"], error["param"]) == ("single_text", field)


def test_document_that_leaves_no_room_for_the_query_is_named(http: TestClient) -> None:
    body = {"model": "toy/next", "query": "a", "documents": ["b", "c" * 300]}
    error = http.post("/v1/rank", json=body).json()["error"]
    assert "The candidate 'cccc" in error["message"]
    assert error["param"] == "documents[1]"


def test_query_counts_as_text_of_the_request(http: TestClient) -> None:
    body = {"model": "toy/next", "query": "a" * 600, "documents": ["b", "c"]}
    response = http.post("/v1/rank", json=body)
    assert response.status_code == 413
    assert "602 characters" in response.json()["error"]["message"]


def test_models_name_their_task(http: TestClient) -> None:
    tasks = {one["id"]: one["task"] for one in http.get("/v1/models").json()["data"]}
    assert tasks["toy/colors"] == "multilabel"
    assert tasks["toy/drugs"] == "tagging"
    assert tasks["toy/next"] == "ranking"

"""OpenAI's client, unmodified, and other clients of the application, on a tiny base."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from openai import OpenAI

from server_process import openai_client, ready_client
from trunkline.api import Platform
from trunkline.inference.engine import Engine
from trunkline.inference.request import Request
from trunkline.inference.sampling import InvalidLogits
from trunkline.inference.step import Stepper, StepResult
from trunkline.refs import Ref
from trunkline.registry.registry import Registry
from trunkline.serving import metrics
from trunkline.serving.settings import ServerSettings
from trunkline.workspace import Workspace
from workbench import LABELS, opened

MESSAGES: Any = [{"role": "user", "content": "The quick brown fox"}]
LIMITS = ServerSettings(max_inputs=8, max_prompt_chars=500, max_new_tokens=40)


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, site_template: Path, tiny: Path
) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("client") / "site"
    for platform in opened(Path(shutil.copytree(site_template, folder)), tiny):
        yield platform
        platform.engine.close()


@pytest.fixture(scope="module")
def http(platform: Platform) -> Iterator[TestClient]:
    with ready_client(platform, LIMITS) as client:
        yield client


@pytest.fixture
def client(http: TestClient) -> OpenAI:
    return openai_client(http)


def greedy(**fields: Any) -> dict[str, Any]:
    return {"model": "base", "messages": MESSAGES, "temperature": 0, "max_tokens": 6, **fields}


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
    response = client.chat.completions.create(**greedy())
    (choice,) = response.choices
    assert (response.model, choice.message.role) == ("base", "assistant")
    assert choice.finish_reason in ("stop", "length")
    usage = response.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 1 <= usage.completion_tokens <= 6


def test_response_names_the_version_that_answered(client: OpenAI, platform: Platform) -> None:
    body = greedy(model="toy/plurals")
    raw = client.chat.completions.with_raw_response.create(**body)
    version = platform.resolve("toy/plurals").version
    assert raw.parse().model == raw.headers["x-trunkline-version"] == "toy/plurals@2"
    assert raw.headers["x-trunkline-digest"] == version.digest


def test_stream_equals_the_answer(client: OpenAI) -> None:
    expected = client.chat.completions.create(**greedy(model="toy/plurals"))
    chunks = list(client.chat.completions.create(**greedy(model="toy/plurals"), stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == expected.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == expected.choices[0].finish_reason
    assert {chunk.model for chunk in chunks} == {"toy/plurals@2"}


def test_stream_ends_with_its_usage_on_request(client: OpenAI) -> None:
    expected = client.chat.completions.create(**greedy())
    body = greedy(stream=True, stream_options={"include_usage": True})
    *chunks, last = client.chat.completions.create(**body)
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage.completion_tokens == expected.usage.completion_tokens


def test_several_answers_are_several_choices(client: OpenAI) -> None:
    response = client.chat.completions.create(**greedy(n=3, temperature=1, seed=1))
    assert [choice.index for choice in response.choices] == [0, 1, 2]
    assert response.usage.completion_tokens > 3


def test_stream_of_several_choices_equals_the_answer(client: OpenAI) -> None:
    body = greedy(n=3, temperature=1, seed=1)
    expected = [one.message.content for one in client.chat.completions.create(**body).choices]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**body, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == expected


def test_same_seed_gives_the_same_answer(client: OpenAI) -> None:
    body = greedy(temperature=1, seed=5, max_tokens=20)
    texts = {client.chat.completions.create(**body).choices[0].message.content for _ in range(3)}
    assert len(texts) == 1


def test_answers_without_a_seed_differ(client: OpenAI) -> None:
    body = {"model": "base", "messages": MESSAGES, "max_tokens": 20}
    texts = {client.chat.completions.create(**body).choices[0].message.content for _ in range(3)}
    assert len(texts) > 1


def test_answer_ends_before_a_stop_text(client: OpenAI) -> None:
    body = greedy(max_tokens=30)
    expected = client.chat.completions.create(**body).choices[0].message.content
    stop = expected[3:5]
    response = client.chat.completions.create(**body, stop=[stop]).choices[0]
    assert response.message.content == expected[: expected.index(stop)]
    assert response.finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_every_token_has_log_probabilities(client: OpenAI, stream: bool) -> None:
    body = greedy(logprobs=True, top_logprobs=2)
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


def test_usage_counts_cached_prompt_tokens(client: OpenAI) -> None:
    body = greedy(messages=[{"role": "user", "content": "again and again " * 8}])
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
    assert {len(top) for top in scores.top_logprobs} == {5}
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
    response = http.post("/v1/chat/completions", json=greedy(logprobs=True, top_logprobs=21))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "top_logprobs")


def test_image_is_refused(http: TestClient) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    body = greedy(messages=[{"role": "user", "content": parts}])
    error = http.post("/v1/chat/completions", json=body).json()["error"]
    assert error["param"] == "messages[0]"
    assert "'text'" in error["message"]


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
def test_unknown_model_is_not_found(client: OpenAI, model: str, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**greedy(model=model), stream=stream)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"temperature": 11}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 17}, "n can't be 17"),
        ({"n": 0}, "n can't be 0"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"max_tokens": 41}, "max_tokens"),
        ({"max_tokens": 0}, "max_new_tokens"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
        ({"seed": -1}, "seed"),
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
        client.chat.completions.create(**greedy(**fields))
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


# ------------------------------------------------------------------------------------------ keys


@dataclass(frozen=True)
class SharedEnginePlatform(Platform):
    """A platform with its own registry, which waits briefly for locks, and another's engine."""

    owner: Platform | None = None

    @cached_property
    def registry(self) -> Registry:
        return Registry.open(self.workspace.registry_url, busy_seconds=0.2)

    @cached_property
    def engine(self) -> Engine:
        assert self.owner is not None
        return self.owner.engine


@pytest.fixture
def keyed(site: Path, platform: Platform) -> Iterator[tuple[TestClient, Platform]]:
    """A server with its own registry, on the module's engine."""
    own = SharedEnginePlatform(
        workspace=Workspace(site), base_name=platform.base_name, no_plugins=True, owner=platform
    )
    with ready_client(own, LIMITS) as client:
        yield client, own
    own.registry.close()


def test_key_uses_and_lists_only_its_adapters(
    keyed: tuple[TestClient, Platform],
) -> None:
    http, platform = keyed
    _, secret = platform.registry.keys.create("me", ["toy/plurals"])
    client = openai_client(http, secret)
    assert {model.id.partition("@")[0] for model in client.models.list()} == {"toy/plurals"}
    assert client.chat.completions.create(**greedy(model="toy/plurals")).model == "toy/plurals@2"
    for hidden in ("base", "toy/animals"):
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**greedy(model=hidden))
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(hidden)


def test_administrator_lists_only_the_residents_that_the_key_covers(
    keyed: tuple[TestClient, Platform],
) -> None:
    http, platform = keyed
    for model in ("toy/plurals", "base"):
        http.post("/v1/chat/completions", json=greedy(model=model))
    http.post("/v1/classify", json={"model": "toy/animals", "input": "a cow"})
    _, secret = platform.registry.keys.create("me", ["toy/plurals"], admin=True)
    response = http.get("/admin/residents", headers={"authorization": f"Bearer {secret}"}).json()
    assert {resident["name"] for resident in response["data"]} == {"toy/plurals@2"}
    assert len(platform.engine.pool) > 1


def test_wrong_key_is_refused(keyed: tuple[TestClient, Platform]) -> None:
    http, platform = keyed
    platform.registry.keys.create("me")
    client = openai_client(http, "x")
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_request_log_names_the_key_and_the_version(keyed: tuple[TestClient, Platform]) -> None:
    http, platform = keyed
    record, secret = platform.registry.keys.create("me")
    headers = {"authorization": f"Bearer {secret}"}
    response = http.post(
        "/v1/classify", json={"model": "toy/animals", "input": "x"}, headers=headers
    )
    logged = platform.registry.requests.get(response.headers["x-request-id"])
    assert (logged.key, logged.model, logged.version, logged.status) == (
        record.id, "toy/animals", "toy/animals@1", 200,
    )  # fmt: skip
    assert logged.digest == platform.resolve("toy/animals").digest
    assert logged.prompt_tokens == response.json()["usage"]["prompt_tokens"]


# ----------------------------------------------------------------------------- failing request log


def test_answer_is_withheld_if_its_log_line_fails(
    keyed: tuple[TestClient, Platform],
) -> None:
    http, platform = keyed
    body = {"model": "toy/animals", "input": "a cow"}
    with locked(platform):
        response = http.post("/v1/classify", json=body)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "registry_unavailable"
    assert http.post("/v1/classify", json=body).status_code == 200


def test_stream_ends_with_an_error_if_its_log_line_fails(
    keyed: tuple[TestClient, Platform],
) -> None:
    http, platform = keyed
    with locked(platform):
        response = http.post("/v1/chat/completions", json=greedy(stream=True))
    *_, last = response.text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "registry_unavailable"


@pytest.mark.parametrize("stream", [False, True])
def test_id_taken_during_the_request_loses_neither_the_answer_nor_its_log_line(
    keyed: tuple[TestClient, Platform], monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    http, platform = keyed
    first = http.post("/v1/chat/completions", json=greedy(), headers={"x-request-id": "twice"})
    app: Any = http.app
    monkeypatch.setattr(app.state.service, "id_is_free", lambda _: True)
    second = http.post(
        "/v1/chat/completions", json=greedy(stream=stream), headers={"x-request-id": "twice"}
    )
    assert (first.status_code, second.status_code) == (200, 200)
    assert not stream or second.text.endswith("data: [DONE]\n\n")
    logged = [row.id for row in platform.registry.requests.list()]
    assert len(logged) == 2
    assert {id.partition("-")[0] for id in logged} == {"twice"}
    assert stream or second.headers["x-request-id"] in logged


def test_error_does_not_contain_the_workspace_path(keyed: tuple[TestClient, Platform]) -> None:
    http, platform = keyed
    version = platform.resolve("toy/prices").version
    weights = platform.workspace.adapters / version.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for resident in platform.engine.pool.residents():
        platform.engine.pool.unload(resident.digest)
    response = http.post("/v1/regress", json={"model": "toy/prices", "input": "tea"})
    assert response.status_code == 422
    assert str(platform.workspace.root) not in response.text
    assert "adapter_model.safetensors" in response.text


def test_failed_stream_is_logged_if_its_client_disconnects_meanwhile(
    keyed: tuple[TestClient, Platform], monkeypatch: pytest.MonkeyPatch
) -> None:
    http, platform = keyed
    app: Any = http.app
    failed = threading.Event()

    def run_step(stepper: Stepper, parts: Any) -> StepResult:
        """The first of two prompts breaks; the step after that takes long."""
        if failed.is_set():
            time.sleep(0.5)
            return stepper.run(parts)
        result = stepper.run(parts)
        if len(result.sampled) < 2:
            return result
        failed.set()
        return StepResult(result.sampled[1:], [], [(result.sampled[0][0], InvalidLogits((0,)))])

    monkeypatch.setattr(platform.engine, "run_step", run_step)
    body = {"model": "base", "prompt": ["a", "b"], "max_tokens": 30, "stream": True}
    coming = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Any:
        if coming:
            return coming.pop()
        await asyncio.to_thread(failed.wait, 30)
        await asyncio.sleep(0.1)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None: ...

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "path": "/v1/completions", "raw_path": b"/v1/completions", "root_path": "",
        "query_string": b"", "scheme": "http", "headers": [*headers, (b"x-request-id", b"left")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    assert http.portal is not None
    http.portal.call(app, scope, receive, send)
    assert platform.registry.requests.get("left").status == InvalidLogits.http_status


@contextmanager
def locked(platform: Platform) -> Iterator[None]:
    """Another process holds the registry's write lock."""
    path = platform.workspace.registry_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


# ------------------------------------------------------------------------------------------ aliases


def test_next_request_follows_a_moved_alias(
    keyed: tuple[TestClient, Platform],
) -> None:
    http, platform = keyed
    body = {"model": "toy/animals", "input": "a cow"}
    before = http.post("/v1/classify", json=body).json()["model"]
    platform.registry.aliases.set(Ref("toy", "animals", "2"), "champion")
    after = http.post("/v1/classify", json=body).json()["model"]
    assert (before, after) == ("toy/animals@1", "toy/animals@2")


def test_promotion_obeys_the_gate(keyed: tuple[TestClient, Platform]) -> None:
    http, _ = keyed
    refused = http.post("/admin/promote", json={"ref": "toy/animals@2"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "refused")
    forced = {"ref": "toy/animals@2", "force": True, "reason": "a test"}
    response = http.post("/admin/promote", json=forced).json()
    assert (response["old"], response["new"], response["forced"]) == (1, 2, True)
    assert http.get("/v1/models/toy/animals").json()["root"] == "toy/animals@2"


# ----------------------------------------------------------------------------------------- admin


def test_adapters_are_loaded_pinned_and_unloaded(http: TestClient, platform: Platform) -> None:
    ref = {"ref": "toy/plurals@1"}
    digest = platform.resolve("toy/plurals@1").digest
    assert http.post("/admin/load", json=ref).json()["digest"] == digest
    http.post("/admin/pin", json={**ref, "pinned": True})
    residents = {one["digest"]: one for one in http.get("/admin/residents").json()["data"]}
    assert (residents[digest]["name"], residents[digest]["pinned"]) == ("toy/plurals@1", True)
    http.post("/admin/pin", json={**ref, "pinned": False})
    assert http.post("/admin/unload", json=ref).status_code == 200
    assert digest not in {one["digest"] for one in http.get("/admin/residents").json()["data"]}
    assert http.post("/admin/unload", json=ref).status_code == 404


@pytest.mark.parametrize("path", ["/admin/unload", "/admin/pin"])
def test_error_for_an_adapter_not_in_memory_names_its_ref(http: TestClient, path: str) -> None:
    http.post("/admin/load", json={"ref": "toy/prices"})
    http.post("/admin/unload", json={"ref": "toy/prices"})
    response = http.post(path, json={"ref": "toy/prices"})
    assert response.status_code == 404
    message = response.json()["error"]["message"]
    assert message == "toy/prices@1 is not in memory. Load it with POST /admin/load."


def test_state_counts_requests_in_flight(http: TestClient) -> None:
    response = http.get("/admin/state").json()
    assert (response["in_flight"], response["running"], response["draining"]) == (1, 0, False)


def test_routes_are_described(http: TestClient) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/classify", "/admin/load"} <= set(paths)


def test_base_can_be_neither_loaded_nor_promoted(http: TestClient) -> None:
    for path in ("/admin/load", "/admin/unload", "/admin/pin", "/admin/promote"):
        assert http.post(path, json={"ref": "base"}).status_code == 404


# --------------------------------------------------------------------------------------- metrics


def test_metrics_name_the_versions_that_answered(http: TestClient) -> None:
    http.post("/v1/classify", json={"model": "toy/animals", "input": "a cow"})
    text = http.get("/metrics").text
    for line in (
        'trunkline_requests_total{outcome="done",version="toy/animals@1"}',
        'trunkline_adapter_pool_loads_total{version="toy/animals@1"}',
        'trunkline_adapter_pool_resident_bytes{tier="device",version="toy/animals@1"}',
        'trunkline_http_responses_total{route="/v1/classify",status="200"}',
        "trunkline_batch_running 0.0",
    ):
        assert line in text


def test_loads_and_evictions_beyond_the_limit_count_as_other(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = metrics.Metrics(max_versions=0)
    limited.watch(platform.engine)
    pool = platform.engine.pool
    artifact = platform.resolve_request(Request("toy/animals", "a cow")).artifact
    assert artifact is not None
    pool.load(artifact, "toy/animals@1")
    counters = [counter for _, counter in pool.all_counters()]
    lines = limited.render(0).decode().splitlines()
    for name in ("loads", "evictions"):
        total = float(sum(getattr(counter, name) for counter in counters))
        assert f'trunkline_adapter_pool_{name}_total{{version="other"}} {total}' in lines
    assert sum(counter.loads for counter in counters) > 0


def test_unknown_names_do_not_appear_in_the_metrics(http: TestClient) -> None:
    def series() -> set[str]:
        lines = http.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    def request_unknown(number: int) -> None:
        body = {"model": f"toy/invented-{number}", "input": "x"}
        assert http.post("/v1/classify", json=body).status_code == 404
        assert http.get(f"/invented/{number}").status_code == 404

    request_unknown(0)
    before = series()
    for number in range(1, 30):
        request_unknown(number)
    assert series() == before
    assert not [line for line in before if "invented" in line]

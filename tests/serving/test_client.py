"""An unmodified OpenAI client against the application, on the tiny base."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from openai import OpenAI

from trunkline.api import Platform
from trunkline.inference.request import Request
from trunkline.inference.sampling import BrokenLogits
from trunkline.inference.step import Result
from trunkline.refs import Ref
from trunkline.registry.registry import Registry
from trunkline.serving import metrics
from trunkline.serving.app import create_app
from trunkline.serving.settings import ServerSettings
from workbench import LABELS, opened

SAID: Any = [{"role": "user", "content": "The quick brown fox"}]
LIMITS = ServerSettings(max_inputs=8, max_prompt_chars=500, max_new_tokens=40)


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, made_site: Path, tiny: Path
) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("client") / "site"
    for platform in opened(Path(shutil.copytree(made_site, folder)), tiny):
        yield platform
        platform.engine.close()


@pytest.fixture(scope="module")
def http(platform: Platform) -> Iterator[TestClient]:
    with TestClient(create_app(platform, LIMITS), base_url="http://127.0.0.1") as client:
        while client.get("/ready").status_code != 200:
            time.sleep(0.02)
        yield client


@pytest.fixture
def client(http: TestClient) -> OpenAI:
    return OpenAI(
        base_url="http://127.0.0.1/v1", api_key="x", http_client=http, max_retries=0, timeout=None
    )


def greedy(**fields: Any) -> dict[str, Any]:
    return {"model": "base", "messages": SAID, "temperature": 0, "max_tokens": 6, **fields}


# --------------------------------------------------------------------------------------- models


def test_the_list_leads_to_every_model(client: OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert [id for id in listed if "animals" in id] == [
        "toy/animals", "toy/animals@champion", "toy/animals@2", "toy/animals@1",
    ]  # fmt: skip
    for id, model in listed.items():
        assert client.models.retrieve(id) == model


def test_an_adapter_names_its_parent_and_its_version(http: TestClient) -> None:
    told = http.get("/v1/models/toy/animals").json()
    assert (told["root"], told["task"]) == ("toy/animals@1", "classification")
    assert told["parent"] == http.get("/ready").json()["base"]


# ----------------------------------------------------------------------------------------- chat


def test_chat_answers_and_counts(client: OpenAI) -> None:
    told = client.chat.completions.create(**greedy())
    (choice,) = told.choices
    assert (told.model, choice.message.role) == ("base", "assistant")
    assert choice.finish_reason in ("stop", "length")
    assert told.usage is not None
    assert told.usage.total_tokens == told.usage.prompt_tokens + told.usage.completion_tokens
    assert 1 <= told.usage.completion_tokens <= 6


def test_an_adapters_name_is_answered_by_one_version(client: OpenAI, platform: Platform) -> None:
    asked = greedy(model="toy/plurals")
    raw = client.chat.completions.with_raw_response.create(**asked)
    version = platform.resolve("toy/plurals").version
    assert raw.parse().model == raw.headers["x-trunkline-version"] == "toy/plurals@2"
    assert raw.headers["x-trunkline-digest"] == version.digest


def test_the_stream_of_an_answer_is_that_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(**greedy(model="toy/plurals"))
    chunks = list(client.chat.completions.create(**greedy(model="toy/plurals"), stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert {chunk.model for chunk in chunks} == {"toy/plurals@2"}


def test_a_stream_tells_its_usage_when_asked(client: OpenAI) -> None:
    whole = client.chat.completions.create(**greedy())
    asked = greedy(stream=True, stream_options={"include_usage": True})
    *chunks, last = client.chat.completions.create(**asked)
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_several_answers_are_several_choices(client: OpenAI) -> None:
    told = client.chat.completions.create(**greedy(n=3, temperature=1, seed=1))
    assert [choice.index for choice in told.choices] == [0, 1, 2]
    assert told.usage.completion_tokens > 3


def test_choices_of_a_stream_are_told_apart(client: OpenAI) -> None:
    asked = greedy(n=3, temperature=1, seed=1)
    whole = [one.message.content for one in client.chat.completions.create(**asked).choices]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == whole


def test_a_seed_repeats_itself(client: OpenAI) -> None:
    asked = greedy(temperature=1, seed=5, max_tokens=20)
    texts = {client.chat.completions.create(**asked).choices[0].message.content for _ in range(3)}
    assert len(texts) == 1


def test_without_a_seed_answers_differ(client: OpenAI) -> None:
    asked = {"model": "base", "messages": SAID, "max_tokens": 20}
    texts = {client.chat.completions.create(**asked).choices[0].message.content for _ in range(3)}
    assert len(texts) > 1


def test_an_answer_ends_before_its_stop(client: OpenAI) -> None:
    asked = greedy(max_tokens=30)
    whole = client.chat.completions.create(**asked).choices[0].message.content
    stop = whole[3:5]
    told = client.chat.completions.create(**asked, stop=[stop]).choices[0]
    assert told.message.content == whole[: whole.index(stop)]
    assert told.finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_come_with_every_token(client: OpenAI, stream: bool) -> None:
    asked = greedy(logprobs=True, top_logprobs=2)
    if stream:
        chunks = client.chat.completions.create(**asked, stream=True)
        scores = [
            score
            for chunk in chunks
            if chunk.choices[0].logprobs
            for score in chunk.choices[0].logprobs.content
        ]
    else:
        scores = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert len(scores) == 6
    assert all(score.logprob <= 0 and len(score.top_logprobs) == 2 for score in scores)
    assert all(score.logprob == score.top_logprobs[0].logprob for score in scores)


def test_a_prompt_seen_before_is_told_as_cached(client: OpenAI) -> None:
    asked = greedy(messages=[{"role": "user", "content": "again and again " * 8}])
    client.chat.completions.create(**asked)
    assert client.chat.completions.create(**asked).usage.prompt_tokens_details.cached_tokens > 0


# ---------------------------------------------------------------------------------- completions


def test_the_base_continues_a_prompt_as_it_is(client: OpenAI, platform: Platform) -> None:
    told = client.completions.create(model="base", prompt="The quick", temperature=0, max_tokens=5)
    tokens = platform.engine.base.tokenizer("The quick", add_special_tokens=False)["input_ids"]
    assert told.usage.prompt_tokens - len(tokens) in (0, 1)


def test_prompts_are_answered_in_their_order(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "base", "temperature": 0, "max_tokens": 5}
    prompts = ["The quick", "Acute", "Organic whole milk"]
    alone = [
        client.completions.create(**asked, prompt=prompt).choices[0].text for prompt in prompts
    ]
    told = client.completions.create(**asked, prompt=prompts, n=2)
    assert [choice.index for choice in told.choices] == [0, 1, 2, 3, 4, 5]
    assert [choice.text for choice in told.choices] == [text for text in alone for _ in range(2)]


def test_prompts_of_a_stream_are_told_apart(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "toy/plurals", "temperature": 0, "max_tokens": 5}
    prompts = ["one", "two"]
    whole = [choice.text for choice in client.completions.create(**asked, prompt=prompts).choices]
    texts = ["", ""]
    for chunk in client.completions.create(**asked, prompt=prompts, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == whole


def test_completions_have_log_probabilities(client: OpenAI) -> None:
    told = client.completions.create(
        model="base", prompt="The", logprobs=2, max_tokens=4, temperature=0
    )
    scores = told.choices[0].logprobs
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.text_offset) == 4


def test_parts_of_characters_keep_their_own_scores_and_the_characters_place(
    client: OpenAI,
) -> None:
    asked: dict[str, Any] = {
        "model": "base", "prompt": "The", "logprobs": 5, "max_tokens": 40, "seed": 3,
    }  # fmt: skip
    told = client.completions.create(**asked).choices[0]
    scores, parts = told.logprobs, 0
    assert {len(top) for top in scores.top_logprobs} == {5}
    for token, offset in zip(scores.tokens, scores.text_offset, strict=True):
        if token.startswith("token_id:"):
            parts += 1
        elif offset < len(told.text):
            assert told.text[offset : offset + len(token)] == token
    assert parts > 3
    streamed = [
        one
        for chunk in client.completions.create(**asked, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.text_offset
    ]
    assert streamed == scores.text_offset


def test_more_likeliest_tokens_than_there_are_told_name_their_own_field(http: TestClient) -> None:
    response = http.post("/v1/chat/completions", json=greedy(logprobs=True, top_logprobs=21))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "top_logprobs")


def test_an_image_is_told_to_be_no_text(http: TestClient) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    body = greedy(messages=[{"role": "user", "content": parts}])
    error = http.post("/v1/chat/completions", json=body).json()["error"]
    assert error["param"] == "messages[0]"
    assert "'text'" in error["message"]


def test_an_empty_text_among_others_is_told_by_its_place(http: TestClient) -> None:
    response = http.post("/v1/classify", json={"model": "toy/animals", "input": ["a cow", ""]})
    assert response.status_code == 422
    assert response.json()["error"]["message"].startswith("Text 2 of 2: ")


# ----------------------------------------------------------------------------- labels and numbers


def test_texts_are_classified_in_their_order(http: TestClient, platform: Platform) -> None:
    texts = ["a robin", "a herring", "a cow"]
    told = http.post("/v1/classify", json={"model": "toy/animals", "input": texts}).json()
    assert (told["model"], told["object"]) == ("toy/animals@1", "list")
    expected = platform.predict("toy/animals@1", texts)
    for index, (one, answer) in enumerate(zip(told["data"], expected, strict=True)):
        assert (one["index"], one["label"]) == (index, answer.label)
        assert set(one["probabilities"]) == set(LABELS)
        assert sum(one["probabilities"].values()) == pytest.approx(1)


def test_one_text_is_a_list_of_one(http: TestClient) -> None:
    told = http.post("/v1/classify", json={"model": "toy/animals@2", "input": "a cow"}).json()
    assert (told["model"], len(told["data"])) == ("toy/animals@2", 1)


def test_a_regression_has_its_unit(http: TestClient) -> None:
    told = http.post("/v1/regress", json={"model": "toy/prices", "input": ["tea"]}).json()
    assert told["data"][0]["unit"] == "EUR"
    assert isinstance(told["data"][0]["value"], float)
    assert told["usage"]["completion_tokens"] == 0


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("model", ["gpt-4o", "toy/none", "toy/plurals@9", "toy/plurals@nobody"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_not_found(client: OpenAI, model: str, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**greedy(model=model), stream=stream)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "named"),
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
def test_a_wrong_request_is_told_what_is_wrong(
    client: OpenAI, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**greedy(**fields))
    assert named in caught.value.message


@pytest.mark.parametrize(
    ("path", "model", "named"),
    [
        ("/v1/classify", "toy/plurals", "/v1/chat/completions"),
        ("/v1/classify", "toy/prices", "/v1/regress"),
        ("/v1/regress", "toy/animals", "/v1/classify"),
        ("/v1/classify", "base", "/v1/chat/completions"),
    ],
)
def test_the_wrong_route_names_the_right_one(
    http: TestClient, path: str, model: str, named: str
) -> None:
    response = http.post(path, json={"model": model, "input": "x"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "wrong_task")
    assert named in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("texts", "status"),
    [(["a"] * 9, 413), (["a" * 501], 413), ([], 400), ([""], 422), (["ok", "  "], 422)],
)
def test_texts_beyond_the_limits_are_refused(
    http: TestClient, texts: list[str], status: int
) -> None:
    response = http.post("/v1/classify", json={"model": "toy/animals", "input": texts})
    assert response.status_code == status


def test_a_prompt_beyond_the_context_is_refused(http: TestClient) -> None:
    body = {"model": "base", "prompt": "é ü ñ ß " * 60, "max_tokens": 2}
    assert http.post("/v1/completions", json=body).status_code == 422


def test_half_a_character_is_told_and_breaks_nothing(http: TestClient) -> None:
    kind = {"content-type": "application/json"}
    body = b'{"model": "toy/animals", "input": "\\ud800"}'
    response = http.post("/v1/classify", content=body, headers=kind)
    assert response.status_code == 400
    assert "surrogate" in response.json()["error"]["message"]


# ------------------------------------------------------------------------------------------ keys


@pytest.fixture
def keyed(site: Path, platform: Platform) -> Iterator[tuple[TestClient, Platform]]:
    """A server with its own registry, on the module's engine."""
    made = Platform(
        workspace=type(platform.workspace)(site), base_name=platform.base_name, no_plugins=True
    )
    made.__dict__["engine"] = platform.engine
    made.__dict__["registry"] = Registry.open(made.workspace.registry_url, busy_seconds=0.2)
    with TestClient(create_app(made, LIMITS), base_url="http://127.0.0.1") as client:
        while client.get("/ready").status_code != 200:
            time.sleep(0.02)
        yield client, made
    made.registry.close()


def test_a_key_reaches_what_it_may_use_and_sees_no_more(
    keyed: tuple[TestClient, Platform],
) -> None:
    http, platform = keyed
    _, plain = platform.registry.keys.create("me", ["toy/plurals"])
    client = OpenAI(base_url="http://127.0.0.1/v1", api_key=plain, http_client=http, max_retries=0)
    assert {model.id.partition("@")[0] for model in client.models.list()} == {"toy/plurals"}
    assert client.chat.completions.create(**greedy(model="toy/plurals")).model == "toy/plurals@2"
    for hidden in ("base", "toy/animals"):
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**greedy(model=hidden))
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(hidden)


def test_an_admin_sees_the_residents_that_the_key_covers(
    keyed: tuple[TestClient, Platform],
) -> None:
    http, platform = keyed
    for model in ("toy/plurals", "base"):
        http.post("/v1/chat/completions", json=greedy(model=model))
    http.post("/v1/classify", json={"model": "toy/animals", "input": "a cow"})
    _, plain = platform.registry.keys.create("me", ["toy/plurals"], admin=True)
    told = http.get("/admin/residents", headers={"authorization": f"Bearer {plain}"}).json()
    assert {one["name"] for one in told["data"]} == {"toy/plurals@2"}
    assert len(platform.engine.pool) > 1


def test_a_wrong_key_is_refused(keyed: tuple[TestClient, Platform]) -> None:
    http, platform = keyed
    platform.registry.keys.create("me")
    client = OpenAI(base_url="http://127.0.0.1/v1", api_key="x", http_client=http, max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_the_log_names_the_key_and_the_version(keyed: tuple[TestClient, Platform]) -> None:
    http, platform = keyed
    record, plain = platform.registry.keys.create("me")
    mine = {"authorization": f"Bearer {plain}"}
    response = http.post("/v1/classify", json={"model": "toy/animals", "input": "x"}, headers=mine)
    logged = platform.registry.requests.get(response.headers["x-request-id"])
    assert (logged.key, logged.asked, logged.version, logged.status) == (
        record.id, "toy/animals", "toy/animals@1", 200,
    )  # fmt: skip
    assert logged.digest == platform.resolve("toy/animals").digest
    assert logged.prompt_tokens == response.json()["usage"]["prompt_tokens"]


# --------------------------------------------------------------------------------- a log that fails


def test_an_answer_whose_line_cannot_be_kept_is_not_given(
    keyed: tuple[TestClient, Platform],
) -> None:
    http, platform = keyed
    asked = {"model": "toy/animals", "input": "a cow"}
    with locked(platform):
        response = http.post("/v1/classify", json=asked)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "registry_unavailable"
    assert http.post("/v1/classify", json=asked).status_code == 200


def test_a_stream_whose_line_cannot_be_kept_ends_with_an_error(
    keyed: tuple[TestClient, Platform],
) -> None:
    http, platform = keyed
    with locked(platform):
        response = http.post("/v1/chat/completions", json=greedy(stream=True))
    *_, last = response.text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "registry_unavailable"


@pytest.mark.parametrize("stream", [False, True])
def test_an_id_that_was_taken_meanwhile_costs_neither_the_answer_nor_its_line(
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
    logged = [one.id for one in platform.registry.requests.list()]
    assert len(logged) == 2
    assert {one.partition("-")[0] for one in logged} == {"twice"}
    assert stream or second.headers["x-request-id"] in logged


def test_no_client_is_told_where_the_workspace_lies(keyed: tuple[TestClient, Platform]) -> None:
    http, platform = keyed
    version = platform.resolve("toy/prices").version
    weights = platform.workspace.adapters / version.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    platform.engine.pool.residents()
    for one in platform.engine.pool.residents():
        platform.engine.pool.unload(one.digest)
    response = http.post("/v1/regress", json={"model": "toy/prices", "input": "tea"})
    assert response.status_code == 422
    assert str(platform.workspace.root) not in response.text
    assert "adapter_model.safetensors" in response.text


def test_a_failed_stream_has_its_line_though_its_client_leaves_meanwhile(
    keyed: tuple[TestClient, Platform], monkeypatch: pytest.MonkeyPatch
) -> None:
    http, platform = keyed
    app: Any = http.app
    stepper = platform.engine._stepper
    run, failed = stepper.run, threading.Event()

    def failing(parts: Any) -> Result:
        """The first of two prompts breaks; the step after that takes long."""
        if failed.is_set():
            time.sleep(0.5)
            return run(parts)
        result = run(parts)
        if len(result.drawn) < 2:
            return result
        failed.set()
        return Result(result.drawn[1:], [], [(result.drawn[0][0], BrokenLogits((0,)))])

    monkeypatch.setattr(stepper, "run", failing)
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
    assert platform.registry.requests.get("left").status == BrokenLogits.http_status


@contextmanager
def locked(platform: Platform) -> Iterator[None]:
    """Another process writes to the registry and does not end."""
    path = platform.workspace.registry_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


# ------------------------------------------------------------------------- aliases and new versions


def test_an_alias_that_moves_is_followed_by_the_next_request(
    keyed: tuple[TestClient, Platform],
) -> None:
    http, platform = keyed
    asked = {"model": "toy/animals", "input": "a cow"}
    before = http.post("/v1/classify", json=asked).json()["model"]
    platform.registry.aliases.set(Ref("toy", "animals", "2"), "champion")
    after = http.post("/v1/classify", json=asked).json()["model"]
    assert (before, after) == ("toy/animals@1", "toy/animals@2")


def test_promotion_obeys_the_gate(keyed: tuple[TestClient, Platform]) -> None:
    http, _ = keyed
    refused = http.post("/admin/promote", json={"ref": "toy/animals@2"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "refused")
    forced = {"ref": "toy/animals@2", "force": True, "reason": "a test"}
    told = http.post("/admin/promote", json=forced).json()
    assert (told["old"], told["new"], told["forced"]) == (1, 2, True)
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
def test_what_is_not_in_memory_is_told_by_its_ref(http: TestClient, path: str) -> None:
    http.post("/admin/load", json={"ref": "toy/prices"})
    http.post("/admin/unload", json={"ref": "toy/prices"})
    response = http.post(path, json={"ref": "toy/prices"})
    assert response.status_code == 404
    message = response.json()["error"]["message"]
    assert message == "toy/prices@1 is not in memory. Load it with POST /admin/load."


def test_the_state_tells_what_is_in_flight(http: TestClient) -> None:
    told = http.get("/admin/state").json()
    assert (told["in_flight"], told["running"], told["draining"]) == (1, 0, False)


def test_the_routes_are_described(http: TestClient) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/classify", "/admin/load"} <= set(paths)


def test_the_base_can_be_neither_loaded_nor_promoted(http: TestClient) -> None:
    for path in ("/admin/load", "/admin/unload", "/admin/pin", "/admin/promote"):
        assert http.post(path, json={"ref": "base"}).status_code == 404


# --------------------------------------------------------------------------------------- figures


def test_figures_name_the_versions_that_answered(http: TestClient) -> None:
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


def test_loads_and_evictions_beyond_the_bound_count_as_other(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = metrics.Metrics(max_versions=0)
    watching.watch(platform.engine)
    pool = platform.engine.pool
    artifact = platform.resolve_request(Request("toy/animals", "a cow")).artifact
    assert artifact is not None
    pool.load(artifact, "toy/animals@1")
    counted = [one for _, one in pool.all_counters()]
    lines = watching.render(0).decode().splitlines()
    for name in ("loads", "evictions"):
        total = float(sum(getattr(one, name) for one in counted))
        assert f'trunkline_adapter_pool_{name}_total{{version="other"}} {total}' in lines
    assert sum(one.loads for one in counted) > 0


def test_names_that_clients_invent_are_nowhere_in_the_figures(http: TestClient) -> None:
    def series() -> set[str]:
        lines = http.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    def ask(number: int) -> None:
        body = {"model": f"toy/invented-{number}", "input": "x"}
        assert http.post("/v1/classify", json=body).status_code == 404
        assert http.get(f"/invented/{number}").status_code == 404

    ask(0)
    before = series()
    for number in range(1, 30):
        ask(number)
    assert series() == before
    assert not [line for line in before if "invented" in line]

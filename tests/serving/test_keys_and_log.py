"""Keys, the request log and moved aliases, on a server with its own registry."""

from __future__ import annotations

import asyncio
import json
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

from server_process import chat_body, openai_client, ready_client
from trunkline.api import Platform
from trunkline.engines import Engines
from trunkline.inference.batching import Stepper, StepResult
from trunkline.inference.sampling import InvalidLogits
from trunkline.refs import Ref
from trunkline.registry.registry import Registry
from trunkline.serving.settings import ServerSettings
from trunkline.workspace import Workspace


@dataclass(frozen=True)
class SharedEnginePlatform(Platform):
    """A platform with its own registry, which waits briefly for locks, and another's engine."""

    owner: Platform | None = None

    @cached_property
    def registry(self) -> Registry:
        return Registry.open(self.workspace.registry_url, busy_seconds=0.2)

    @cached_property
    def engines(self) -> Engines:
        assert self.owner is not None
        return self.owner.engines


@pytest.fixture
def keyed(site: Path, platform: Platform) -> Iterator[tuple[TestClient, Platform]]:
    """A server with its own registry, on the module's engine."""
    own = SharedEnginePlatform(
        workspace=Workspace(site), base_name=platform.base_name, no_plugins=True, owner=platform
    )
    with ready_client(own, ServerSettings()) as client:
        yield client, own
    own.registry.close()


def test_key_uses_and_lists_only_its_adapters(
    keyed: tuple[TestClient, Platform],
) -> None:
    http, platform = keyed
    _, secret = platform.registry.keys.create("me", ["toy/plurals"])
    client = openai_client(http, secret)
    assert {model.id.partition("@")[0] for model in client.models.list()} == {"toy/plurals"}
    assert client.chat.completions.create(**chat_body(model="toy/plurals")).model == "toy/plurals@2"
    for hidden in ("base", "toy/animals"):
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**chat_body(model=hidden))
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(hidden)


def test_administrator_lists_only_the_residents_that_the_key_covers(
    keyed: tuple[TestClient, Platform],
) -> None:
    http, platform = keyed
    for model in ("toy/plurals", "base"):
        http.post("/v1/chat/completions", json=chat_body(model=model))
    http.post("/v1/classify", json={"model": "toy/animals", "input": "a cow"})
    _, secret = platform.registry.keys.create("me", ["toy/plurals"], role="admin")
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


def test_request_log_shows_no_credentials_of_a_model_that_does_not_exist(
    keyed: tuple[TestClient, Platform],
) -> None:
    http, platform = keyed
    body = {"model": "hf:owner/repo?token=Kx9qZ7w-Vb3mN5t", "input": ["x"]}
    response = http.post("/v1/classify", json=body, headers={"x-request-id": "odd-model"})
    assert response.status_code == 404
    assert platform.registry.requests.get("odd-model").model == "hf:owner/repo?token=…"


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
        response = http.post("/v1/chat/completions", json=chat_body(stream=True))
    *_, last = response.text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "registry_unavailable"


@pytest.mark.parametrize("stream", [False, True])
def test_id_taken_during_the_request_loses_neither_the_answer_nor_its_log_line(
    keyed: tuple[TestClient, Platform], monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    http, platform = keyed
    first = http.post("/v1/chat/completions", json=chat_body(), headers={"x-request-id": "twice"})
    app: Any = http.app
    monkeypatch.setattr(app.state.service, "id_is_free", lambda _: True)
    second = http.post(
        "/v1/chat/completions", json=chat_body(stream=stream), headers={"x-request-id": "twice"}
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

"""How long a request may take: what its body says, and what the server gives."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from openai import OpenAI

from trunkline.api import Platform
from trunkline.inference.request import ResolvedRequest
from trunkline.inference.request_state import GenerationHandle
from trunkline.serving.app import create_app
from trunkline.serving.settings import ServerSettings
from workbench import opened

AT_ONCE = 1e-9
"""Seconds that are over before the first step."""

CHAT: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": "Hello"}]}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "base", "prompt": ["one", "two"]},
    "/v1/classify": {"model": "toy/animals", "input": ["a cow", "a robin"]},
    "/v1/regress": {"model": "toy/prices", "input": "tea"},
}
every_route = pytest.mark.parametrize("path", ROUTES)


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, made_site: Path, tiny: Path
) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("deadline") / "site"
    for platform in opened(Path(shutil.copytree(made_site, folder)), tiny):
        yield platform
        platform.engine.close()


@pytest.fixture(scope="module")
def http(platform: Platform) -> Iterator[TestClient]:
    app = create_app(platform, ServerSettings(request_timeout=60))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        while client.get("/ready").status_code != 200:
            time.sleep(0.02)
        yield client


@pytest.fixture
def client(http: TestClient) -> OpenAI:
    return OpenAI(base_url="http://127.0.0.1/v1", api_key="x", http_client=http, max_retries=0)


@pytest.fixture
def deadlines(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the engine is given, in seconds; every request is late whatever that is."""
    given: list[float] = []
    submit = platform.engine.submit

    def hurried(work: ResolvedRequest) -> GenerationHandle:
        assert work.request.deadline is not None
        given.append(work.request.deadline)
        return submit(replace(work, request=replace(work.request, deadline=AT_ONCE)))

    monkeypatch.setattr(platform.engine, "submit", hurried)
    return given


@every_route
@pytest.mark.parametrize(("timeout", "limit"), [(2, 2), (90, 60), (None, 60)])
def test_the_shorter_limit_holds(
    http: TestClient,
    deadlines: list[float],
    path: str,
    timeout: float | None,
    limit: float,
) -> None:
    http.post(path, json={**ROUTES[path], "timeout": timeout})
    assert deadlines
    assert all(limit / 2 < left <= limit for left in deadlines)  # from the request's arrival


@every_route
def test_a_request_that_is_late_is_a_504(http: TestClient, path: str) -> None:
    response = http.post(path, json={**ROUTES[path], "timeout": AT_ONCE})
    assert response.status_code == 504
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "deadline_exceeded")
    assert "within its timeout of 1e-09 seconds" in error["message"]


@pytest.mark.usefixtures("deadlines")
def test_a_request_beyond_the_servers_limit_is_told_that_limit(http: TestClient) -> None:
    response = http.post("/v1/chat/completions", json={**CHAT, "timeout": 90})
    assert response.status_code == 504
    assert "the server's limit of 60 seconds" in response.json()["error"]["message"]


@every_route
def test_a_request_in_time_is_answered(http: TestClient, path: str) -> None:
    assert http.post(path, json={**ROUTES[path], "timeout": 50}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_that_is_late_ends_with_the_error(http: TestClient, path: str) -> None:
    response = http.post(path, json={**ROUTES[path], "stream": True, "timeout": AT_ONCE})
    *_, last = response.text.strip().split("\n\n")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (response.status_code, error["code"]) == (200, "deadline_exceeded")
    assert "its timeout of" in error["message"]


def test_an_openai_client_sends_it_in_the_extra_body(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**CHAT, extra_body={"timeout": AT_ONCE})
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")


def test_the_log_has_a_late_request(http: TestClient, platform: Platform) -> None:
    response = http.post("/v1/chat/completions", json={**CHAT, "timeout": AT_ONCE})
    assert platform.registry.requests.get(response.headers["x-request-id"]).status == 504


@every_route
@pytest.mark.parametrize("timeout", ["0", "-2", "NaN", "1e999", "true", '"2"', "[]", "9" * 400])
def test_a_timeout_that_is_none_is_refused_by_name(
    http: TestClient, path: str, timeout: str
) -> None:
    body = json.dumps(ROUTES[path])[:-1] + f', "timeout": {timeout}}}'
    response = http.post(path, content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "timeout")


def test_openais_client_does_not_ask_again_for_what_was_late(
    http: TestClient, platform: Platform
) -> None:
    client = OpenAI(base_url="http://127.0.0.1/v1", api_key="x", http_client=http, max_retries=2)
    before = len(platform.registry.requests.list())
    with pytest.raises(openai.APIStatusError):
        client.chat.completions.create(**CHAT, extra_body={"timeout": AT_ONCE})
    assert len(platform.registry.requests.list()) == before + 1

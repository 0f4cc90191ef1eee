"""Deadlines: the timeout in a request's body, and the server's limit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from openai import OpenAI

from server_process import openai_client, ready_client
from trunkline.api import Platform
from trunkline.inference.request import ResolvedRequest
from trunkline.inference.request_state import GenerationHandle
from trunkline.serving.settings import ServerSettings

EXPIRED = 1e-9
"""A timeout that passes before the first step."""

CHAT: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": "Hello"}]}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "base", "prompt": ["one", "two"]},
    "/v1/classify": {"model": "toy/animals", "input": ["a cow", "a robin"]},
    "/v1/regress": {"model": "toy/prices", "input": "tea"},
}
every_route = pytest.mark.parametrize("path", ROUTES)


@pytest.fixture(scope="module")
def http(platform: Platform) -> Iterator[TestClient]:
    with ready_client(platform, ServerSettings(request_timeout=60)) as client:
        yield client


@pytest.fixture
def deadlines(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The deadlines that the engine gets, in seconds; every request expires regardless of them."""
    deadlines: list[float] = []
    submit = platform.engine.submit

    def submit_expired(request: ResolvedRequest) -> GenerationHandle:
        assert request.request.deadline is not None
        deadlines.append(request.request.deadline)
        return submit(replace(request, request=replace(request.request, deadline=EXPIRED)))

    monkeypatch.setattr(platform.engine, "submit", submit_expired)
    return deadlines


@every_route
@pytest.mark.parametrize(("timeout", "limit"), [(2, 2), (90, 60), (None, 60)])
def test_shorter_limit_applies(
    http: TestClient,
    deadlines: list[float],
    path: str,
    timeout: float | None,
    limit: float,
) -> None:
    http.post(path, json={**ROUTES[path], "timeout": timeout})
    assert deadlines
    # The limit counts from the request's arrival.
    assert all(limit / 2 < deadline <= limit for deadline in deadlines)


@every_route
def test_expired_request_is_a_504(http: TestClient, path: str) -> None:
    response = http.post(path, json={**ROUTES[path], "timeout": EXPIRED})
    assert response.status_code == 504
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "deadline_exceeded")
    assert "within its timeout of 1e-09 seconds" in error["message"]


@pytest.mark.usefixtures("deadlines")
def test_error_beyond_the_servers_limit_names_that_limit(http: TestClient) -> None:
    response = http.post("/v1/chat/completions", json={**CHAT, "timeout": 90})
    assert response.status_code == 504
    assert "the server's limit of 60 seconds" in response.json()["error"]["message"]


@every_route
def test_request_in_time_is_answered(http: TestClient, path: str) -> None:
    assert http.post(path, json={**ROUTES[path], "timeout": 50}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_expired_stream_ends_with_the_error(http: TestClient, path: str) -> None:
    response = http.post(path, json={**ROUTES[path], "stream": True, "timeout": EXPIRED})
    *_, last = response.text.strip().split("\n\n")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (response.status_code, error["code"]) == (200, "deadline_exceeded")
    assert "its timeout of" in error["message"]


def test_openais_client_sends_the_timeout_in_the_extra_body(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**CHAT, extra_body={"timeout": EXPIRED})
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")


def test_expired_request_is_logged(http: TestClient, platform: Platform) -> None:
    response = http.post("/v1/chat/completions", json={**CHAT, "timeout": EXPIRED})
    assert platform.registry.requests.get(response.headers["x-request-id"]).status == 504


@every_route
@pytest.mark.parametrize("timeout", ["0", "-2", "NaN", "1e999", "true", '"2"', "[]", "9" * 400])
def test_invalid_timeout_is_refused_by_name(http: TestClient, path: str, timeout: str) -> None:
    body = json.dumps(ROUTES[path])[:-1] + f', "timeout": {timeout}}}'
    response = http.post(path, content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "timeout")


def test_openais_client_does_not_retry_an_expired_request(
    http: TestClient, platform: Platform
) -> None:
    client = openai_client(http, max_retries=2)
    before = len(platform.registry.requests.list())
    with pytest.raises(openai.APIStatusError):
        client.chat.completions.create(**CHAT, extra_body={"timeout": EXPIRED})
    assert len(platform.registry.requests.list()) == before + 1

"""The checks of all requests and the log, on a server whose base can't be loaded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import trunkline
from server_process import app_client
from trunkline.api import Platform
from trunkline.serving.app import create_app
from trunkline.serving.service import RequestContext, Service
from trunkline.serving.settings import ServerSettings

LIMITS = ServerSettings(max_body_bytes=2048, max_header_bytes=2048, max_requests=2)
CHAT = {"model": "base", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    (tmp_path / "empty").mkdir()
    platform = trunkline.open(tmp_path, base=str(tmp_path / "empty"), no_plugins=True)
    yield platform
    platform.registry.close()


@pytest.fixture
def client(platform: Platform) -> Iterator[TestClient]:
    with app_client(platform, LIMITS) as client:
        yield client


def service_of(client: TestClient) -> Service:
    app: Any = client.app
    return app.state.service


def error_of(response: Any) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


# ---------------------------------------------------------------------------------- readiness


def test_server_without_its_base_is_alive_but_not_ready(client: TestClient) -> None:
    assert client.get("/health").status_code == 200
    response = client.get("/ready")
    assert (response.status_code, error_of(response)["code"]) == (503, "unavailable")


def test_request_before_the_base_is_loaded_may_be_retried(client: TestClient) -> None:
    response = client.post("/v1/chat/completions", json=CHAT)
    assert (response.status_code, "retry-after" in response.headers) == (503, True)


def test_draining_server_refuses_new_requests(client: TestClient) -> None:
    service_of(client).draining = True
    response = client.get("/v1/models")
    assert (response.status_code, "retry-after" in response.headers) == (503, True)
    assert client.get("/health").status_code == 200


# ------------------------------------------------------------------------- errors of all kinds


@pytest.mark.parametrize("path", ["/x", "/v1/chat", "/docs", "/v2/x?y=1"])
def test_unknown_path_is_an_error_in_openais_format(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert "There is no GET" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is empty"),
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"[" * 2000, "nested too deeply"),
        (b'{"model": "base"}', "messages is missing"),
        (b'{"model": 3, "messages": []}', "model must be a text"),
        (
            b'{"model": "base", "messages": [{"role": "king", "content": ""}]}',
            "messages[0].role must be",
        ),
        (b'{"model": "base", "messages": [], "n": ' + b"1" * 1500 + b"}", "1,500 digits"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_error_for_an_invalid_body_names_the_problem(
    client: TestClient, body: bytes, message: str
) -> None:
    json = {"content-type": "application/json"}
    response = client.post("/v1/chat/completions", content=body, headers=json)
    assert response.status_code == 400
    assert message in error_of(response)["message"]


def test_error_for_a_wrong_content_type_names_the_header(client: TestClient) -> None:
    text = {"content-type": "text/plain"}
    response = client.post("/v1/chat/completions", content=b"{}", headers=text)
    assert "Content-Type: application/json" in error_of(response)["message"]


def test_internal_error_does_not_leak_details(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.serving.models.ServedModels.page", lambda *_: 1 / 0)
    monkeypatch.setattr(Service, "base", None)
    response = client.get("/v1/models")
    assert response.status_code == 500
    assert "ZeroDivision" not in response.text
    assert error_of(response)["type"] == "server_error"


# -------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
@pytest.mark.parametrize("size", [2049, 100_000])
def test_body_beyond_the_limit_is_refused(client: TestClient, size: int, declared: bool) -> None:
    content: Any = b"x" * size if declared else iter([b"x" * 1000] * (size // 1000 + 1))
    response = client.post("/v1/chat/completions", content=content)
    assert (response.status_code, error_of(response)["code"]) == (413, "too_large")


def test_body_at_the_limit_is_read(client: TestClient) -> None:
    assert client.post("/v1/chat/completions", content=b" " * 2048).status_code == 400


def test_headers_beyond_the_limit_are_refused(client: TestClient) -> None:
    response = client.get("/health", headers={"x-long": "x" * 2048})
    assert (response.status_code, error_of(response)["code"]) == (431, "too_large")


def test_body_that_does_not_arrive_times_out(platform: Platform) -> None:
    app = create_app(platform, ServerSettings(read_timeout=0.1))
    sent: list[Any] = []

    async def never() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"",
        "headers": [(b"host", b"localhost")], "raw_path": b"/v1/completions", "root_path": "",
        "scheme": "http", "http_version": "1.1", "client": None, "server": None,
    }  # fmt: skip
    asyncio.run(app(scope, never, send))
    assert sent[0]["status"] == 408


def test_requests_beyond_the_limit_may_be_retried(client: TestClient) -> None:
    service = service_of(client)
    others = [RequestContext(service, "/v1/models") for _ in range(LIMITS.max_requests)]
    for context in others:
        service.add(context)
    response = client.get("/v1/models")
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    for context in others:
        service.remove(context)
    assert client.get("/v1/models").status_code == 503  # the base can't be loaded


def test_ended_requests_are_not_in_flight(client: TestClient) -> None:
    client.get("/v1/models")
    client.post("/v1/chat/completions", json=CHAT)
    assert service_of(client).in_flight == {}


# ------------------------------------------------------------------------------------ identity


def test_every_response_has_its_own_id(client: TestClient) -> None:
    ids = {client.get(path).headers["x-request-id"] for path in ("/health", "/x", "/v1/models")}
    assert len(ids) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", id) for id in ids)


def test_client_may_choose_the_id(client: TestClient) -> None:
    response = client.get("/v1/models", headers={"x-request-id": "my-1.a_B"})
    assert response.headers["x-request-id"] == "my-1.a_B"


@pytest.mark.parametrize("id", ["a b", "x" * 81, "é".encode(), "", "a\tb"])
def test_invalid_id_is_replaced(client: TestClient, id: Any) -> None:
    response = client.get("/v1/models", headers={"x-request-id": id})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


def test_used_id_is_replaced(client: TestClient, platform: Platform) -> None:
    headers = {"x-request-id": "mine"}
    client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert platform.registry.requests.get("mine").status == 503
    response = client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


# ---------------------------------------------------------------------------------------- keys


def test_once_a_key_exists_only_probes_are_open(client: TestClient, platform: Platform) -> None:
    _, secret = platform.registry.keys.create("me")
    statuses = {
        path: client.get(path).status_code
        for path in ("/health", "/metrics", "/v1/models", "/admin/state", "/openapi.json", "/x")
    }
    assert statuses == {
        "/health": 200, "/metrics": 401, "/v1/models": 401, "/admin/state": 401,
        "/openapi.json": 401, "/x": 401,
    }  # fmt: skip
    headers = {"authorization": f"Bearer {secret}"}
    assert client.get("/v1/models", headers=headers).status_code == 503
    assert client.get("/admin/state", headers=headers).status_code == 403


def test_metrics_need_a_key_if_other_machines_reach_the_server(platform: Platform) -> None:
    _, secret = platform.registry.keys.create("me")
    with app_client(platform, ServerSettings(host="0.0.0.0"), host="testserver") as client:
        assert client.get("/metrics").status_code == 401
        headers = {"authorization": f"Bearer {secret}"}
        assert client.get("/metrics", headers=headers).status_code == 200


def test_open_metrics_need_no_key(platform: Platform) -> None:
    platform.registry.keys.create("me")
    settings = ServerSettings(host="0.0.0.0", open_metrics=True)
    with app_client(platform, settings, host="testserver") as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/v1/models").status_code == 401


def test_metrics_need_a_key_for_all_adapters(client: TestClient, platform: Platform) -> None:
    assert client.get("/metrics").status_code == 200
    statuses = {}
    for owner, adapters, admin in (
        ("some", ["toy/plurals"], False), ("all", ["*"], False),
        ("admin", ["toy/x"], True), ("both", ["*"], True),
    ):  # fmt: skip
        role = "admin" if admin else "tester"
        _, secret = platform.registry.keys.create(owner, adapters, role=role)
        response = client.get("/metrics", headers={"authorization": f"Bearer {secret}"})
        statuses[owner] = response.status_code
    assert statuses == {"some": 403, "all": 200, "admin": 403, "both": 200}


# ---------------------------------------------------------------------------------- request log


def test_only_requests_that_name_a_model_are_logged(client: TestClient, platform: Platform) -> None:
    client.get("/v1/models")
    client.post("/v1/chat/completions", json={"messages": []})
    client.post("/v1/chat/completions", json={"model": "a/b", "messages": []})
    client.post("/v1/completions", json={"model": "a/c", "prompt": "secret"})
    logged = platform.registry.requests.list()
    assert [(row.model, row.status, row.route) for row in logged] == [
        ("a/c", 503, "/v1/completions"),
        ("a/b", 400, "/v1/chat/completions"),
    ]
    assert all(row.text is None for row in logged)


def test_texts_are_logged_with_log_text(platform: Platform) -> None:
    with app_client(platform, ServerSettings(log_text=True), host="localhost") as client:
        client.post("/v1/completions", json={"model": "a/c", "prompt": "hello"})
    assert platform.registry.requests.list()[0].text == '"hello"'


def test_request_log_can_be_switched_off(platform: Platform) -> None:
    with app_client(platform, ServerSettings(log_requests=False), host="localhost") as client:
        client.post("/v1/completions", json={"model": "a/c", "prompt": "hello"})
    assert platform.registry.requests.list() == []

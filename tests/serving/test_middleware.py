"""What every request meets before a route sees it, on a server whose base can't be loaded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import trunkline
from trunkline.api import Platform
from trunkline.serving.app import create_app
from trunkline.serving.service import Service
from trunkline.serving.settings import ServerSettings

LIMITS = ServerSettings(max_body_bytes=2048, max_header_bytes=2048, max_requests=2)
ASK = {"model": "base", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    (tmp_path / "empty").mkdir()
    made = trunkline.open(tmp_path, base=str(tmp_path / "empty"), no_plugins=True)
    yield made
    made.registry.close()


@pytest.fixture
def client(platform: Platform) -> Iterator[TestClient]:
    with TestClient(create_app(platform, LIMITS), base_url="http://127.0.0.1") as client:
        yield client


def service_of(client: TestClient) -> Service:
    app: Any = client.app
    return app.state.service


def error_of(response: Any) -> dict[str, Any]:
    told = response.json()
    assert set(told) == {"error"}
    assert set(told["error"]) == {"message", "type", "param", "code"}
    return told["error"]


# ---------------------------------------------------------------------------------- readiness


def test_a_server_without_its_base_is_alive_but_not_ready(client: TestClient) -> None:
    assert client.get("/health").status_code == 200
    response = client.get("/ready")
    assert (response.status_code, error_of(response)["code"]) == (503, "unavailable")


def test_a_request_before_the_base_is_there_is_to_come_back(client: TestClient) -> None:
    response = client.post("/v1/chat/completions", json=ASK)
    assert (response.status_code, "retry-after" in response.headers) == (503, True)


def test_a_server_that_ends_takes_nothing_new(client: TestClient) -> None:
    service_of(client).draining = True
    response = client.get("/v1/models")
    assert (response.status_code, "retry-after" in response.headers) == (503, True)
    assert client.get("/health").status_code == 200


# ------------------------------------------------------------------------- errors of all kinds


@pytest.mark.parametrize("path", ["/", "/v1/embeddings", "/v1/chat", "/docs", "/v2/x?y=1"])
def test_an_unknown_path_is_told_in_openais_form(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert "There is no GET" in error_of(response)["message"]


def test_a_wrong_method_is_told_with_the_right_one(client: TestClient) -> None:
    response = client.get("/v1/chat/completions")
    assert response.status_code == 405
    assert "POST" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "can't be read"),
        (b"{", "not JSON"),
        (b"[]", "can't be read"),
        (b"[" * 2000, "parsing"),
        (b'{"model": "base"}', "messages: Field required"),
        (b'{"model": 3, "messages": []}', "model: "),
        (b'{"model": "base", "messages": [{"role": "king", "content": ""}]}', "messages[0]: "),
        (b'{"model": "base", "messages": [], "n": ' + b"1" * 1500 + b"}", ""),
        (b"\xff\xfe", ""),
    ],
)
def test_a_body_that_is_none_is_told_what_is_wrong(
    client: TestClient, body: bytes, named: str
) -> None:
    json = {"content-type": "application/json"}
    response = client.post("/v1/chat/completions", content=body, headers=json)
    assert response.status_code == 400
    assert named in error_of(response)["message"]


def test_a_body_of_another_type_is_told_the_header(client: TestClient) -> None:
    text = {"content-type": "text/plain"}
    response = client.post("/v1/chat/completions", content=b"{}", headers=text)
    assert "Content-Type: application/json" in error_of(response)["message"]


def test_a_bug_is_no_traceback(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trunkline.serving.models.ServedModels.page", lambda *_: 1 / 0)
    monkeypatch.setattr(Service, "base", None)
    response = client.get("/v1/models")
    assert response.status_code == 500
    assert "ZeroDivision" not in response.text
    assert error_of(response)["type"] == "server_error"


# -------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "chunked"])
@pytest.mark.parametrize("size", [2049, 100_000])
def test_a_body_beyond_the_limit_is_too_large(client: TestClient, size: int, stated: bool) -> None:
    content: Any = b"x" * size if stated else iter([b"x" * 1000] * (size // 1000 + 1))
    response = client.post("/v1/chat/completions", content=content)
    assert (response.status_code, error_of(response)["code"]) == (413, "too_large")


def test_a_body_at_the_limit_is_read(client: TestClient) -> None:
    assert client.post("/v1/chat/completions", content=b" " * 2048).status_code == 400


def test_headers_beyond_the_limit_are_refused(client: TestClient) -> None:
    response = client.get("/health", headers={"x-long": "x" * 2048})
    assert (response.status_code, error_of(response)["code"]) == (431, "too_large")


def test_a_body_that_does_not_come_is_given_up(platform: Platform) -> None:
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


def test_more_requests_than_it_takes_are_told_to_come_back(client: TestClient) -> None:
    service = service_of(client)
    service.in_flight |= {"a": None, "b": None}  # type: ignore[dict-item]
    response = client.get("/v1/models")
    service.in_flight.clear()
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")


def test_nothing_is_left_in_flight(client: TestClient) -> None:
    client.get("/v1/models")
    client.post("/v1/chat/completions", json=ASK)
    assert service_of(client).in_flight == {}


# ------------------------------------------------------------------------------------ identity


def test_every_response_has_an_id_of_its_own(client: TestClient) -> None:
    ids = {client.get(path).headers["x-request-id"] for path in ("/health", "/x", "/v1/models")}
    assert len(ids) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", id) for id in ids)


def test_a_client_may_choose_the_id(client: TestClient) -> None:
    response = client.get("/v1/models", headers={"x-request-id": "my-1.a_B"})
    assert response.headers["x-request-id"] == "my-1.a_B"


@pytest.mark.parametrize("id", ["a b", "x" * 81, "é".encode(), "", "a\tb"])
def test_an_id_that_is_none_is_replaced(client: TestClient, id: Any) -> None:
    response = client.get("/v1/models", headers={"x-request-id": id})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


def test_an_id_that_was_used_is_replaced(client: TestClient, platform: Platform) -> None:
    mine = {"x-request-id": "mine"}
    client.post("/v1/chat/completions", json=ASK, headers=mine)
    assert platform.registry.requests.get("mine").status == 503
    response = client.post("/v1/chat/completions", json=ASK, headers=mine)
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


# ---------------------------------------------------------------------------------------- keys


def test_with_a_key_only_probes_are_open(client: TestClient, platform: Platform) -> None:
    _, plain = platform.registry.keys.create("me")
    told = {
        path: client.get(path).status_code
        for path in ("/health", "/metrics", "/v1/models", "/admin/state", "/openapi.json", "/x")
    }
    assert told == {
        "/health": 200, "/metrics": 401, "/v1/models": 401, "/admin/state": 401,
        "/openapi.json": 401, "/x": 401,
    }  # fmt: skip
    mine = {"authorization": f"Bearer {plain}"}
    assert client.get("/v1/models", headers=mine).status_code == 503
    assert client.get("/admin/state", headers=mine).status_code == 403


def test_figures_need_a_key_where_others_reach_the_server(platform: Platform) -> None:
    _, plain = platform.registry.keys.create("me")
    app = create_app(platform, ServerSettings(host="0.0.0.0"))
    with TestClient(app) as client:
        assert client.get("/metrics").status_code == 401
        mine = {"authorization": f"Bearer {plain}"}
        assert client.get("/metrics", headers=mine).status_code == 200


def test_figures_name_every_adapter_so_a_key_for_some_does_not_see_them(
    client: TestClient, platform: Platform
) -> None:
    assert client.get("/metrics").status_code == 200
    told = {}
    for owner, adapters, admin in (
        ("some", ["toy/plurals"], False), ("all", ["*"], False),
        ("admin", ["toy/x"], True), ("both", ["*"], True),
    ):  # fmt: skip
        _, plain = platform.registry.keys.create(owner, adapters, admin=admin)
        response = client.get("/metrics", headers={"authorization": f"Bearer {plain}"})
        told[owner] = response.status_code
    assert told == {"some": 403, "all": 200, "admin": 403, "both": 200}


# ----------------------------------------------------------------------------------------- log


def test_what_names_a_model_is_logged_and_nothing_else(
    client: TestClient, platform: Platform
) -> None:
    client.get("/v1/models")
    client.post("/v1/chat/completions", json={"messages": []})
    client.post("/v1/chat/completions", json={"model": "a/b", "messages": []})
    client.post("/v1/completions", json={"model": "a/c", "prompt": "secret"})
    logged = platform.registry.requests.list()
    assert [(one.asked, one.status, one.route) for one in logged] == [
        ("a/c", 503, "/v1/completions"),
        ("a/b", 400, "/v1/chat/completions"),
    ]
    assert all(one.text is None for one in logged)


def test_texts_are_logged_when_that_is_switched_on(platform: Platform) -> None:
    with TestClient(
        create_app(platform, ServerSettings(log_text=True)), base_url="http://localhost"
    ) as client:
        client.post("/v1/completions", json={"model": "a/c", "prompt": "told"})
    assert platform.registry.requests.list()[0].text == '"told"'


def test_no_log_no_line(platform: Platform) -> None:
    with TestClient(
        create_app(platform, ServerSettings(log_requests=False)), base_url="http://localhost"
    ) as client:
        client.post("/v1/completions", json={"model": "a/c", "prompt": "told"})
    assert platform.registry.requests.list() == []

"""Wrong addresses, the page for people, and pages of other origins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import trunkline
from server_process import app_client
from trunkline.api import Platform
from trunkline.errors import UsageError
from trunkline.serving.run import serve
from trunkline.serving.settings import ServerSettings

ORIGIN = "https://chat.example.org"
CHAT = {"model": "base", "messages": [{"role": "user", "content": "hi"}]}
BASE_URL = "http://127.0.0.1/v1"


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    (tmp_path / "empty").mkdir()
    platform = trunkline.open(tmp_path, base=str(tmp_path / "empty"), no_plugins=True)
    yield platform
    platform.registry.close()


@pytest.fixture
def client(platform: Platform) -> Iterator[TestClient]:
    """A server whose base can't be loaded, so that a valid request gets a 503."""
    with app_client(platform, ServerSettings()) as client:
        yield client


def message_of(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    message: str = response.json()["error"]["message"]
    return message


# ---------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/api/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/deployments/x/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/chat/completions", "/v1/chat/completions"),
        ("//v1/chat/completions", "/v1/chat/completions"),
        ("/V1/Chat/Completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/v1/v1/completions/", "/v1/completions"),
        ("/classify", "/v1/classify"),
        ("/v1/v1/models", "/v1/models"),
        ("/models", "/v1/models"),
        ("/models/toy/animals", "/v1/models/toy/animals"),
        ("/v1/admin/load", "/admin/load"),
        ("/v1/health", "/health"),
    ],
)
def test_error_for_a_wrong_path_names_the_base_url_and_the_right_path(
    client: TestClient, path: str, meant: str
) -> None:
    message = message_of(client.post(f"http://127.0.0.1{path}", json=CHAT), 404)
    assert f"did you mean '{meant}'?" in message
    assert BASE_URL in message


@pytest.mark.parametrize("path", ["/api/generate", "/v1/messages", "/docs", "/v1/chat", "/v2"])
def test_error_for_an_unknown_path_names_the_base_url(client: TestClient, path: str) -> None:
    message = message_of(client.get(path), 404)
    assert "did you mean" not in message
    assert BASE_URL in message


def test_host_that_is_no_name_is_not_repeated(platform: Platform) -> None:
    _, secret = platform.registry.keys.create("me")
    headers = {"host": "<x>", "authorization": f"Bearer {secret}"}
    with app_client(platform, ServerSettings()) as client:
        message = message_of(client.get("/x", headers=headers), 404)
    assert "http://HOST/v1" in message


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/"])
def test_page_shows_a_person_the_base_url(platform: Platform, path: str) -> None:
    platform.registry.keys.create("me")
    with app_client(platform, ServerSettings(port=0)) as client:
        response = client.get(path, headers={"host": "models.example.org:8000"})
    assert (response.status_code, response.headers["content-type"][:10]) == (200, "text/plain")
    assert "http://models.example.org:8000/v1" in response.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/chat/completions/", 503),
        ("POST", "/v1/completions//", 400),
        ("GET", "/v1/models/", 503),
        ("GET", "/v1/models/base/", 503),
        ("GET", "/health/", 200),
        ("GET", "/admin/state/", 503),
        ("GET", "/openapi.json/", 200),
    ],
)
def test_slash_at_the_end_is_answered(
    client: TestClient, method: str, path: str, status: int
) -> None:
    response = client.request(
        method, path, json=CHAT if method == "POST" else None, follow_redirects=False
    )
    assert response.status_code == status


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/completions/", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/base", "GET"),
        ("POST", "/", "GET"),
        ("OPTIONS", "/v1/models", "GET"),
    ],
)
def test_error_for_a_wrong_method_names_the_right_one(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path)
    assert allowed in message_of(response, 405)
    assert allowed in response.headers["allow"]


# --------------------------------------------------------------------------------------- origins


def preflight(client: TestClient, origin: str, path: str = "/v1/chat/completions") -> Any:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
        "access-control-request-private-network": "true",
    }
    return client.options(path, headers=headers)


def test_pages_of_other_origins_are_refused_by_default(client: TestClient) -> None:
    response = preflight(client, ORIGIN)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_preflight_of_an_allowed_origin_needs_no_key(platform: Platform) -> None:
    platform.registry.keys.create("me")
    origins = (ORIGIN, "http://localhost:3000/")
    with app_client(platform, ServerSettings(cors_origins=origins)) as client:
        for origin in (ORIGIN, "http://localhost:3000"):
            response = preflight(client, origin)
            assert response.status_code == 200
            headers = response.headers
            assert headers["access-control-allow-origin"] == origin
            assert headers["access-control-allow-private-network"] == "true"
            assert "authorization" in headers["access-control-allow-headers"]
            assert "POST" in headers["access-control-allow-methods"]
        refused = preflight(client, "https://chat.example.org.evil.net")
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/x", "/v1/models", "/health"])
def test_every_answer_and_error_may_be_read_by_an_allowed_origin(
    platform: Platform, path: str
) -> None:
    platform.registry.keys.create("me")
    with app_client(platform, ServerSettings(cors_origins=(ORIGIN,))) as client:
        response = client.get(path, headers={"origin": ORIGIN})
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "x-request-id" in response.headers["access-control-expose-headers"]
        other = client.get(path, headers={"origin": "https://evil.example.org"})
        assert "access-control-allow-origin" not in other.headers


def test_server_for_any_origin_answers_no_request_without_a_key(platform: Platform) -> None:
    with app_client(platform, ServerSettings(cors_origins=("*",))) as client:
        assert message_of(client.post("/v1/chat/completions", json=CHAT), 401)
        assert preflight(client, ORIGIN).headers["access-control-allow-origin"] == "*"


def test_server_without_keys_refuses_to_start_for_any_origin(platform: Platform) -> None:
    with pytest.raises(UsageError, match="without keys can't allow every web page"):
        serve(platform, ServerSettings(port=0, cors_origins=("*",)))


@pytest.mark.parametrize(
    "origin",
    ["chat.example.org", "ftp://x", "https://x/path", "https://*.example.org", "null", "",
     "https://x:port", "https://user@x", "https://x?y", "https://"],
)  # fmt: skip
def test_what_is_no_origin_is_refused_by_name(origin: str) -> None:
    with pytest.raises(UsageError, match="is not the origin of a web page"):
        ServerSettings(cors_origins=(origin,))


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("https://Chat.Example.org/", "https://chat.example.org"),
        ("https://x:443", "https://x"),
        ("http://x:80", "http://x"),
        ("http://x:443", "http://x:443"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_origin_is_compared_as_browsers_send_it(written: str, origin: str) -> None:
    assert ServerSettings(cors_origins=(written,)).cors_origins == (origin,)

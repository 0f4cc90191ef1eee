"""Sessions: sign in and out, cookies, fixation, expiry, and servers without keys."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from console_site import TOKEN, Browser, SignIn, Site, signed_in
from trunkline.api import open
from trunkline.console.app import create_console_app
from trunkline.console.sessions import LIFETIME, MAX_SESSIONS, Sessions
from trunkline.serving.settings import ServerSettings

COOKIE = "trunkline-console"


def test_page_without_a_session_is_the_form_to_sign_in(site: Site) -> None:
    page = site.client().get("/console/runs?status=failed")
    assert page.status_code == 401
    assert 'name="next" value="/console/runs?status=failed"' in page.text
    assert "toy/" not in page.text


def test_cookie_can_be_read_by_no_script_and_sent_by_no_other_site(site: Site) -> None:
    cookie = site.client().get("/console").headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path=/console" in cookie
    assert "secure" not in cookie


def test_cookie_is_secure_off_this_machine(site: Site) -> None:
    client = TestClient(site.app, base_url="https://models.example.org")
    assert "; secure" in client.get("/console").headers["set-cookie"].lower()


def test_sign_in_changes_the_session_id(site: Site) -> None:
    client = site.client()
    token = TOKEN.search(client.get("/console").text)
    assert token is not None
    before = client.cookies[COOKIE]
    form = {"form_token": token[1], "key": site.secrets["viewer"]}
    assert client.post("/console/sign-in", data=form).status_code == 303
    after = client.cookies[COOKIE]
    assert after != before
    client.cookies.clear()
    client.cookies.set(COOKIE, before, domain="127.0.0.1", path="/console")
    assert client.get("/console").status_code == 401


def test_cookie_that_was_planted_opens_no_session(site: Site) -> None:
    client = site.client()
    client.cookies.set(COOKIE, "planted", domain="127.0.0.1", path="/console")
    assert client.get("/console").status_code == 401


def test_wrong_key_is_refused_and_not_shown(site: Site) -> None:
    client = site.client()
    token = TOKEN.search(client.get("/console").text)
    assert token is not None
    page = client.post("/console/sign-in", data={"form_token": token[1], "key": "tl-wrong"})
    assert page.status_code == 401
    assert "tl-wrong" not in page.text


@pytest.mark.parametrize(
    "wanted",
    ["https://evil.example", "//evil.example", "/console//evil", "/console/\\evil", "/v1/models",
     "/console/sign-out", "/console/../v1"],
)  # fmt: skip
def test_sign_in_leads_nowhere_else(site: Site, wanted: str) -> None:
    client = site.client()
    token = TOKEN.search(client.get("/console").text)
    assert token is not None
    form = {"form_token": token[1], "key": site.secrets["viewer"], "next": wanted}
    location = client.post("/console/sign-in", data=form).headers["location"]
    assert location == "/console"


def test_sign_out_ends_the_session(viewer: Browser) -> None:
    cookie = viewer.client.cookies[COOKIE]
    assert viewer.post("/sign-out", {}).status_code == 303
    viewer.client.cookies.set(COOKIE, cookie, domain="127.0.0.1", path="/console")
    assert viewer.get("").status_code == 401


def test_removed_key_ends_its_sessions(site: Site) -> None:
    record, site.secrets["leaving"] = site.platform.registry.keys.create("leaving")
    browser = signed_in(site, "leaving")
    assert browser.get("").status_code == 200
    site.platform.registry.keys.remove(record.id)
    assert browser.get("").status_code == 401


def test_program_sends_its_key_in_a_header(site: Site) -> None:
    answer = site.client().get("/console/keys", headers=site.bearer("admin"))
    assert answer.status_code == 200
    refused = site.client().get("/console", headers={"accept": "application/json"})
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"


def test_sessions_expire_and_are_limited() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    first = sessions.open("0aaaaaaa")
    assert sessions.key_of(first) == "0aaaaaaa"
    now[0] = LIFETIME + 1
    assert sessions.key_of(first) is None
    oldest = sessions.open("0aaaaaaa")
    for _ in range(MAX_SESSIONS):
        sessions.open("0bbbbbbb")
    assert sessions.key_of(oldest) is None


def test_console_without_keys_answers_this_machine_only(tmp_path: Path) -> None:
    platform = open(tmp_path, no_plugins=True)
    app = create_console_app(platform, ServerSettings())
    with TestClient(app, base_url="http://localhost", follow_redirects=False) as client:
        assert client.get("/").headers["location"] == "/console"
        assert client.get("/console").status_code == 200
        assert "no keys" in client.get("/console").text
        assert client.get("/console", headers={"host": "evil.example"}).status_code == 403
        no_token = client.post("/console/keys", data={"owner": "mallory"})
        assert no_token.status_code == 403
    platform.registry.close()


def test_console_without_an_engine_shows_the_workspace(
    two_prices_workspace: Path, tmp_path: Path
) -> None:
    workspace = Path(shutil.copytree(two_prices_workspace, tmp_path / "workspace"))
    platform = open(workspace, no_plugins=True)
    app = create_console_app(platform, ServerSettings())
    with TestClient(app, base_url="http://localhost") as client:
        assert "toy/prices@2" in client.get("/console/adapters/toy/prices/2").text
        assert "runs without an engine" in client.get("/console/serving").text
    platform.registry.close()


def test_every_role_signs_in(sign_in: SignIn) -> None:
    for role in ("viewer", "tester", "promoter", "admin"):
        assert f"{role} person" in sign_in(role).get("").text

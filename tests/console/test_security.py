"""What must not be possible: forged forms, injected scripts, actions of other roles."""

from __future__ import annotations

import pytest

from console_places import (
    ADMIN_ACTIONS,
    ADMIN_PAGES,
    EVERYTHING_PAGES,
    PAGES,
    PROMOTER_ACTIONS,
    PROMOTER_PAGES,
    TESTER_PAGES,
)
from console_site import Browser, SignIn, Site, signed_in
from trunkline.console.security import POLICY

ACTIONS = ADMIN_ACTIONS | PROMOTER_ACTIONS
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>"


# ------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("path", ["", "/static/console.js", "/nowhere", "/runs/1/stream"])
def test_every_answer_has_the_security_headers(admin: Browser, path: str) -> None:
    headers = admin.get(path).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    assert POLICY.startswith("default-src 'none'")
    assert "unsafe" not in POLICY
    assert "*" not in POLICY


# -------------------------------------------------------------------------------- forged forms


@pytest.mark.parametrize("path", ACTIONS)
def test_form_without_its_token_is_refused(admin: Browser, path: str) -> None:
    answer = admin.client.post(f"/console{path}", data=ACTIONS[path])
    assert answer.status_code == 403


def test_token_of_another_session_is_refused(admin: Browser, viewer: Browser) -> None:
    form = {"form_token": viewer.token(), "owner": "mallory"}
    assert admin.client.post("/console/keys", data=form).status_code == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_form_of_another_site_is_refused(admin: Browser, origin: str) -> None:
    answer = admin.post("/keys", {"owner": "mallory"}, headers={"origin": origin})
    assert answer.status_code == 403


def test_form_that_the_browser_calls_foreign_is_refused(admin: Browser) -> None:
    headers = {"sec-fetch-site": "cross-site"}
    assert admin.post("/keys", {"owner": "mallory"}, headers=headers).status_code == 403


@pytest.mark.parametrize("path", ACTIONS)
def test_action_can_not_be_requested_with_get(site: Site, admin: Browser, path: str) -> None:
    before = site.platform.registry.events.heads()["events"]
    admin.get(path, params=ACTIONS[path])
    assert site.platform.registry.events.heads()["events"] == before


# ---------------------------------------------------------------------------------------- roles


@pytest.mark.parametrize("path", ACTIONS)
@pytest.mark.parametrize("role", ["viewer", "tester"])
def test_action_of_another_role_is_refused(
    site: Site, sign_in: SignIn, role: str, path: str
) -> None:
    before = site.platform.registry.events.heads()["events"]
    assert sign_in(role).post(path, ACTIONS[path]).status_code == 403
    assert site.platform.registry.events.heads()["events"] == before


@pytest.mark.parametrize("path", ADMIN_ACTIONS)
def test_promoter_does_not_administrate(sign_in: SignIn, path: str) -> None:
    assert sign_in("promoter").post(path, ADMIN_ACTIONS[path]).status_code == 403


def test_promoter_does_not_override_the_gate(site: Site, sign_in: SignIn) -> None:
    fields = {"reason": "because", "expected": "none", "force": "yes"}
    answer = sign_in("promoter").post("/adapters/toy/animals/1/promote", fields)
    assert answer.status_code == 403
    assert not site.platform.registry.aliases.moves("toy", "animals")


@pytest.mark.parametrize("path", ADMIN_PAGES + PROMOTER_PAGES + TESTER_PAGES)
def test_page_of_another_role_is_hidden(viewer: Browser, path: str) -> None:
    assert viewer.get(path).status_code == 403
    assert f'href="/console{path}"' not in viewer.get("").text


@pytest.mark.parametrize("path", PROMOTER_PAGES)
def test_tester_does_not_train(sign_in: SignIn, path: str) -> None:
    assert sign_in("tester").get(path).status_code == 403


# ----------------------------------------------------------------------------------- the scope


@pytest.mark.parametrize("path", PAGES)
def test_key_for_some_adapters_sees_nothing_of_others(sign_in: SignIn, path: str) -> None:
    browser = sign_in("some")
    for accept in ("text/html", "application/json"):
        page = browser.get(path, headers={"accept": accept})
        if page.status_code == 200:
            assert "toy/animals" not in page.text.replace("/console/adapters/toy/animals", "")
            assert "toy/plurals" not in page.text
            assert "animals" not in page.text
        else:
            assert page.status_code in (403, 404)


@pytest.mark.parametrize("path", EVERYTHING_PAGES)
def test_key_for_some_adapters_does_not_see_what_concerns_all(sign_in: SignIn, path: str) -> None:
    assert sign_in("some").get(path).status_code == 403


def test_hidden_adapter_looks_like_an_unknown_one(sign_in: SignIn) -> None:
    browser = sign_in("some")
    for path in ("/adapters/toy/{}", "/adapters/toy/{}/1", "/adapters/toy/{}/1/promote"):
        hidden, unknown = (browser.get(path.format(name)) for name in ("animals", "unicorn"))
        assert (hidden.status_code, unknown.status_code) == (404, 404)
        known = hidden.text.replace("animals", "NAME"), unknown.text.replace("unicorn", "NAME")
        assert known[0].split("<main")[1] == known[1].split("<main")[1]


def test_prompt_is_shown_to_administrators_and_its_own_key_only(sign_in: SignIn) -> None:
    path = "/lineage?request=request-1"
    assert "a secret prompt" in sign_in("admin").get(path).text
    for role in ("viewer", "promoter", "some"):
        page = sign_in(role).get(path)
        assert page.status_code == 200
        assert "a secret prompt" not in page.text


# ------------------------------------------------------------------------------------- scripts


def test_stored_text_is_escaped_wherever_it_is_shown(site: Site) -> None:
    registry = site.platform.registry
    registry.tags.set("toy/plurals", "owner", SCRIPT)
    registry.tags.add_note("toy/plurals@1", SCRIPT)
    registry.aliases.move(
        site.platform.resolve("toy/plurals@1").version.ref, "canary", actor=SCRIPT, reason=SCRIPT
    )
    _, site.secrets["injected"] = registry.keys.create(SCRIPT, role="admin")
    browser = signed_in(site, "injected")
    shown = 0
    for path in (*PAGES, "/adapters/toy/plurals", "/adapters/toy/plurals/1"):
        text = browser.get(path).text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        shown += text.count("&lt;script&gt;alert(1)")
    assert shown > len(PAGES)


@pytest.mark.parametrize(
    "path",
    ["/adapters?q={}", "/adapters?after={}", "/compare?a={}&b={}", "/runs?recipe={}&status={}",
     "/runs/overlay?run={}", "/requests?id={}", "/requests?model={}", "/requests?key={}",
     "/requests?since={}", "/lineage?request={}", "/playground?prompt={}&model1={}",
     "/train/recipes/toy/animals?set.r={}",
     "/train/jobs/{}", "/train/uploads/{}", "/audit?subject={}&kind={}", "/{}",
     "/adapters/{}/{}", "/runs?before={}", "/?done={}", "/adapters/toy/prices/rollback?alias={}"],
)  # fmt: skip
def test_reflected_text_is_escaped(admin: Browser, path: str) -> None:
    from urllib.parse import quote

    text = admin.get(path.replace("{}", quote(f'"{SCRIPT}', safe=""))).text
    assert "<script>alert" not in text
    assert "<img src=x" not in text


def test_card_has_no_html_of_its_own() -> None:
    from trunkline.console.markdown import render_markdown

    text = str(
        render_markdown(
            f"---\nlicense: {SCRIPT}\n---\n# Card\n\n{SCRIPT}\n\n[x](javascript:alert(3)) "
            "![y](https://evil.example/y.png)\n\n| a |\n| - |\n| 1 |\n"
        )
    )
    assert "<script" not in text
    assert "<img" not in text
    assert 'href="javascript' not in text
    assert "<table>" in text
    assert "<h2>Card</h2>" in text


# --------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "path",
    ["/adapters/%2e%2e/%2e%2e/etc/passwd", "/adapters/..%2f..%2fetc/passwd", "/static/../app.py",
     "/static/%2e%2e/app.py", "/static/vendor/../../app.py", "/adapters/toy/prices/999999999999999",
     "/adapters/toy/%00", "/keys/..%2f..%2f/revoke", "/runs/99999999999999999999",
     "/lineage?request=../../etc/passwd", "/datasets/toy/%2e%2e", "/adapters/TOY/prices/1"],
)  # fmt: skip
def test_path_trick_is_refused(admin: Browser, path: str) -> None:
    answer = admin.get(path)
    assert answer.status_code in (400, 404, 405)
    assert "root:" not in answer.text
    assert "import annotations" not in answer.text


def test_large_body_is_refused(admin: Browser) -> None:
    answer = admin.post("/keys", {"owner": "x" * (10 << 20)})
    assert answer.status_code == 413


def test_form_with_too_many_fields_is_refused(admin: Browser) -> None:
    fields = {f"field{number}": "x" for number in range(300)}
    assert admin.post("/keys", fields).status_code == 400


@pytest.mark.parametrize("accept", ["", ";;q=x,,", "application/json;q=nan", "*/*", "text/plain"])
def test_odd_accept_header_gets_an_answer(admin: Browser, accept: str) -> None:
    answer = admin.get("/adapters", headers={"accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(("text/html", "application/json"))


def test_response_header_can_not_be_injected(admin: Browser) -> None:
    line = "/console/runs\r\nset-cookie: planted=1"
    answer = admin.post("/language", {"language": "zh", "next": line})
    assert answer.headers["location"] == "/console"
    assert "planted" not in str(answer.headers)


@pytest.mark.parametrize(
    "path",
    ["/adapters?q=" + "(" * 900, "/adapters?q=" + "not " * 200 + "task=regression",
     "/adapters?q=" + "a" * 6000, "/runs/overlay?run=" + "1," * 3000, "/requests?since=9999999",
     "/audit?before=" + "9" * 40, "/runs?before=-1", "/compare?a=toy/prices@x&b=toy/prices@1",
     "/adapters?q=%00", "/audit?subject=%00", "/requests?id=%00", "/runs?recipe=%00&status=%00",
     "/requests?key=%00", "/adapters/toy/prices/1?texts=%00"],
)  # fmt: skip
def test_huge_or_broken_query_is_answered_and_not_a_failure(admin: Browser, path: str) -> None:
    assert admin.get(path).status_code < 500


@pytest.mark.parametrize("token", ["", "x", "é", "0" * 64, "\0", "a" * 100_000])
def test_wrong_token_is_refused(admin: Browser, token: str) -> None:
    form = {"form_token": token, "owner": "mallory"}
    assert admin.client.post("/console/keys", data=form).status_code == 403


@pytest.mark.parametrize("path", PAGES)
def test_program_with_a_key_for_some_adapters_gets_no_others(site: Site, path: str) -> None:
    headers = site.bearer("some")
    answer = site.client().get(f"/console{path}", headers=headers)
    assert answer.headers["content-type"] == "application/json"
    if answer.status_code == 200:
        assert "animals" not in answer.text
        assert "plurals" not in answer.text
    else:
        assert answer.status_code in (403, 404)


def test_stream_of_another_run_is_hidden(site: Site) -> None:
    runs = site.platform.registry.runs.list()
    hidden = next(run.number for run in runs if run.recipe == "toy/animals")
    answer = site.client().get(f"/console/runs/{hidden}/stream", headers=site.bearer("some"))
    assert answer.status_code == 404


def test_labels_and_texts_are_escaped_in_the_rows_that_are_wrong(site: Site) -> None:
    from trunkline.registry.records import PredictionRecord

    registry = site.platform.registry
    ref = site.platform.resolve("toy/animals@1").version.ref
    newest = registry.evaluations.list(version=ref)[0]
    registry.evaluations.record(
        recipe=newest.recipe, base_digest=newest.base_digest, dataset_id=1, split="test",
        results={**newest.results, "slices": [
            {"slice": SCRIPT, "value": SCRIPT, "rows": 30, "score": 0.5}
        ]},
        predictions=[
            PredictionRecord(row_id=SCRIPT, group="g", target=SCRIPT, prediction=f"{SCRIPT}{part}",
                             confidence=0.5, baseline_prediction=SCRIPT)
            for part in range(1)
        ],
        version=ref,
    )  # fmt: skip
    text = signed_in(site, "admin").get("/adapters/toy/animals/1").text
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert text.count("&lt;script&gt;") > 5

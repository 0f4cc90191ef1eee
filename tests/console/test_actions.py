"""Promotion, rollback, keys, verification and the adapters in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from console_site import Browser, SignIn, Site
from trunkline.refs import Ref

PRICES = Ref("toy", "prices")


@pytest.fixture
def restored(site: Site) -> Iterator[Site]:
    """The site; afterwards the champion is version 1 again."""
    yield site
    site.platform.registry.aliases.move(PRICES.at(1), "champion")


def newest(site: Site) -> str:
    """What the form says about the alias's newest move."""
    return str(site.platform.registry.aliases.moves("toy", "prices", "champion", limit=1)[0].id)


def champion(site: Site) -> int:
    return site.platform.registry.adapters.get("toy", "prices").aliases["champion"]


def test_promotion_moves_the_alias_and_records_who_and_why(restored: Site, sign_in: SignIn) -> None:
    fields = {"reason": "cheaper <b>", "expected": newest(restored)}
    answer = sign_in("promoter").post("/adapters/toy/prices/2/promote", fields)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/console/adapters/toy/prices?done=promoted"
    assert champion(restored) == 2
    move = restored.platform.registry.aliases.moves("toy", "prices", limit=1)[0]
    assert move.actor.endswith(" promoter person")
    assert (move.reason, move.forced) == ("cheaper <b>", False)


def test_promotion_needs_a_reason(site: Site, sign_in: SignIn) -> None:
    fields = {"reason": "  ", "expected": newest(site)}
    assert sign_in("promoter").post("/adapters/toy/prices/2/promote", fields).status_code == 400
    assert champion(site) == 1


def test_promotion_on_outdated_evidence_is_refused(site: Site, sign_in: SignIn) -> None:
    fields = {"reason": "better", "expected": "1"}
    answer = sign_in("promoter").post("/adapters/toy/prices/2/promote", fields)
    assert answer.status_code == 409
    assert "Conflict" in answer.text
    assert champion(site) == 1


def test_refused_promotion_shows_the_conditions(site: Site, sign_in: SignIn) -> None:
    fields = {"reason": "anyway", "expected": "none"}
    answer = sign_in("promoter").post("/adapters/toy/animals/1/promote", fields)
    assert answer.status_code == 409
    assert "not met" in answer.text
    assert "anyway" in answer.text
    assert "champion" not in site.platform.registry.adapters.get("toy", "animals").aliases


def test_evidence_names_every_condition(viewer: Browser) -> None:
    path = "/adapters/toy/animals/1/promote"
    data = viewer.get(path, headers={"accept": "application/json"}).json()
    assert data["passed"] is False
    assert all(check["figures"] for check in data["checks"])
    assert "<textarea" not in viewer.get(path).text


def test_rollback_returns_to_the_version_before(restored: Site, sign_in: SignIn) -> None:
    fields = {"reason": "worse", "expected": newest(restored)}
    answer = sign_in("promoter").post("/adapters/toy/prices/rollback", fields)
    assert answer.status_code == 303
    assert champion(restored) == 2


def test_key_is_shown_once(site: Site, admin: Browser) -> None:
    page = admin.post("/keys", {"owner": "grace", "role": "promoter", "adapters": "toy/* base"})
    assert page.status_code == 200
    secret = page.text.split('id="secret"')[1].split(">")[1].split("<")[0]
    record = site.platform.registry.keys.authenticate(secret)
    assert record is not None
    assert (record.owner, record.role, record.adapters) == ("grace", "promoter", ("toy/*", "base"))
    assert secret not in admin.get("/keys").text
    assert page.headers["cache-control"] == "no-store"
    assert admin.post(f"/keys/{record.id}/revoke", {}).status_code == 303
    assert site.platform.registry.keys.authenticate(secret) is None


def test_key_with_a_wrong_pattern_is_refused(admin: Browser) -> None:
    assert admin.post("/keys", {"owner": "grace", "adapters": "../x"}).status_code == 400


def test_files_are_verified(viewer: Browser) -> None:
    assert "The files are intact" in viewer.post("/adapters/toy/prices/1/verify", {}).text


def test_dataset_is_checked(viewer: Browser) -> None:
    page = viewer.post("/datasets/toy/animals/check", {})
    assert "can be trained on" in page.text
    assert "mammal" in page.text


def test_croissant_describes_the_rows(viewer: Browser) -> None:
    assert viewer.get("/datasets/toy/animals/croissant.json").json()["name"] == "toy/animals"


def test_chains_are_verified_against_a_saved_head(site: Site, admin: Browser) -> None:
    head = str(site.platform.registry.events.heads()["events"])
    assert "matches the saved head" in admin.post("/audit/verify", {"events_head": head}).text
    wrong = head[:-1] + ("0" if head[-1] != "0" else "1")
    assert "broken" in admin.post("/audit/verify", {"events_head": wrong}).text
    assert admin.post("/audit/verify", {"events_head": "x"}).status_code == 400


def test_events_are_exported_as_they_are_stored(
    site: Site, admin: Browser, viewer: Browser
) -> None:
    lines = admin.get("/audit/export?chain=events").text.splitlines()
    assert [json.loads(line) for line in lines] == list(site.platform.registry.audit.export())
    assert viewer.get("/audit/export?chain=requests").status_code == 403


def test_adapter_is_loaded_pinned_and_unloaded(site: Site, admin: Browser) -> None:
    pool = site.app.state.service.engine.pool
    assert admin.post("/serving/load", {"ref": "toy/prices@1"}).status_code == 303
    digest = site.platform.resolve("toy/prices@1").digest
    assert "toy/prices@1" in admin.get("/serving").text
    admin.post("/serving/pin", {"digest": digest, "pinned": "yes"})
    assert [one.pinned for one in pool.residents() if one.digest == digest] == [True]
    admin.post("/serving/pin", {"digest": digest, "pinned": "no"})
    admin.post("/serving/unload", {"digest": digest})
    assert digest not in {one.digest for one in pool.residents()}


def test_request_is_searched_for(admin: Browser) -> None:
    def ids(query: str) -> list[str]:
        page = admin.get(f"/requests?{query}", headers={"accept": "application/json"})
        return [one["id"] for one in page.json()["requests"]]

    assert ids("") == ["request-2", "request-1"]
    assert ids("status=failed") == ["request-2"]
    assert ids("model=toy/prices") == ids("model=toy/prices@1") == ["request-1"]
    assert ids("model=toy/prices@2") == []
    assert ids("id=request-1") == ["request-1"]
    assert ids("since=2026-01-01") == ["request-2", "request-1"]
    assert ids("until=2026-01-01") == []


def test_action_answers_programs_with_json(site: Site) -> None:
    client, headers = site.client(), site.bearer("admin")
    done = client.post(
        "/console/keys", data={"owner": "a program", "role": "viewer"}, headers=headers
    ).json()
    assert done["secret"].startswith("tl-")

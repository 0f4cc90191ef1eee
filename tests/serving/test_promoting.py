"""Promotion and rollback over HTTP: the key's owner is the actor; a refusal lists its checks."""

from __future__ import annotations

import getpass
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server_process import ready_client
from trunkline.api import Platform
from trunkline.refs import Ref
from trunkline.serving.settings import ServerSettings
from workbench import opened

ANIMALS = Ref("toy", "animals")
FORCED = {"force": True, "reason": "a test"}


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, site_template: Path, tiny: Path
) -> Iterator[tuple[TestClient, Platform]]:
    """A server on a workspace whose gate demands two persons."""
    folder = Path(shutil.copytree(site_template, tmp_path_factory.mktemp("promoting") / "site"))
    (folder / "trunkline.toml").write_text("[gate]\ntwo_persons = true\n")
    for platform in opened(folder, tiny):
        with ready_client(platform, ServerSettings()) as client:
            yield client, platform
        platform.engine.close()


@pytest.fixture
def platform(server: tuple[TestClient, Platform]) -> Platform:
    """The server's platform; ``toy/animals@1`` is the champion."""
    server[1].registry.aliases.set(ANIMALS.at(1), "champion")
    return server[1]


@pytest.fixture
def http(server: tuple[TestClient, Platform]) -> TestClient:
    return server[0]


def auth(platform: Platform, owner: str, **options: Any) -> dict[str, str]:
    """The header with a new key."""
    options = {"role": "admin"} | options
    return {"authorization": f"Bearer {platform.registry.keys.create(owner, **options)[1]}"}


def two_persons(body: dict[str, Any]) -> bool:
    checks = {check["name"]: check["passed"] for check in body["error"]["checks"]}
    return bool(checks["two persons"])


@pytest.mark.parametrize(("owner", "passed"), [("ada", True), (getpass.getuser(), False)])
def test_actor_of_a_promotion_is_the_owner_of_the_key(
    http: TestClient, platform: Platform, owner: str, passed: bool
) -> None:
    body = {"ref": "toy/animals@2"}
    refused = http.post("/admin/promote", json=body, headers=auth(platform, owner))
    assert refused.status_code == 409
    assert two_persons(refused.json()) is passed


def test_refusal_is_an_error_with_its_checks(http: TestClient, platform: Platform) -> None:
    body = {"ref": "toy/animals@2"}
    error = http.post("/admin/promote", json=body, headers=auth(platform, "ada")).json()["error"]
    assert error["code"] == "refused"
    assert error["message"].startswith("The gate refuses toy/animals@2: has been evaluated: no")
    assert error["checks"][0] == {
        "name": "has been evaluated", "passed": False, "figures": "no evaluation on its test rows",
    }  # fmt: skip


def test_promotion_records_the_owner_and_returns_the_head(
    http: TestClient, platform: Platform
) -> None:
    body = {"ref": "toy/animals@2", **FORCED}
    result = http.post("/admin/promote", json=body, headers=auth(platform, "Ada L.")).json()
    assert (result["adapter"], result["old"], result["new"]) == ("toy/animals", 1, 2)
    assert result["head"] == str(platform.registry.events.heads()["events"])
    move = platform.registry.aliases.moves("toy", "animals")[0]
    assert move.actor.endswith(" Ada L.")
    assert move.actor.startswith("key/")


def test_rollback_moves_the_alias_for_the_next_request(
    http: TestClient, platform: Platform
) -> None:
    headers = auth(platform, "ada")
    http.post("/admin/promote", json={"ref": "toy/animals@2", **FORCED}, headers=headers)
    body = {"ref": "toy/animals", "reason": "wrong"}
    result = http.post("/admin/rollback", json=body, headers=headers).json()
    assert (result["kind"], result["old"], result["new"], result["reason"]) == (
        "rolled-back",
        2,
        1,
        "wrong",
    )
    assert result["actor"].endswith(" ada")
    assert result["head"] == str(platform.registry.events.heads()["events"])
    assert http.get("/v1/models/toy/animals", headers=headers).json()["root"] == "toy/animals@1"


def test_rollback_of_an_unknown_adapter_is_a_404(http: TestClient, platform: Platform) -> None:
    body = {"ref": "toy/animal"}
    assert http.post("/admin/rollback", json=body, headers=auth(platform, "ada")).status_code == 404


@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_key_can_not_move_aliases_of_adapters_that_it_may_not_use(
    http: TestClient, platform: Platform, verb: str
) -> None:
    headers = auth(platform, "ada", adapters=["toy/prices"])
    assert (
        http.post(f"/admin/{verb}", json={"ref": "toy/animals"}, headers=headers).status_code == 404
    )


@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_moving_an_alias_needs_an_administrator(
    http: TestClient, platform: Platform, verb: str
) -> None:
    headers = auth(platform, "ada", role="tester")
    body = {"ref": "toy/animals"}
    assert http.post(f"/admin/{verb}", json=body, headers=headers).status_code == 403


@pytest.mark.parametrize("alias", ["latest", "../x", "", "a" * 300, "tiny"])
def test_invalid_alias_is_refused(http: TestClient, platform: Platform, alias: str) -> None:
    body = {"ref": "toy/animals@2", "alias": alias, **FORCED}
    result = http.post("/admin/promote", json=body, headers=auth(platform, "ada"))
    assert result.status_code == 400

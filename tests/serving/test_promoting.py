"""Aliases moved over HTTP: the key's owner is who asks, and a refusal tells every condition."""

from __future__ import annotations

import getpass
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from trunkline.api import Platform
from trunkline.refs import Ref
from trunkline.serving.app import create_app
from trunkline.serving.settings import ServerSettings
from workbench import opened

ANIMALS = Ref("toy", "animals")
FORCED = {"force": True, "reason": "a test"}


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, made_site: Path, tiny: Path
) -> Iterator[tuple[TestClient, Platform]]:
    """A server on a workspace that wants two persons."""
    folder = Path(shutil.copytree(made_site, tmp_path_factory.mktemp("promoting") / "site"))
    (folder / "trunkline.toml").write_text("[gate]\ntwo_persons = true\n")
    for platform in opened(folder, tiny):
        with TestClient(
            create_app(platform, ServerSettings()), base_url="http://127.0.0.1"
        ) as client:
            while client.get("/ready").status_code != 200:
                time.sleep(0.02)
            yield client, platform
        platform.engine.close()


@pytest.fixture
def platform(server: tuple[TestClient, Platform]) -> Platform:
    """Of the server; ``toy/animals@1`` is the champion."""
    server[1].registry.aliases.set(ANIMALS.at(1), "champion")
    return server[1]


@pytest.fixture
def http(server: tuple[TestClient, Platform]) -> TestClient:
    return server[0]


def key(platform: Platform, owner: str, **allowed: Any) -> dict[str, str]:
    """The header of a new key."""
    given = {"admin": True} | allowed
    return {"authorization": f"Bearer {platform.registry.keys.create(owner, **given)[1]}"}


def two_persons(told: dict[str, Any]) -> bool:
    checks = {check["name"]: check["passed"] for check in told["error"]["checks"]}
    return bool(checks["two persons"])


@pytest.mark.parametrize(("owner", "passed"), [("ada", True), (getpass.getuser(), False)])
def test_owner_of_the_key_is_who_promotes(
    http: TestClient, platform: Platform, owner: str, passed: bool
) -> None:
    asked = {"ref": "toy/animals@2"}
    refused = http.post("/admin/promote", json=asked, headers=key(platform, owner))
    assert refused.status_code == 409
    assert two_persons(refused.json()) is passed


def test_refusal_is_an_error_with_its_conditions(http: TestClient, platform: Platform) -> None:
    asked = {"ref": "toy/animals@2"}
    error = http.post("/admin/promote", json=asked, headers=key(platform, "ada")).json()["error"]
    assert error["code"] == "refused"
    assert error["message"].startswith("The gate refuses toy/animals@2: has been evaluated: no")
    assert error["checks"][0] == {
        "name": "has been evaluated", "passed": False, "figures": "no evaluation on its test rows",
    }  # fmt: skip


def test_owner_stands_in_the_history_with_the_head(http: TestClient, platform: Platform) -> None:
    asked = {"ref": "toy/animals@2", **FORCED}
    told = http.post("/admin/promote", json=asked, headers=key(platform, "Ada L.")).json()
    assert (told["adapter"], told["old"], told["new"]) == ("toy/animals", 1, 2)
    assert told["head"] == str(platform.registry.events.heads()["events"])
    move = platform.registry.aliases.moves("toy", "animals")[0]
    assert move.actor.endswith(" Ada L.")
    assert move.actor.startswith("key/")


def test_rollback_goes_back_and_the_next_request_sees_it(
    http: TestClient, platform: Platform
) -> None:
    headers = key(platform, "ada")
    http.post("/admin/promote", json={"ref": "toy/animals@2", **FORCED}, headers=headers)
    asked = {"ref": "toy/animals", "reason": "wrong"}
    told = http.post("/admin/rollback", json=asked, headers=headers).json()
    assert (told["kind"], told["old"], told["new"], told["reason"]) == (
        "rolled-back",
        2,
        1,
        "wrong",
    )
    assert told["actor"].endswith(" ada")
    assert told["head"] == str(platform.registry.events.heads()["events"])
    assert http.get("/v1/models/toy/animals", headers=headers).json()["root"] == "toy/animals@1"


def test_rollback_of_an_unknown_adapter_is_not_found(http: TestClient, platform: Platform) -> None:
    asked = {"ref": "toy/animal"}
    assert http.post("/admin/rollback", json=asked, headers=key(platform, "ada")).status_code == 404


@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_key_that_may_not_use_an_adapter_may_not_move_its_aliases(
    http: TestClient, platform: Platform, verb: str
) -> None:
    headers = key(platform, "ada", adapters=["toy/prices"])
    assert (
        http.post(f"/admin/{verb}", json={"ref": "toy/animals"}, headers=headers).status_code == 404
    )


@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_only_an_administrator_moves_aliases(
    http: TestClient, platform: Platform, verb: str
) -> None:
    headers = key(platform, "ada", admin=False)
    asked = {"ref": "toy/animals"}
    assert http.post(f"/admin/{verb}", json=asked, headers=headers).status_code == 403


@pytest.mark.parametrize("alias", ["latest", "../x", "", "a" * 300, "tiny"])
def test_impossible_alias_is_refused(http: TestClient, platform: Platform, alias: str) -> None:
    asked = {"ref": "toy/animals@2", "alias": alias, **FORCED}
    told = http.post("/admin/promote", json=asked, headers=key(platform, "ada"))
    assert told.status_code == 400

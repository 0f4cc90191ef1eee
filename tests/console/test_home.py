"""The home page: what waits for a second person, and what failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from console_site import Browser, SignIn, Site
from trunkline.refs import Ref

NEWEST = Ref("toy", "prices", "2")
JSON = {"accept": "application/json"}


@pytest.fixture
def evaluate(site: Site) -> Iterator[Any]:
    """Records an evaluation of the newest version under a gate; the last one asks for nobody."""
    registry = site.platform.registry
    newest = registry.evaluations.list(version=NEWEST)[0]

    def evaluate(gate: dict[str, Any], **results: Any) -> None:
        gate = {**newest.results["gate"], "beats_baseline": False, **gate}
        registry.evaluations.record(
            recipe=newest.recipe,
            base_digest=newest.base_digest,
            dataset_id=1,
            split="test",
            results={**newest.results, "gate": gate, **results},
            version=NEWEST,
        )

    yield evaluate
    evaluate({"two_persons": False})


def waiting(browser: Browser) -> list[tuple[str, bool]]:
    data = browser.get("", headers=JSON).json()
    return [
        (f"{one['version']['domain']}/{one['version']['name']}", one["compared"])
        for one in data["waiting"]
    ]


def test_nothing_waits_where_no_gate_asks_for_a_second_person(viewer: Browser) -> None:
    assert waiting(viewer) == []


def test_version_that_meets_everything_else_waits(
    viewer: Browser, sign_in: SignIn, evaluate: Any
) -> None:
    evaluate({"two_persons": True})
    assert waiting(viewer) == waiting(sign_in("some")) == [("toy/prices", True)]
    assert "/console/adapters/toy/prices/2/promote" in viewer.get("").text


def test_version_that_fails_a_condition_does_not_wait(viewer: Browser, evaluate: Any) -> None:
    evaluate({"two_persons": True, "beats_baseline": True}, verdict="loses")
    assert waiting(viewer) == []


def test_imported_scores_do_not_wait(viewer: Browser, evaluate: Any) -> None:
    evaluate({"two_persons": True}, imported=True)
    assert waiting(viewer) == []


def test_version_that_loses_to_the_champion_does_not_wait(viewer: Browser, evaluate: Any) -> None:
    evaluate({"two_persons": True, "beats_champion": True})
    assert waiting(viewer) == []  # it has no predictions that could be compared


def test_failed_requests_are_shown_to_keys_that_see_them(viewer: Browser, sign_in: SignIn) -> None:
    shown = viewer.get("", headers=JSON).json()["failed_requests"]
    assert [one["id"] for one in shown] == ["request-2"]
    assert "Failed since yesterday" in viewer.get("").text
    some = sign_in("some")
    assert some.get("", headers=JSON).json()["failed_requests"] == []
    assert "Failed since yesterday" not in some.get("").text

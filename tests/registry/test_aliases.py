"""Aliases: compare-and-set moves, rollbacks, drops, and the list of moves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from trunkline.errors import NotFoundError, RefusedError, UsageError
from trunkline.refs import Ref
from trunkline.registry.aliases import ANY
from trunkline.registry.records import AliasMoveRecord, VersionRecord
from trunkline.registry.registry import Registry

NAME = Ref("medical", "icd10")
MOVERS = 8


@pytest.fixture
def registry_of_four(registry: Registry, publish: Callable[..., VersionRecord]) -> Registry:
    """``medical/icd10`` with the versions 1 to 4."""
    for digest in "abcd":
        publish(digest=digest)
    return registry


def promote(registry: Registry, *numbers: int, alias: str = "champion") -> None:
    for number in numbers:
        registry.aliases.move(NAME.at(number), alias)


def standing(registry: Registry, alias: str = "champion") -> int | None:
    return registry.adapters.get("medical", "icd10").aliases.get(alias)


def newest(registry: Registry, alias: str = "champion") -> AliasMoveRecord:
    return registry.aliases.moves("medical", "icd10", alias)[0]


def roll_back(registry: Registry, times: int = 1, **options: Any) -> list[int | None]:
    return [registry.aliases.rollback(NAME, "champion", **options).new for _ in range(times)]


# ------------------------------------------------------------------------------------- moving


@pytest.mark.dialect
def test_a_move_record_has_every_field(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1)
    gate = [{"name": "beats the baseline", "passed": False, "figures": "+0.1"}]
    moved = registry_of_four.aliases.move(
        NAME.at(2), "champion", actor="ada", forced=True, reason="a trial", gate=gate
    )
    assert moved == newest(registry_of_four)
    assert moved is not None
    assert (moved.adapter, moved.alias, moved.kind) == ("medical/icd10", "champion", "promoted")
    assert (moved.old, moved.new, moved.actor) == (1, 2, "ada")
    assert (moved.forced, moved.reason, moved.gate) == (True, "a trial", gate)


def test_a_move_appends_an_event_with_the_gate(registry_of_four: Registry) -> None:
    registry_of_four.aliases.move(NAME.at(1), "champion", actor="ada", reason="why", gate=[])
    (event,) = registry_of_four.events.list(subject="medical/icd10", limit=1)
    assert (event.kind, event.actor) == ("alias.moved", "ada")
    assert event.detail == {
        "alias": "champion", "old": None, "new": 1, "kind": "promoted", "gate": [],
        "forced": False, "reason": "why",
    }  # fmt: skip


def test_a_move_to_the_current_version_is_none(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1)
    before = registry_of_four.events.heads()
    assert registry_of_four.aliases.move(NAME.at(1), "champion") is None
    assert registry_of_four.events.heads() == before


def test_a_move_from_the_expected_state_succeeds(registry_of_four: Registry) -> None:
    registry_of_four.aliases.move(NAME.at(1), "champion", expected=None)
    seen = newest(registry_of_four).id
    registry_of_four.aliases.move(NAME.at(2), "champion", expected=seen)
    assert standing(registry_of_four) == 2


@pytest.mark.parametrize("seen", [None, 1])
def test_a_conflict_names_the_winner_time_and_target(
    registry_of_four: Registry, seen: int | None
) -> None:
    promote(registry_of_four, 1)
    won = registry_of_four.aliases.move(NAME.at(3), "champion", actor="system:grace")
    assert won is not None
    when = won.at.strftime("%Y-%m-%dT%H:%M:%SZ")
    with pytest.raises(RefusedError, match=f"system:grace moved it to version 3 at {when}"):
        registry_of_four.aliases.move(NAME.at(2), "champion", expected=seen)
    assert standing(registry_of_four) == 3


def test_a_move_away_and_back_is_a_conflict(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1)
    seen = newest(registry_of_four).id
    promote(registry_of_four, 2, 1)
    with pytest.raises(RefusedError, match="Conflict"):
        registry_of_four.aliases.move(NAME.at(3), "champion", expected=seen)


@pytest.mark.dialect
def test_one_of_two_concurrent_moves_wins(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1)
    seen, gate = newest(registry_of_four).id, threading.Barrier(MOVERS)
    outcomes: list[str] = []

    def move(number: int) -> None:
        gate.wait()
        try:
            registry_of_four.aliases.move(NAME.at(2 + number % 3), "champion", expected=seen)
            outcomes.append("won")
        except RefusedError as error:
            outcomes.append(error.message.partition(":")[0])

    threads = [threading.Thread(target=move, args=(number,)) for number in range(MOVERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["Conflict"] * (MOVERS - 1) + ["won"]
    assert len(registry_of_four.aliases.moves("medical", "icd10")) == 2


@pytest.mark.parametrize("alias", ["tiny", "latest", "base", "v3", "7", "Big", "a" * 41, "../x"])
def test_a_reserved_or_malformed_alias_is_refused(registry_of_four: Registry, alias: str) -> None:
    with pytest.raises(UsageError):
        registry_of_four.aliases.move(NAME.at(1), alias)
    assert registry_of_four.aliases.moves("medical", "icd10") == []


def test_a_removed_version_is_not_promoted(registry_of_four: Registry) -> None:
    registry_of_four.versions.remove(NAME.at(2), reason="wrong")
    with pytest.raises(NotFoundError):
        promote(registry_of_four, 2)


# -------------------------------------------------------------------------------- rolling back


@pytest.mark.dialect
def test_each_rollback_goes_one_step_further(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1, 2, 3)
    assert roll_back(registry_of_four, 2) == [2, 1]
    assert standing(registry_of_four) == 1


def test_rollback_without_an_earlier_version_is_refused(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1, 2)
    roll_back(registry_of_four)
    with pytest.raises(RefusedError, match="it points to version 1, and no earlier version"):
        roll_back(registry_of_four)
    assert standing(registry_of_four) == 1


def test_rollback_of_a_promotion_after_rollbacks_returns_to_where_they_ended(
    registry_of_four: Registry,
) -> None:
    promote(registry_of_four, 1, 2, 3)
    roll_back(registry_of_four, 2)
    promote(registry_of_four, 4)
    assert roll_back(registry_of_four) == [1]
    with pytest.raises(RefusedError):
        roll_back(registry_of_four)


def test_rollback_skips_removed_versions(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1, 2, 3)
    registry_of_four.versions.remove(NAME.at(2), reason="wrong")
    assert roll_back(registry_of_four) == [1]


def test_a_rollback_appends_an_event(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1, 2)
    roll_back(registry_of_four, actor="ada", reason="wrong codes")
    move = newest(registry_of_four)
    assert (move.kind, move.old, move.new) == ("rolled-back", 2, 1)
    assert (move.actor, move.reason, move.gate) == ("ada", "wrong codes", None)
    (event,) = registry_of_four.events.list(subject="medical/icd10", limit=1)
    assert (event.kind, event.detail["kind"]) == ("alias.moved", "rolled-back")


def test_a_rollback_after_another_move_is_a_conflict(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1, 2, 3)
    seen = newest(registry_of_four).id
    roll_back(registry_of_four, actor="system:grace")
    with pytest.raises(RefusedError, match=r"system:grace rolled .* back to version 2"):
        roll_back(registry_of_four, expected=seen)
    assert standing(registry_of_four) == 2


def test_rollback_of_an_unknown_alias_is_refused(registry_of_four: Registry) -> None:
    with pytest.raises(NotFoundError, match="never had an alias 'canary'"):
        registry_of_four.aliases.rollback(NAME, "canary")


def test_each_alias_has_its_own_rollbacks(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1, 2)
    promote(registry_of_four, 3, 4, alias="canary")
    roll_back(registry_of_four)
    assert (standing(registry_of_four), standing(registry_of_four, "canary")) == (1, 4)


def test_previous_returns_the_version_of_a_rollback(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1, 3)
    move, version = registry_of_four.aliases.previous("medical", "icd10", "champion")
    assert (move, version.number) == (newest(registry_of_four), 1)


# ------------------------------------------------------------------------------------ dropping


@pytest.mark.dialect
def test_a_dropped_alias_leaves_its_move(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1)
    move = registry_of_four.aliases.drop(NAME, "champion", reason="no more")
    assert standing(registry_of_four) is None
    assert (move.kind, move.old, move.new, move.reason) == ("dropped", 1, None, "no more")


def test_rollback_restores_a_dropped_alias(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1, 2)
    registry_of_four.aliases.drop(NAME, "champion")
    assert roll_back(registry_of_four, 2) == [2, 1]


def test_rollback_skips_a_drop(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1)
    registry_of_four.aliases.drop(NAME, "champion")
    promote(registry_of_four, 2)
    assert roll_back(registry_of_four) == [1]


def test_rollback_never_stays_at_the_same_version(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1, 2)
    registry_of_four.aliases.drop(NAME, "champion")
    promote(registry_of_four, 2)
    assert roll_back(registry_of_four) == [1]


def test_dropping_an_unknown_alias_names_the_nearest(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1)
    with pytest.raises(NotFoundError, match="'champoin'") as caught:
        registry_of_four.aliases.drop(NAME, "champoin")
    assert "'champion'" in (caught.value.hint or "")


# ----------------------------------------------------------------------------- moves and makers


def test_moves_are_paged_newest_first(registry_of_four: Registry) -> None:
    promote(registry_of_four, 1, 2, 3)
    promote(registry_of_four, 4, alias="canary")
    first = registry_of_four.aliases.moves("medical", "icd10", limit=2)
    rest = registry_of_four.aliases.moves("medical", "icd10", before=first[-1].id)
    assert [move.new for move in (*first, *rest)] == [4, 3, 2, 1]
    assert [one.new for one in registry_of_four.aliases.moves("medical", "icd10", "canary")] == [4]


def test_set_moves_an_alias_unconditionally(registry_of_four: Registry) -> None:
    assert registry_of_four.aliases.set(NAME.at(1), "champion") == (None, 1)
    assert registry_of_four.aliases.set(NAME.at(2), "champion") == (1, 2)
    assert registry_of_four.aliases.set(NAME.at(2), "champion") == (2, 2)
    assert registry_of_four.aliases.move(NAME.at(3), "champion", expected=ANY) is not None


@pytest.mark.dialect
def test_contributors_started_the_run_or_published(
    registry: Registry, dataset: int, start: Callable[..., int]
) -> None:
    run = registry.runs.start(
        recipe="medical/icd10", base_digest=registry.sources.list_bases()[0].digest,
        dataset_id=dataset, seed=1, settings={}, environment={}, actor="system:ada",
    )  # fmt: skip
    start()
    publisher = {"actor": "system:grace", "digest": "sha256:" + "a" * 64, "bytes": 1}
    for number in (1, 2):
        registry.versions.reserve("medical", "icd10", task="classification", run=run)
        version = registry.versions.publish(
            "medical", "icd10", number, path=f"medical/icd10/{number}", **publisher
        )  # type: ignore[arg-type]
        publisher["actor"] = "system:other"
    assert registry.versions.contributors(version) == ["system:ada", "system:other"]

"""Promotion: the gate, the second person, rollbacks and drops; artifacts are fakes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trunkline.contracts import Gate, MetricSpec
from trunkline.errors import IntegrityError, NotFoundError, RefusedError, UsageError
from trunkline.evaluation.gates import GateCheck
from trunkline.evaluation.intervals import Estimate
from trunkline.evaluation.metrics import METRICS
from trunkline.evaluation.report import EvaluationReport
from trunkline.promotion import GateRefusedError, Promotion, promote, rollback, unalias
from trunkline.refs import Ref
from trunkline.registry.actors import key_actor
from trunkline.registry.records import PredictionRecord, VersionRecord
from trunkline.registry.registry import Registry
from trunkline.workspace import GateSettings

BASE = "b" * 64
NAME = Ref("toy", "animals")
ADA = key_actor("4k2mw0qz", "ada")
ROWS, GROUPS = 40, 20


class Shelf:
    """A store of no files, in which ``damaged`` numbers can't be fetched."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.damaged: set[int] = set()

    def fetch(self, version: VersionRecord) -> Any:
        if version.number in self.damaged:
            raise IntegrityError(f"{version.ref} is damaged.", "Restore it.")
        task = {"kind": "classification", "labels": ["bird", "fish"]}
        return SimpleNamespace(manifest=SimpleNamespace(task=task))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(f"sqlite:///{tmp_path / 'registry.db'}") as opened:
        opened.sources.record_base(
            digest=BASE, name="tiny", source="made", architecture="L", parameters=1, dtype="float32"
        )
        yield opened


@pytest.fixture
def store(registry: Registry) -> Any:
    return Shelf(registry)


def add(
    registry: Registry,
    right: int | None = None,
    *,
    gate: Gate | None = None,
    split: str = "s" * 64,
    trained_by: str = "system:grace",
    predictions: bool = True,
) -> int:
    """Train and publish the next version; with ``right`` it is evaluated, so many rows being
    right."""
    dataset = registry.sources.record_dataset(
        name="toy/animals", fingerprint="f" * 64, split_fingerprint=split, rows=ROWS,
        license="CC0-1.0", source="made", counts={},
    )  # fmt: skip
    run = registry.runs.start(
        recipe="toy/animals", base_digest=BASE, dataset_id=dataset, seed=0, settings={},
        environment={}, actor=trained_by,
    )  # fmt: skip
    number = registry.versions.reserve("toy", "animals", task="classification", run=run)
    registry.versions.publish(
        "toy", "animals", number, digest=f"sha256:{number:064x}", path=f"toy/animals/{number}",
        bytes=1, actor=trained_by,
    )  # fmt: skip
    if right is not None:
        score = Estimate(right / ROWS, 0.0, 1.0)
        evaluated = EvaluationReport(
            metric="accuracy", higher_is_better=True, rows=ROWS, groups=GROUPS,
            scores={"accuracy": score}, baselines={"tfidf": {"accuracy": score}},
            baseline_details={}, best_baseline="tfidf",
            difference=Estimate(0.1, 0.02, 0.2), verdict="beats", slices=(),
        )  # fmt: skip
        registry.evaluations.record(
            recipe="toy/animals", base_digest=BASE, dataset_id=dataset, split="test",
            results={**evaluated.to_json(), "gate": asdict(gate or Gate(metric="accuracy"))},
            predictions=answers(right) if predictions else (), version=NAME.at(number),
        )  # fmt: skip
    return number


def answers(right: int) -> list[PredictionRecord]:
    return [
        PredictionRecord(
            row_id=f"r{index}", group=f"g{index % GROUPS}", target="bird",
            prediction="bird" if index < right else "fish",
        )
        for index in range(ROWS)
    ]  # fmt: skip


def metric_named(name: str) -> MetricSpec:
    return METRICS[name]


def promoted(store: Any, number: int, alias: str = "champion", **options: Any) -> Promotion:
    demanded = options.pop("demanded", GateSettings())
    return promote(store, NAME.at(number), alias, metric=metric_named, demanded=demanded, **options)


def checks(store: Any, number: int, demanded: GateSettings, **options: Any) -> dict[str, GateCheck]:
    """The checks by name."""
    try:
        results = promoted(store, number, demanded=demanded, **options).checks
    except GateRefusedError as refused:
        results = refused.checks
    return {check.name: check for check in results}


# ----------------------------------------------------------------------------------- the gate


def test_the_workspace_tightens_the_recipes_gate(store: Any, registry: Registry) -> None:
    add(registry, 30)
    results = checks(store, 1, GateSettings(slices_at_least=0.5, two_persons=True))
    assert list(results) == ["beats the baseline", "every slice at least 0.5", "two persons"]


def test_the_recipes_gate_is_checked(store: Any, registry: Registry) -> None:
    add(registry, 30, gate=Gate(metric="accuracy", beats_baseline=False, two_persons=True))
    assert list(checks(store, 1, GateSettings())) == ["two persons"]


def test_an_unevaluated_version_is_always_refused(store: Any, registry: Registry) -> None:
    add(registry)
    results = checks(store, 1, GateSettings(two_persons=True), actor=ADA)
    assert [(name, check.passed) for name, check in results.items()] == [
        ("has been evaluated", False), ("two persons", True),
    ]  # fmt: skip


def test_refusal_changes_nothing(store: Any, registry: Registry) -> None:
    add(registry)
    before = registry.events.heads()
    with pytest.raises(GateRefusedError, match="refuses toy/animals@1"):
        promoted(store, 1)
    assert registry.events.heads() == before


def test_force_is_recorded_with_the_gate_and_the_reason(store: Any, registry: Registry) -> None:
    add(registry)
    assert promoted(store, 1, force=True, reason=" a trial ").forced
    (move,) = registry.aliases.moves("toy", "animals")
    assert (move.forced, move.reason) == (True, "a trial")
    assert move.gate == [
        {"name": "has been evaluated", "passed": False, "figures": "no evaluation on its test rows"}
    ]


def test_reason_with_control_characters_is_refused(store: Any, registry: Registry) -> None:
    add(registry)
    with pytest.raises(UsageError, match="is not a valid reason"):
        promoted(store, 1, force=True, reason="a\x1b[2J")
    assert registry.aliases.moves("toy", "animals") == []


def test_force_that_was_not_needed_is_not_recorded(store: Any, registry: Registry) -> None:
    add(registry, 30)
    assert not promoted(store, 1, force=True, reason="to be sure").forced


def test_head_is_that_of_the_events_after_the_move(store: Any, registry: Registry) -> None:
    add(registry, 30)
    head = promoted(store, 1).head
    assert head == str(registry.events.heads()["events"])
    assert registry.events.list(limit=1)[0].kind == "alias.moved"


@pytest.mark.parametrize("alias", ["smollm2-135m", "tiny", "latest", "7"])
def test_a_reserved_alias_is_refused_before_the_gate(
    store: Any, registry: Registry, alias: str
) -> None:
    add(registry, 30)
    with pytest.raises(UsageError):
        promoted(store, 1, alias)
    assert registry.aliases.moves("toy", "animals") == []


def test_removed_version_is_not_promoted(store: Any, registry: Registry) -> None:
    add(registry, 30)
    add(registry, 30)
    registry.versions.remove(NAME.at(1), reason="wrong")
    with pytest.raises(NotFoundError):
        promoted(store, 1, force=True, reason="never mind")


def test_alias_that_moves_meanwhile_is_not_moved_again(store: Any, registry: Registry) -> None:
    add(registry, 30)
    add(registry, 30)
    fetch = store.fetch

    def overtaken(version: VersionRecord) -> Any:
        registry.aliases.move(NAME.at(2), "champion", actor=ADA)
        return fetch(version)

    store.fetch = overtaken
    with pytest.raises(RefusedError, match="ada moved it to version 2"):
        promoted(store, 1)
    assert registry.adapters.get("toy", "animals").aliases == {"champion": 2}


# ------------------------------------------------------------------------------- the champion

BEATS = GateSettings(beats_champion=True)
MARGIN = GateSettings(champion_margin=0.05)


def test_the_first_champion_is_compared_with_none(store: Any, registry: Registry) -> None:
    add(registry, 30)
    assert checks(store, 1, BEATS)["beats the champion"].figures == "there is no champion"


def test_champion_need_not_beat_itself(store: Any, registry: Registry) -> None:
    add(registry, 30)
    promoted(store, 1)
    assert checks(store, 1, BEATS)["beats the champion"].passed


@pytest.mark.parametrize(("right", "passed"), [(39, True), (22, False), (10, False)])
def test_champion_must_be_beaten_on_the_same_rows(
    store: Any, registry: Registry, right: int, passed: bool
) -> None:
    add(registry, 20)
    add(registry, right)
    promoted(store, 1)
    check = checks(store, 2, BEATS)["beats the champion"]
    assert check.passed is passed
    difference = (right - 20) / ROWS
    assert check.figures.startswith(f"accuracy minus that of toy/animals@1: {difference:+.3f} [")


@pytest.mark.parametrize(("right", "passed"), [(20, True), (10, False)])
def test_an_equal_version_passes_within_the_margin(
    store: Any, registry: Registry, right: int, passed: bool
) -> None:
    add(registry, 20)
    add(registry, right)
    promoted(store, 1)
    name = "no worse than the champion by more than 0.05"
    assert checks(store, 2, MARGIN)[name].passed is passed


def test_canary_is_compared_with_the_champion(store: Any, registry: Registry) -> None:
    add(registry, 30)
    add(registry, 10)
    promoted(store, 1)
    with pytest.raises(GateRefusedError, match="beats the champion: no"):
        promoted(store, 2, "canary", demanded=BEATS)


def test_a_champion_on_other_rows_fails_the_check(store: Any, registry: Registry) -> None:
    add(registry, 10, split="t" * 64)
    add(registry, 39)
    promoted(store, 1)
    check = checks(store, 2, BEATS)["beats the champion"]
    assert not check.passed
    assert "the rows differ: its split is tttttttttttt, not ssssss" in check.figures


def test_an_unevaluated_champion_fails_the_check(store: Any, registry: Registry) -> None:
    add(registry)
    add(registry, 39)
    promoted(store, 1, force=True, reason="there is no other")
    check = checks(store, 2, BEATS)["beats the champion"]
    assert (check.passed, check.figures) == (
        False, "toy/animals@1: it was never evaluated on test rows",
    )  # fmt: skip


def test_a_champion_without_predictions_fails_the_check(store: Any, registry: Registry) -> None:
    add(registry, 10, predictions=False)
    add(registry, 39)
    promoted(store, 1)
    check = checks(store, 2, BEATS)["beats the champion"]
    assert (check.passed, check.figures) == (False, "toy/animals@1: no predictions are stored")


def test_a_missing_metric_fails_the_check(store: Any, registry: Registry) -> None:
    add(registry, 10)
    add(registry, 39)
    promoted(store, 1)

    def missing(name: str) -> MetricSpec:
        raise NotFoundError(f"There is no metric {name!r}.")

    with pytest.raises(GateRefusedError, match="There is no metric 'accuracy'"):
        promote(store, NAME.at(2), "champion", metric=missing, demanded=BEATS)


# -------------------------------------------------------------------------------- two persons

TWO = GateSettings(two_persons=True)


@pytest.mark.parametrize(
    ("actor", "passed"),
    [
        (ADA, True),
        (key_actor("4k2mw0qz", "Grace"), False),
        ("system:ada", False),
        ("ada", False),
        (None, False),
    ],
)
def test_two_persons_means_authenticated_and_different(
    store: Any, registry: Registry, actor: str | None, passed: bool
) -> None:
    add(registry, 30, trained_by="system:grace")
    assert checks(store, 1, TWO, actor=actor)["two persons"].passed is passed


def test_both_persons_are_named(store: Any, registry: Registry) -> None:
    add(registry, 30)
    check = checks(store, 1, TWO, actor="system:ada")["two persons"]
    assert check.figures == (
        "promoted by system:ada; trained or imported by system:grace; "
        "the promoter is not authenticated"
    )


def test_the_importer_is_no_second_person(store: Any, registry: Registry) -> None:
    registry.versions.reserve("toy", "animals", task="classification")
    registry.versions.publish(
        "toy", "animals", 1, digest="sha256:" + "a" * 64, path="toy/animals/1", bytes=1,
        base_digest=BASE, actor="system:ada",
    )  # fmt: skip
    assert not checks(store, 1, TWO, actor=ADA)["two persons"].passed


def test_a_two_persons_refusal_has_a_hint(store: Any, registry: Registry) -> None:
    add(registry, 30)
    with pytest.raises(GateRefusedError) as caught:
        promoted(store, 1, demanded=TWO)
    assert "TRUNKLINE_API_KEY" in (caught.value.hint or "")


def test_the_hint_to_force_names_the_alias(store: Any, registry: Registry) -> None:
    add(registry, 30, gate=Gate(metric="accuracy", at_least=0.99))
    with pytest.raises(GateRefusedError) as caught:
        promoted(store, 1, "beta")
    assert "promote toy/animals@1 --alias beta --force" in (caught.value.hint or "")


def test_the_hint_for_the_second_person_names_the_alias(store: Any, registry: Registry) -> None:
    add(registry, 30)
    with pytest.raises(GateRefusedError) as caught:
        promoted(store, 1, "beta", demanded=TWO)
    assert "promote toy/animals@1 --alias beta --url URL." in (caught.value.hint or "")


# --------------------------------------------------------------------------------- going back


def test_rollback_checks_no_gate(store: Any, registry: Registry) -> None:
    add(registry)
    add(registry)
    for number in (1, 2):
        promoted(store, number, force=True, reason="a trial")
    done = rollback(store, NAME, reason="wrong codes", actor=ADA)
    assert (done.move.new, done.move.actor, done.move.gate) == (1, ADA, None)
    assert done.head == str(registry.events.heads()["events"])


def test_rollback_to_a_damaged_version_is_refused(store: Any, registry: Registry) -> None:
    for _ in range(2):
        promoted(store, add(registry, 30))
    store.damaged = {1}
    with pytest.raises(IntegrityError):
        rollback(store, NAME)
    assert registry.adapters.get("toy", "animals").aliases == {"champion": 2}


@pytest.mark.parametrize("ref", ["toy/animals@1", "toy/animals@champion"])
def test_rollback_of_a_version_ref_is_refused(store: Any, registry: Registry, ref: str) -> None:
    with pytest.raises(UsageError, match="names a version"):
        rollback(store, Ref.parse(ref))


def test_champion_is_dropped_with_a_reason_only(store: Any, registry: Registry) -> None:
    promoted(store, add(registry, 30))
    with pytest.raises(UsageError, match="needs a reason"):
        unalias(registry, NAME, "champion")
    done = unalias(registry, NAME, "champion", reason="nobody is to be")
    assert (done.move.kind, done.move.forced) == ("dropped", True)


def test_other_aliases_are_dropped_without_a_reason(store: Any, registry: Registry) -> None:
    promoted(store, add(registry, 30), "canary")
    assert not unalias(registry, NAME, "canary").move.forced

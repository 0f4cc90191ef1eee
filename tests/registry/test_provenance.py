"""Provenance documents become rows, on both engines; a lost registry is rebuilt."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from trunkline.errors import RefusedError
from trunkline.refs import Ref
from trunkline.registry.provenance import IMPORTED
from trunkline.registry.records import RecordedProvenance, RecoveredVersion, VersionRecord
from trunkline.registry.registry import Registry

BASE = "sha256:" + "b" * 64
CREATED = datetime(2026, 3, 29, 1, 40, tzinfo=UTC)
SCORES = {"accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}}


def origin(run: int | None = 7, started: str = "2026-03-29T01:30:00+00:00") -> dict[str, Any]:
    """A version's provenance document."""
    run_document = {
        "number": run,
        "recipe": "medical/icd10",
        "status": "finished",
        "seed": 2,
        "settings": {"r": 8},
        "environment": {"device": "cpu"},
        "specification": {"loss": {"name": "default"}},
        "report": {"steps": 7},
        "started": started,
        "finished": "2026-03-29T01:40:00+00:00",
        "plugin": {
            "distribution": "trunkline-medical", "version": "0.1", "api": 1, "domain": "medical",
        },
        "actor": "system:ada",
    }  # fmt: skip
    evaluation = {
        "split": "test",
        "results": {"scores": SCORES},
        "created": "2026-03-29T01:40:00+00:00",
    }
    return {
        "version": {
            "adapter": "medical/icd10",
            "task": "classification",
            "created": CREATED.isoformat(),
        },
        "base": {
            "digest": BASE, "name": "tiny", "source": "made in memory", "architecture": "Llama",
            "parameters": 7_000_000_000, "dtype": "float32", "modality": "image",
        },
        "dataset": {
            "name": "medical/icd10", "fingerprint": "rows-1", "split_fingerprint": "split-1",
            "rows": 100, "license": "public domain", "source": "x", "counts": {"kept": 100},
            "description": None, "grouping": "a category",
        },
        "run": None if run is None else run_document,
        "evaluations": [] if run is None else [evaluation],
        "imported": None,
        "merge": None,
        "moved": [],
    }  # fmt: skip


def recovered(ref: str = "medical/icd10@1", **document: Any) -> RecoveredVersion:
    parsed = Ref.parse(ref)
    return RecoveredVersion(
        ref=parsed,
        task="classification",
        digest="sha256:" + "d" * 64,
        path=f"{parsed.adapter}/{parsed.number}",
        bytes=12,
        files={"trunkline.json": {"bytes": 12, "sha256": "a" * 64}},
        template_digest="e" * 64,
        created=CREATED,
        provenance=origin(**document),
    )


def restored(
    registry: Registry, provenance: dict[str, Any], actor: str | None = None
) -> RecordedProvenance:
    """What was recorded of an imported version."""
    return registry.provenance.reserve(
        Ref("medical", "icd10"), task="classification", provenance=provenance, actor=actor
    )[1]


# ------------------------------------------------------------------------------- one version's


@pytest.mark.dialect
def test_base_dataset_and_run_become_rows(registry: Registry) -> None:
    made = restored(registry, origin())
    assert made.run is not None
    run = registry.runs.get(made.run)
    assert (run.recipe, run.status, run.seed) == ("medical/icd10", "finished", 2)
    assert (run.base_digest, run.dataset_fingerprint) == (BASE, "rows-1")
    assert run.plugin == "trunkline-medical 0.1"
    assert run.specification == {"loss": {"name": "default"}}
    assert run.started == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


def test_an_imported_run_gets_the_next_number(registry: Registry) -> None:
    assert [restored(registry, origin()).run for _ in range(2)] == [1, 2]


def test_recorded_base_and_dataset_are_reused(registry: Registry, dataset: int) -> None:
    made = restored(registry, origin())
    assert made.dataset_id == dataset
    assert [one.architecture for one in registry.sources.list_bases()] == ["LlamaForCausalLM"]


def test_event_has_the_original_number_and_starter(registry: Registry) -> None:
    made = restored(registry, origin(), actor="key/a bo")
    event = registry.events.list(subject=f"run/{made.run}")[0]
    assert (event.kind, event.actor) == ("run.imported", "key/a bo")
    assert event.detail == {"recipe": "medical/icd10", "number": 7, "started_by": "system:ada"}


def test_the_original_starter_is_a_contributor(registry: Registry) -> None:
    number, made = registry.provenance.reserve(
        Ref("medical", "icd10"), task="classification", provenance=origin(), actor="key/a bo"
    )
    version = registry.versions.publish(
        "medical", "icd10", number, path=f"medical/icd10/{number}",
        digest="sha256:" + "a" * 64, bytes=1, actor="system:bo",
    )  # fmt: skip
    assert version.run == made.run
    assert registry.versions.contributors(version) == ["system:ada", "system:bo"]


def test_without_a_run_base_and_dataset_are_recorded(registry: Registry) -> None:
    made = restored(registry, origin(run=None))
    assert made.run is None
    assert made.dataset_id is not None
    assert registry.runs.list() == []


def test_a_running_run_is_imported_as_interrupted(registry: Registry) -> None:
    document = origin()
    document["run"] |= {"status": "running", "finished": None}
    made = restored(registry, document)
    assert registry.runs.get(made.run or 0).status == "interrupted"


def test_publication_adopts_the_evaluations(registry: Registry) -> None:
    made = restored(registry, origin())
    number = registry.versions.reserve("medical", "new", task="classification", run=made.run)
    version = registry.versions.publish(
        "medical", "new", number, digest="sha256:" + "c" * 64, path="medical/new/1", bytes=1
    )
    evaluated = registry.evaluations.list(version=version.ref)
    assert [one.results for one in evaluated] == [{"scores": SCORES, IMPORTED: True}]


# ------------------------------------------------------------------------------------- origin


@pytest.mark.dialect
def test_provenance_survives_an_import_unchanged(registry: Registry) -> None:
    registry.provenance.rebuild([recovered()])
    written = registry.provenance.of_version(Ref.parse("medical/icd10@1"))
    document = origin()
    for name in ("description", "grouping"):
        del document["dataset"][name]
    names = ("base", "dataset", "run", "evaluations", "merge")
    assert written == {name: document[name] for name in names}


def test_provenance_names_who_started_a_run(
    registry: Registry, publish: Callable[..., VersionRecord]
) -> None:
    written = registry.provenance.of_version(publish().ref)
    assert written["run"]["actor"].startswith("system:")


# ------------------------------------------------------------------------------------ rebuild


@pytest.mark.dialect
def test_a_rebuilt_version_has_its_lineage(registry: Registry) -> None:
    made = registry.provenance.rebuild([recovered("medical/icd10@3")])
    version, how = registry.versions.resolve(Ref.parse("medical/icd10"))
    assert (made.bases, made.datasets, made.runs, made.versions) == (1, 1, 1, 1)
    assert (version.number, how) == (3, "newest")
    assert (version.run, version.dataset, version.base_name) == (7, "medical/icd10", "tiny")
    assert (version.created, version.template_digest) == (CREATED, "e" * 64)


def test_next_number_follows_the_highest_rebuilt(registry: Registry) -> None:
    registry.provenance.rebuild([recovered("medical/icd10@2"), recovered("medical/icd10@5")])
    assert registry.versions.reserve("medical", "icd10", task="classification") == 6


@pytest.mark.dialect
def test_next_run_follows_the_highest_rebuilt(registry: Registry, request: Any) -> None:
    registry.provenance.rebuild([recovered(run=40)])
    start = request.getfixturevalue("start")
    assert start() > 40


def test_two_versions_of_one_run_share_it(registry: Registry) -> None:
    made = registry.provenance.rebuild([recovered("medical/a@1"), recovered("medical/b@1")])
    assert made.runs == 1


def test_two_runs_with_one_number_are_separated(registry: Registry) -> None:
    later = "2026-03-30T00:00:00+00:00"
    registry.provenance.rebuild([recovered("medical/a@1"), recovered("medical/b@1", started=later)])
    runs = [registry.versions.resolve(Ref.parse(f"medical/{name}"))[0].run for name in ("a", "b")]
    assert runs == [7, 8]


def test_rebuilt_scores_can_be_searched(registry: Registry) -> None:
    registry.provenance.rebuild([recovered()])
    evaluated = registry.evaluations.list(version=Ref.parse("medical/icd10@1"))[0]
    assert evaluated.results == {"scores": SCORES, IMPORTED: True}
    assert evaluated.run == 7


def test_a_rebuild_is_an_event_of_an_intact_chain(registry: Registry) -> None:
    registry.provenance.rebuild([recovered()], actor="system:ada")
    assert registry.events.list(subject="registry")[0].kind == "registry.rebuilt"
    assert all(report.intact for report in registry.audit.verify())


@pytest.mark.dialect
def test_rebuilding_a_registry_with_rows_is_refused(registry: Registry, dataset: int) -> None:
    with pytest.raises(RefusedError, match="is not empty: its table"):
        registry.provenance.rebuild([recovered()])
    assert registry.runs.list() == []


def test_a_failed_rebuild_adds_nothing(registry: Registry) -> None:
    broken = recovered("medical/b@1")
    broken.provenance["run"]["seed"] = None  # type: ignore[index]
    with pytest.raises(Exception, match=r"."):
        registry.provenance.rebuild(
            [recovered("medical/a@1", started="2026-03-28T00:00:00+00:00"), broken]
        )
    registry.provenance.check_empty()

"""The lineage of a version, a digest, a run or a request; and the diff of two."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from trunkline.errors import NotFoundError, UsageError
from trunkline.refs import Ref
from trunkline.registry.lineage import Lineage, LineageDiff, diff
from trunkline.registry.records import RequestEntry, VersionRecord
from trunkline.registry.registry import Registry
from trunkline.registry.tables import utc_now

Publish = Callable[..., VersionRecord]
Start = Callable[..., int]


@pytest.fixture
def version(registry: Registry, publish: Publish, dataset: int) -> VersionRecord:
    """medical/icd10@1: published, evaluated, champion for a while, served, tagged and noted."""
    made = publish()
    evaluate(registry, made, dataset, 0.8)
    registry.aliases.move(
        made.ref, "champion", reason="first", gate=[{"name": "g", "passed": True, "figures": "f"}]
    )
    server = registry.servers.start("here", 1, "http://here", made.base_digest)
    registry.servers.record_loads(server, [(str(made.ref), made.digest)])
    registry.tags.set("run/1", "ticket", "AUD-1")
    registry.tags.add_note(f"dataset/{dataset}", "license seen")
    return registry.versions.resolve(made.ref)[0]


def evaluate(
    registry: Registry, version: VersionRecord, dataset: int, value: float, split: str = "test"
) -> None:
    registry.evaluations.record(
        recipe="medical/icd10",
        base_digest=version.base_digest,
        dataset_id=dataset,
        split=split,
        results={"metric": "accuracy", "scores": {"accuracy": {"value": value}}},
        version=version.ref,
    )


def line(answered: VersionRecord, id: str = "req-1", **other: Any) -> RequestEntry:
    values: dict[str, Any] = {
        "at": utc_now(),
        "key": None,
        "route": "/v1/classify",
        "model": "medical/icd10",
        "version": str(answered.ref),
        "digest": answered.digest,
        "prompt_tokens": 1,
        "new_tokens": 0,
        "status": 200,
        "seconds": 0.1,
    }
    return RequestEntry(id=id, **values | other)


def parts(lineage: Lineage) -> dict[str, Any]:
    """Each part, abbreviated."""
    return {
        "version": lineage.version and str(lineage.version.ref),
        "base": lineage.base and lineage.base.name,
        "dataset": lineage.dataset and lineage.dataset.fingerprint,
        "run": lineage.run and lineage.run.number,
        "evaluations": [one.split for one in lineage.evaluations],
        "moves": [(one.alias, one.old, one.new, one.reason) for one in lineage.moves],
        "loads": [one.server.number for one in lineage.loads],
        "tags": lineage.tags,
        "notes": [one.detail["text"] for one in lineage.notes],
    }


@pytest.mark.dialect
def test_lineage_of_a_version_has_every_part(registry: Registry, version: VersionRecord) -> None:
    assert parts(registry.lineage.of_version(version.ref)) == {
        "version": "medical/icd10@1",
        "base": "tiny",
        "dataset": "rows-1",
        "run": 1,
        "evaluations": ["test"],
        "moves": [("champion", None, 1, "first")],
        "loads": [1],
        "tags": {"run/1": {"ticket": "AUD-1"}},
        "notes": ["license seen"],
    }


def test_history_has_the_start_of_the_run_and_the_publication(
    registry: Registry, version: VersionRecord
) -> None:
    lineage = registry.lineage.of_version(version.ref).history
    assert [one.kind for one in lineage if one.kind != "tag.set"] == [
        "alias.moved",
        "version.published",
        "run.started",
    ]


def test_lineage_of_a_digest_is_that_of_its_version(
    registry: Registry, version: VersionRecord
) -> None:
    assert registry.lineage.of_digest(version.digest) == registry.lineage.of_version(version.ref)


def test_a_removed_version_has_its_lineage(registry: Registry, version: VersionRecord) -> None:
    before = parts(registry.lineage.of_version(version.ref))
    registry.aliases.drop(Ref.parse("medical/icd10"), "champion")
    registry.versions.remove(version.ref, reason="old")
    lineage = registry.lineage.of_version(version.ref)
    assert lineage.version is not None
    assert lineage.version.removal_reason == "old"
    moved = {"moves": [("champion", 1, None, None), ("champion", None, 1, "first")]}
    assert parts(lineage) == before | moved
    assert parts(registry.lineage.of_digest(version.digest)) == parts(lineage)


def test_a_removed_version_resolves_no_longer_and_says_why(
    registry: Registry, version: VersionRecord
) -> None:
    registry.aliases.drop(Ref.parse("medical/icd10"), "champion")
    registry.versions.remove(version.ref, reason="its license ended.")
    for ref in ("medical/icd10@1", "medical/icd10", f"medical/icd10@{version.digest}"):
        with pytest.raises(
            NotFoundError, match=r"was removed on .*: its license ended\.$"
        ) as caught:
            registry.versions.resolve(Ref.parse(ref))
        assert "trunkline lineage medical/icd10@" in (caught.value.hint or "")


def test_removed_versions_are_listed_in_pages(registry: Registry, publish: Publish) -> None:
    for digest in "abc":
        registry.versions.remove(publish(digest=digest).ref, reason="old")
    first = registry.versions.list_removed(limit=1)
    rest = registry.versions.list_removed(after=first.next)
    assert [one.number for one in (*first.versions, *rest.versions)] == [3, 2, 1]
    assert rest.next is None


def test_duplicates_of_an_artifact_are_named(
    registry: Registry, version: VersionRecord, publish: Publish
) -> None:
    publish("copy")
    assert registry.lineage.of_version(version.ref).duplicates == ("medical/copy@1",)


def test_an_unknown_digest_is_refused(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="has no version with the digest"):
        registry.lineage.of_digest("sha256:" + "0" * 64)


def test_a_malformed_digest_is_refused(registry: Registry) -> None:
    with pytest.raises(UsageError, match="is not a digest"):
        registry.lineage.of_digest("sha256:abc")


def test_a_run_without_a_version_has_its_lineage(registry: Registry, start: Start) -> None:
    number = start()
    lineage = registry.lineage.of_run(number)
    assert (lineage.version, lineage.base and lineage.base.name) == (None, "tiny")
    assert [one.kind for one in lineage.history] == ["run.started"]


def test_lineage_of_a_request_has_its_version(registry: Registry, version: VersionRecord) -> None:
    registry.requests.log([line(version)])
    lineage = registry.lineage.of_request("req-1")
    assert parts(lineage) == parts(registry.lineage.of_version(version.ref))
    assert lineage.request is not None


@pytest.mark.dialect
def test_lineage_of_a_request_has_the_alias_move_in_force(
    registry: Registry, version: VersionRecord, publish: Publish
) -> None:
    registry.requests.log([line(version)])
    registry.aliases.move(publish(digest="b").ref, "champion")
    alias_move = registry.lineage.of_request("req-1").alias_move
    assert alias_move is not None
    assert (alias_move.alias, alias_move.new, alias_move.reason) == ("champion", 1, "first")


def test_a_request_before_any_move_has_no_alias_move(
    registry: Registry, version: VersionRecord
) -> None:
    registry.requests.log([line(version, at=utc_now() - timedelta(days=1))])
    assert registry.lineage.of_request("req-1").alias_move is None


def test_a_request_by_number_has_no_alias_move(registry: Registry, version: VersionRecord) -> None:
    registry.requests.log([line(version, model="medical/icd10@1")])
    assert registry.lineage.of_request("req-1").alias_move is None


def test_the_logged_digest_decides_the_version(
    registry: Registry, version: VersionRecord, publish: Publish
) -> None:
    other = publish("other", digest="d")
    registry.requests.log([line(other, version="medical/icd10@1")])
    lineage = registry.lineage.of_request("req-1")
    assert lineage.version is not None
    assert str(lineage.version.ref) == "medical/other@1"


def test_an_unknown_logged_digest_has_no_version(
    registry: Registry, version: VersionRecord
) -> None:
    registry.requests.log([line(version, digest="sha256:" + "0" * 64)])
    assert registry.lineage.of_request("req-1").version is None


def test_long_parts_are_truncated(
    registry: Registry, version: VersionRecord, dataset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.registry.lineage.MAX_PART", 1)
    evaluate(registry, version, dataset, 0.9, "validation")
    lineage = registry.lineage.of_version(version.ref)
    assert [one.split for one in lineage.evaluations] == ["validation"]
    assert lineage.truncated == ("evaluations", "history")


@pytest.fixture
def compared(registry: Registry, version: VersionRecord, dataset: int) -> LineageDiff:
    """The diff of medical/icd10@1 and a version with another seed, rank and split."""
    other = registry.sources.record_dataset(
        name="medical/icd10",
        fingerprint="rows-1",
        split_fingerprint="split-2",
        rows=100,
        license="public domain",
        source="made in memory",
        counts={"train": 70, "validation": 10, "test": 20},
    )
    run = registry.runs.start(
        recipe="medical/icd10",
        base_digest=version.base_digest,
        dataset_id=other,
        seed=2,
        settings={"r": 16},
        environment={"torch": "2.13"},
        specification={"loss": {"name": "default"}},
    )
    number = registry.versions.reserve("medical", "icd10", task="classification", run=run)
    second = registry.versions.publish(
        "medical", "icd10", number, digest="sha256:" + "c" * 64, path="medical/icd10/2", bytes=1000
    )
    evaluate(registry, second, other, 0.9)
    return diff(registry.lineage.of_version(version.ref), registry.lineage.of_version(second.ref))


def test_diff_has_only_differences(compared: LineageDiff) -> None:
    assert {one.name: (one.left, one.right) for one in compared.fields} == {
        "version.digest": ("sha256:" + "a" * 64, "sha256:" + "c" * 64),
        "version.run": (1, 2),
        "dataset.split": ("split-1", "split-2"),
        "run.seed": (1, 2),
        "settings.r": (8, 16),
        "specification.loss.name": (None, "default"),
    }


def test_diff_has_the_metrics_of_both(compared: LineageDiff) -> None:
    (figure,) = compared.metrics
    assert (figure.name, figure.left, figure.right) == ("test.accuracy", 0.8, 0.9)
    assert figure.difference == pytest.approx(0.1)


def test_metrics_of_different_rows_are_marked(compared: LineageDiff) -> None:
    assert not compared.metrics[0].same_rows


def test_a_version_does_not_differ_from_itself(registry: Registry, version: VersionRecord) -> None:
    lineage = diff(
        registry.lineage.of_version(version.ref), registry.lineage.of_version(version.ref)
    )
    assert (lineage.fields, lineage.metrics[0].same_rows) == ((), True)


@pytest.mark.dialect
def test_listed_versions_and_adapters_have_their_score(
    registry: Registry, version: VersionRecord
) -> None:
    (listed,) = registry.versions.list("medical", "icd10", scored=True)
    (adapter,) = registry.adapters.list(scored=True)
    assert listed.score is not None
    assert adapter.score is not None
    for standing in (listed.score, adapter.score):
        assert (standing.metric, standing.value) == ("accuracy", 0.8)

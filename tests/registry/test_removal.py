"""Removed versions are tombstones; rows for the maintenance of a store come in pages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text

from trunkline.errors import NotFoundError, RefusedError, RegistryError, UsageError
from trunkline.refs import Ref
from trunkline.registry import artifacts
from trunkline.registry.actors import current_process
from trunkline.registry.records import VersionRecord
from trunkline.registry.registry import Registry

REF = Ref("medical", "icd10")
Publish = Callable[..., VersionRecord]


def remove(registry: Registry, number: int = 1, **named: object) -> VersionRecord:
    return registry.versions.remove(
        REF.at(number),
        reason="trained on the wrong year",
        actor="system:ada",
        **named,  # type: ignore[arg-type]
    )


def test_no_ref_resolves_to_a_removed_version(registry: Registry, publish: Publish) -> None:
    publish()
    remove(registry)
    with pytest.raises(NotFoundError):
        registry.versions.resolve(REF)


@pytest.mark.dialect
def test_removal_leaves_one_event_with_its_reason(registry: Registry, publish: Publish) -> None:
    version = publish()
    remove(registry)
    event = registry.events.list(subject="medical/icd10", limit=1)[0]
    assert (event.kind, event.actor) == ("version.removed", "system:ada")
    assert event.detail == {
        "number": 1,
        "digest": version.digest,
        "run": version.run,
        "reason": "trained on the wrong year",
    }


def test_a_removed_version_keeps_its_row(registry: Registry, publish: Publish) -> None:
    version = publish()
    remove(registry)
    row = registry.artifacts.find([("medical", "icd10", 1)])["medical", "icd10", 1]
    assert (row.status, row.digest, row.path) == ("removed", version.digest, version.path)
    assert row.removal_reason == "trained on the wrong year"


def test_version_is_removed_by_its_digest(registry: Registry, publish: Publish) -> None:
    version = publish()
    assert registry.versions.remove(REF.at(version.digest), reason="x").number == 1


def test_the_number_of_a_removed_version_is_not_reused(
    registry: Registry, publish: Publish
) -> None:
    publish()
    remove(registry)
    assert publish(digest="c").number == 2


def test_removed_version_is_not_removed_again(registry: Registry, publish: Publish) -> None:
    publish()
    remove(registry)
    with pytest.raises(NotFoundError, match="was removed"):
        remove(registry)


@pytest.mark.parametrize("selector", [None, "champion"])
def test_removal_needs_a_number_or_digest(
    registry: Registry, publish: Publish, selector: str | None
) -> None:
    publish()
    with pytest.raises(UsageError, match="another version tomorrow"):
        registry.versions.remove(REF.at(selector), reason="x")


def test_removal_needs_a_reason(registry: Registry, publish: Publish) -> None:
    publish()
    with pytest.raises(UsageError, match="reason"):
        registry.versions.remove(REF.at(1), reason=" ")


def test_removing_an_aliased_version_is_refused(registry: Registry, publish: Publish) -> None:
    publish()
    with registry.sessions.write() as session:
        session.execute(
            text("INSERT INTO aliases (adapter_id, alias, version_id) VALUES (1, 'canary', 1)")
        )
    with pytest.raises(RefusedError, match="'canary'"):
        remove(registry)
    assert registry.versions.resolve(REF.at(1))[0].number == 1


def test_removing_a_loaded_version_is_refused(registry: Registry, publish: Publish) -> None:
    version = publish()
    with pytest.raises(RefusedError, match="server/3"):
        remove(registry, held={version.digest: ["server/3 (process 7 on box)"]})
    assert registry.versions.resolve(REF.at(1))[0].number == 1


def test_a_reservation_stores_its_process(registry: Registry, start: Callable[..., int]) -> None:
    registry.versions.reserve("medical", "icd10", task="classification", run=start())
    (pending,) = registry.artifacts.list_pending()
    assert (pending.ref, pending.reserved_by) == (REF.at(1), current_process())


def test_publication_clears_the_reservation(registry: Registry, publish: Publish) -> None:
    assert publish().files is None
    assert registry.artifacts.list_pending() == []


def test_an_abandoned_number_stores_the_reason(
    registry: Registry, start: Callable[..., int]
) -> None:
    registry.versions.reserve("medical", "icd10", task="classification", run=start())
    registry.versions.abandon("medical", "icd10", 1, reason="no room")
    row = registry.artifacts.find([("medical", "icd10", 1)])["medical", "icd10", 1]
    assert (row.status, row.removal_reason, row.reserved_by) == ("failed", "no room", None)


def test_abandoned_number_can_not_be_published(
    registry: Registry, start: Callable[..., int]
) -> None:
    registry.versions.reserve("medical", "icd10", task="classification", run=start())
    registry.versions.abandon("medical", "icd10", 1)
    with pytest.raises(RegistryError, match="not reserved"):
        registry.versions.publish(
            "medical", "icd10", 1, digest="sha256:" + "a" * 64, path="medical/icd10/1", bytes=1
        )


@pytest.mark.dialect
def test_pending_versions_come_in_pages(registry: Registry, start: Callable[..., int]) -> None:
    run = start()
    for _ in range(3):
        registry.versions.reserve("medical", "icd10", task="classification", run=run)
    first = registry.artifacts.list_pending(limit=2)
    rest = registry.artifacts.list_pending(limit=2, after=first[-1].id)
    assert [one.number for one in (*first, *rest)] == [1, 2, 3]


@pytest.mark.parametrize("page", [1, 2, 3, 500])
def test_iteration_yields_every_version_once(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(artifacts, "PAGE", page)
    for _ in range(2):
        publish()
    publish("other")
    remove(registry)
    registry.versions.reserve("medical", "icd10", task="classification")
    assert [str(one.ref) for one in registry.artifacts.iter_visible()] == [
        "medical/icd10@2",
        "medical/other@1",
    ]
    assert registry.artifacts.count() == 2


@pytest.mark.dialect
def test_find_leaves_out_unknown_versions(registry: Registry, publish: Publish) -> None:
    publish()
    numbers = [("medical", "icd10", 1), ("medical", "icd10", 2), ("retail", "icd10", 1)]
    assert list(registry.artifacts.find(numbers)) == numbers[:1]


def test_visible_digests_are_those_of_visible_versions(
    registry: Registry, publish: Publish
) -> None:
    kept, gone = publish(digest="c"), publish(digest="d")
    remove(registry, gone.number)
    assert registry.artifacts.visible_digests([kept.digest, gone.digest, "sha256:x"]) == {
        kept.digest
    }


def test_statuses_leave_out_unknown_runs(registry: Registry, start: Callable[..., int]) -> None:
    run = start()
    assert registry.runs.statuses([run, run + 1]) == {run: "running"}


@pytest.mark.dialect
def test_a_rewritten_file_is_recorded(registry: Registry, publish: Publish) -> None:
    publish()
    registry.artifacts.record_file(REF.at(1), "README.md", bytes=5, sha256="a" * 64)
    version = registry.artifacts.record_file(REF.at(1), "README.md", bytes=7, sha256="b" * 64)
    assert version.files == {"README.md": {"bytes": 7, "sha256": "b" * 64}}
    assert version.bytes == 1007

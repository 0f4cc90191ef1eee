"""Tags and notes: valid values, subjects, and the events that they append."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trunkline.errors import NotFoundError, RefusedError, UsageError
from trunkline.refs import Ref
from trunkline.registry import tags
from trunkline.registry.records import VersionRecord
from trunkline.registry.registry import Registry

Publish = Callable[..., VersionRecord]
VERSION = "medical/icd10@1"


@pytest.fixture
def version(publish: Publish) -> VersionRecord:
    return publish()


@pytest.fixture(params=["version", "adapter", "run", "dataset", "base", "key", "server"])
def subject(request: pytest.FixtureRequest, registry: Registry, version: VersionRecord) -> str:
    """One subject of each kind."""
    if request.param == "key":
        return f"key/{registry.keys.create('ada')[0].id}"
    if request.param == "server":
        return f"server/{registry.servers.start('here', 1, '', version.base_digest)}"
    named = {
        "version": VERSION,
        "adapter": "medical/icd10",
        "run": "run/1",
        "dataset": "dataset/1",
        "base": f"base/{version.base_digest}",
    }
    return named[request.param]


def test_anything_can_be_tagged(registry: Registry, subject: str) -> None:
    registry.tags.set(subject, "reviewed", "yes")
    assert registry.tags.get(subject).tags == {"reviewed": "yes"}


def test_anything_can_be_noted(registry: Registry, subject: str) -> None:
    registry.tags.add_note(subject, "seen\nby the board")
    assert [one.detail["text"] for one in registry.tags.notes(subject)] == ["seen\nby the board"]


@pytest.mark.dialect
def test_setting_a_tag_again_replaces_it(registry: Registry, version: VersionRecord) -> None:
    registry.tags.set(VERSION, "state", "draft")
    registry.tags.set(VERSION, "state", "final", actor="ada")
    event = registry.events.list(subject=VERSION)[0]
    assert registry.tags.get(VERSION).tags == {"state": "final"}
    assert (event.kind, event.actor, event.detail) == (
        "tag.set",
        "ada",
        {"key": "state", "value": "final", "previous": "draft"},
    )


def test_setting_the_same_value_leaves_no_event(registry: Registry, version: VersionRecord) -> None:
    registry.tags.set(VERSION, "state", "draft")
    registry.tags.set(VERSION, "state", "draft")
    assert len(registry.events.list(subject=VERSION)) == 1


def test_removing_a_tag_is_an_event(registry: Registry, version: VersionRecord) -> None:
    registry.tags.set(VERSION, "state", "draft")
    registry.tags.remove(VERSION, "state")
    assert registry.tags.get(VERSION).tags == {}
    assert registry.events.list(subject=VERSION)[0].kind == "tag.removed"


def test_removing_an_unknown_tag_names_the_nearest(
    registry: Registry, version: VersionRecord
) -> None:
    registry.tags.set(VERSION, "state", "draft")
    with pytest.raises(NotFoundError, match="no tag 'stat'") as caught:
        registry.tags.remove(VERSION, "stat")
    assert "'state'" in (caught.value.hint or "")


def test_one_invalid_tag_sets_none(registry: Registry, version: VersionRecord) -> None:
    with pytest.raises(NotFoundError):
        registry.tags.update(VERSION, {"a": "1"}, remove=["b"])
    assert registry.tags.get(VERSION).tags == {}


def test_a_tag_on_an_alias_is_on_its_version(registry: Registry, version: VersionRecord) -> None:
    registry.aliases.move(version.ref, "champion")
    registry.tags.set("medical/icd10@champion", "state", "draft")
    assert registry.tags.get(VERSION).tags == {"state": "draft"}


def test_a_removed_version_can_be_noted(registry: Registry, version: VersionRecord) -> None:
    registry.versions.remove(version.ref, reason="old")
    registry.tags.add_note(VERSION, "its license had ended")
    assert len(registry.tags.notes(VERSION)) == 1


def test_a_subject_has_at_most_100_tags(
    registry: Registry, version: VersionRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tags, "MAX_TAGS", 2)
    registry.tags.update(VERSION, {"a": "1", "b": "1"})
    with pytest.raises(RefusedError, match="more than 2 tags"):
        registry.tags.set(VERSION, "c", "1")
    assert registry.tags.get(VERSION).tags == {"a": "1", "b": "1"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("State", "x"),
        ("", "x"),
        ("a.b", "x"),
        ("a" * 41, "x"),
        ("state", ""),
        ("state", " "),
        ("state", "x" * 501),
        ("state", "a\nb"),
        ("state", "a\0b"),
        ("state", "\ud800"),
    ],
)
def test_a_malformed_tag_is_refused(
    registry: Registry, version: VersionRecord, key: str, value: str
) -> None:
    with pytest.raises(UsageError):
        registry.tags.set(VERSION, key, value)


@pytest.mark.parametrize("text", ["", " \n", "x" * 4001, "a\0b", "a\x1b[31m", "a\x9b31m", "\ud800"])
def test_a_malformed_note_is_refused(registry: Registry, version: VersionRecord, text: str) -> None:
    with pytest.raises(UsageError, match="is not a valid note"):
        registry.tags.add_note(VERSION, text)
    assert registry.tags.notes(VERSION) == []


@pytest.mark.parametrize(
    "subject",
    ["medical/icd10@9", "medical/icd11", "run/9", "dataset/9", "base/0", "key/0", "request/x"],
)
def test_tagging_a_missing_subject_is_refused(
    registry: Registry, version: VersionRecord, subject: str
) -> None:
    with pytest.raises(NotFoundError) as caught:
        registry.tags.set(subject, "state", "draft")
    assert caught.value.hint


@pytest.mark.parametrize(
    "subject",
    ["", "x", "../x", "medical/icd10@", "run/-1", "run/0", "run/1x", "base/\0", "medical/Icd10"],
)
def test_a_malformed_subject_is_refused(
    registry: Registry, version: VersionRecord, subject: str
) -> None:
    with pytest.raises(UsageError):
        registry.tags.set(subject, "state", "draft")
    assert "tag.set" not in {event.kind for event in registry.events.list()}


def test_notes_are_paged_from_the_newest(registry: Registry, version: VersionRecord) -> None:
    for text in ("one", "two", "three"):
        registry.tags.add_note(VERSION, text)
    first = registry.tags.notes(VERSION, limit=2)
    rest = registry.tags.notes(VERSION, before=first[-1].seq)
    assert [one.detail["text"] for one in [*first, *rest]] == ["three", "two", "one"]


@pytest.mark.dialect
def test_history_has_the_events_of_an_adapter_and_its_versions(
    registry: Registry, version: VersionRecord, publish: Publish
) -> None:
    second = publish(digest="b")
    registry.aliases.move(version.ref, "champion")
    registry.tags.set(VERSION, "state", "draft")
    registry.tags.add_note("medical/icd10", "all is well")
    kinds = [one.kind for one in registry.events.history(Ref.parse("medical/icd10"))]
    assert kinds == [
        "note.added",
        "tag.set",
        "alias.moved",
        "version.published",
        "version.published",
    ]
    of_second = registry.events.history(second.ref)
    assert [(one.kind, one.detail["number"]) for one in of_second] == [("version.published", 2)]


@pytest.mark.dialect
def test_history_of_a_version_has_the_moves_to_and_from_it(
    registry: Registry, version: VersionRecord, publish: Publish
) -> None:
    second = publish(digest="b")
    registry.aliases.move(version.ref, "champion")
    registry.aliases.move(second.ref, "champion")
    moves = [
        (one.detail["old"], one.detail["new"])
        for one in registry.events.history(version.ref)
        if one.kind == "alias.moved"
    ]
    assert moves == [(1, 2), (None, 1)]


def test_a_numeric_tag_is_in_no_other_versions_history(
    registry: Registry, version: VersionRecord
) -> None:
    registry.tags.set("medical/icd10", "state", "1")
    registry.tags.set("medical/icd10", "state", "2")
    assert {one.kind for one in registry.events.history(version.ref)} == {"version.published"}


def test_history_is_paged(registry: Registry, version: VersionRecord, publish: Publish) -> None:
    publish(digest="b")
    ref = Ref.parse("medical/icd10")
    (newest,) = registry.events.history(ref, limit=1)
    assert [one.detail["number"] for one in registry.events.history(ref, before=newest.seq)] == [1]


def test_history_outlives_the_last_version(registry: Registry, version: VersionRecord) -> None:
    registry.versions.remove(version.ref, reason="old")
    for ref in ("medical/icd10", VERSION):
        assert registry.events.history(Ref.parse(ref))[0].kind == "version.removed"


def test_history_of_an_unknown_adapter_is_refused(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="no adapter 'medical/nope'"):
        registry.events.history(Ref.parse("medical/nope"))


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("run with PGPASSWORD=Kx9qZ7w psql", "run with PGPASSWORD=… psql"),
        ("api_key: Kx9qZ7w, as agreed", "api_key: … as agreed"),
        ('{"client_secret": "Kx9qZ7w"}', '{"client_secret": …'),
        ("password: please change it", "password: please change it"),
        ("max_new_tokens=4096 and seed=1", "max_new_tokens=4096 and seed=1"),
        ("the secret of its accuracy = more rows", "the secret of its accuracy = more rows"),
    ],
)
def test_pasted_setting_is_stored_without_its_secret(
    registry: Registry, version: VersionRecord, text: str, stored: str
) -> None:
    registry.tags.add_note(VERSION, text)
    (note,) = registry.tags.notes(VERSION)
    assert note.detail["text"] == stored

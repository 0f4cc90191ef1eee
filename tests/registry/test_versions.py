"""Numbers, publication, aliases, and which version a ref resolves to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trunkline.errors import NotFoundError, RefusedError, RegistryError, UsageError
from trunkline.refs import Ref
from trunkline.registry.records import VersionRecord
from trunkline.registry.registry import Registry

Publish = Callable[..., VersionRecord]

BASE = "sha256:" + "b" * 64


def reserve(registry: Registry, run: int | None = None) -> int:
    return registry.versions.reserve("medical", "icd10", task="classification", run=run)


def test_versions_are_numbered_from_one(publish: Publish) -> None:
    assert [publish().number for _ in range(3)] == [1, 2, 3]


def test_each_adapter_has_its_own_numbers(publish: Publish) -> None:
    assert (publish("a").number, publish("b").number) == (1, 1)


@pytest.mark.dialect
def test_a_failed_publication_uses_its_number(registry: Registry, publish: Publish) -> None:
    number = reserve(registry)
    registry.versions.abandon("medical", "icd10", number)
    assert (number, publish().number) == (1, 2)


@pytest.mark.dialect
def test_a_published_version_has_its_sources(publish: Publish) -> None:
    version = publish()
    assert (
        str(version.ref),
        version.task,
        version.path,
        version.bytes,
        version.base_name,
        version.dataset,
        version.dataset_fingerprint,
        version.split_fingerprint,
        version.run,
    ) == (
        "medical/icd10@1",
        "classification",
        "medical/icd10/1",
        1000,
        "tiny",
        "medical/icd10",
        "rows-1",
        "split-1",
        1,
    )


def test_a_version_without_a_run_names_its_base_itself(registry: Registry, dataset: int) -> None:
    base = registry.sources.list_bases()[0].digest
    version = registry.versions.publish(
        "medical",
        "icd10",
        reserve(registry),
        digest="sha256:" + "a" * 64,
        path="medical/icd10/1",
        bytes=1,
        base_digest=base,
    )
    assert (version.base_digest, version.dataset, version.run) == (base, None, None)


def test_a_version_with_neither_run_nor_base_is_refused(registry: Registry, dataset: int) -> None:
    with pytest.raises(RegistryError, match="neither a run nor a base"):
        registry.versions.publish(
            "medical",
            "icd10",
            reserve(registry),
            digest="sha256:" + "a" * 64,
            path="medical/icd10/1",
            bytes=1,
        )


@pytest.mark.parametrize(
    "path", ["", "/etc", "../x", "medical/..", "medical/./x", "a\\b", "a//b", "a/", "a\0", "a\n"]
)
def test_a_path_that_leaves_the_adapters_is_refused(
    registry: Registry, start: Callable[..., int], path: str
) -> None:
    number = reserve(registry, start())
    with pytest.raises(UsageError, match="not a path"):
        registry.versions.publish(
            "medical", "icd10", number, digest="sha256:" + "a" * 64, path=path, bytes=1
        )


def test_two_versions_may_have_one_digest(publish: Publish) -> None:
    assert publish(digest="c").digest == publish(digest="c").digest


def test_a_pending_version_is_invisible(registry: Registry, publish: Publish) -> None:
    publish()
    reserve(registry)
    assert [version.number for version in registry.versions.list("medical", "icd10")] == [1]
    assert registry.adapters.get("medical", "icd10").newest == 1
    assert registry.versions.resolve(Ref.parse("medical/icd10"))[0].number == 1
    with pytest.raises(NotFoundError):
        registry.versions.resolve(Ref.parse("medical/icd10@2"))


def test_an_adapter_with_only_a_pending_version_is_invisible(registry: Registry) -> None:
    reserve(registry)
    assert registry.adapters.list() == []
    with pytest.raises(NotFoundError):
        registry.adapters.get("medical", "icd10")


def test_a_version_is_published_once(registry: Registry, publish: Publish) -> None:
    version = publish()
    with pytest.raises(RegistryError, match="not reserved"):
        registry.versions.publish(
            "medical", "icd10", 1, digest=version.digest, path=version.path, bytes=1
        )


def test_an_abandoned_version_is_not_published(
    registry: Registry, start: Callable[..., int]
) -> None:
    number = reserve(registry, start())
    registry.versions.abandon("medical", "icd10", number)
    with pytest.raises(RegistryError, match="not reserved"):
        registry.versions.publish(
            "medical", "icd10", number, digest="sha256:" + "a" * 64, path="a", bytes=1
        )


def test_a_visible_version_is_not_abandoned(registry: Registry, publish: Publish) -> None:
    publish()
    with pytest.raises(RegistryError, match="not reserved"):
        registry.versions.abandon("medical", "icd10", 1)


def test_an_adapter_keeps_its_task(registry: Registry) -> None:
    reserve(registry)
    with pytest.raises(RefusedError, match="is for classification, not for regression"):
        registry.versions.reserve("medical", "icd10", task="regression")


@pytest.mark.parametrize("domain", ["..", "Medical", ""])
def test_a_malformed_name_gets_no_number(registry: Registry, domain: str) -> None:
    with pytest.raises(UsageError):
        registry.versions.reserve(domain, "icd10", task="classification")


def test_adapters_are_listed_by_name_domain_and_page(registry: Registry, publish: Publish) -> None:
    for name in ("c", "a", "b"):
        publish(name)
    page = registry.adapters.list(limit=2, after=Ref.parse("medical/a"))
    assert [row.name for row in page] == ["b", "c"]
    assert registry.adapters.list(domain="retail") == []


@pytest.mark.dialect
def test_an_adapter_has_its_newest_version_and_aliases(
    registry: Registry, publish: Publish
) -> None:
    publish()
    publish()
    registry.aliases.set(Ref.parse("medical/icd10@1"), "champion")
    adapter = registry.adapters.get("medical", "icd10")
    assert (adapter.newest, adapter.versions, adapter.aliases) == (2, 2, {"champion": 1})


def test_an_unknown_adapter_names_the_nearest(registry: Registry, publish: Publish) -> None:
    publish()
    with pytest.raises(NotFoundError, match="medical/icd11") as caught:
        registry.versions.list("medical", "icd11")
    assert "Did you mean 'medical/icd10'?" in (caught.value.hint or "")


def test_versions_are_listed_newest_first_and_paged(registry: Registry, publish: Publish) -> None:
    for _ in range(4):
        publish()
    page = registry.versions.list("medical", "icd10", limit=2, before=4)
    assert [version.number for version in page] == [3, 2]


# ------------------------------------------------------------------------------ resolving


@pytest.mark.dialect
def test_versions_of_several_adapters_come_newest_first_with_their_aliases(
    registry: Registry, publish: Publish
) -> None:
    for name in ("b", "a", "a", "c"):
        publish(name)
    registry.aliases.set(Ref("medical", "a", "1"), "champion")
    adapters = [Ref("medical", "b"), Ref("medical", "a")]
    assert registry.versions.list_for_base(adapters, base_digest=BASE, limit=9) == {
        Ref("medical", name): registry.versions.list("medical", name) for name in ("a", "b")
    }


def test_versions_of_several_adapters_are_the_visible_ones_of_one_base(
    registry: Registry, publish: Publish
) -> None:
    registry.sources.record_base(
        digest="other", name="other", source="made", architecture="L", parameters=1, dtype="float32"
    )
    for name in ("a", "a", "gone", "strange"):
        publish(name)
    for name in ("a", "strange"):
        number = registry.versions.reserve("medical", name, task="classification")
        registry.versions.publish(
            "medical", name, number, digest="sha256:" + "f" * 64, path=f"medical/{name}/{number}",
            bytes=1, base_digest="other",
        )  # fmt: skip
    registry.versions.reserve("medical", "a", task="classification")
    for ref in ("medical/a@1", "medical/gone@1", "medical/strange@1"):
        registry.versions.remove(Ref.parse(ref), reason="a test")
    adapters = [Ref("medical", name) for name in ("a", "gone", "strange", "unknown")]
    versions = registry.versions.list_for_base(adapters, base_digest=BASE, limit=9)
    assert [str(one.ref) for some in versions.values() for one in some] == ["medical/a@2"]


def test_versions_of_several_adapters_are_bounded_together(
    registry: Registry, publish: Publish
) -> None:
    for name in ("a", "a", "b", "b"):
        publish(name)
    adapters = [Ref("medical", "a"), Ref("medical", "b")]
    versions = registry.versions.list_for_base(adapters, base_digest=BASE, limit=3)
    assert [str(one.ref) for some in versions.values() for one in some] == [
        "medical/a@2",
        "medical/a@1",
        "medical/b@2",
    ]


def test_versions_of_no_adapters_are_none(registry: Registry) -> None:
    assert registry.versions.list_for_base([], base_digest=BASE, limit=9) == {}


def test_without_a_champion_a_ref_resolves_to_the_newest(
    registry: Registry, publish: Publish
) -> None:
    publish()
    publish()
    version, how = registry.versions.resolve(Ref.parse("medical/icd10"))
    assert (version.number, how) == (2, "newest")


def test_the_champion_takes_precedence_over_the_newest(
    registry: Registry, publish: Publish
) -> None:
    publish()
    publish()
    registry.aliases.set(Ref.parse("medical/icd10@1"), "champion")
    version, how = registry.versions.resolve(Ref.parse("medical/icd10"))
    assert (version.number, how, version.aliases) == (1, "champion", ("champion",))


@pytest.mark.dialect
@pytest.mark.parametrize(
    ("selector", "number", "how"),
    [("1", 1, "number"), ("canary", 2, "alias"), ("sha256:" + "a" * 64, 3, "digest")],
)
def test_a_selector_is_resolved(
    registry: Registry, publish: Publish, selector: str, number: int, how: str
) -> None:
    publish(digest="a")
    publish(digest="c")
    publish(digest="a")
    registry.aliases.set(Ref.parse("medical/icd10@2"), "canary")
    version, by = registry.versions.resolve(Ref.parse(f"medical/icd10@{selector}"))
    assert (version.number, by) == (number, how)


def test_an_alias_of_another_adapter_does_not_resolve(registry: Registry, publish: Publish) -> None:
    publish("a")
    publish("b")
    registry.aliases.set(Ref.parse("medical/a@1"), "canary")
    with pytest.raises(NotFoundError):
        registry.versions.resolve(Ref.parse("medical/b@canary"))


def test_a_digest_of_another_adapter_does_not_resolve(registry: Registry, publish: Publish) -> None:
    publish("a", digest="a")
    publish("b", digest="b")
    with pytest.raises(NotFoundError):
        registry.versions.resolve(Ref.parse(f"medical/b@sha256:{'a' * 64}"))


def test_an_unknown_number_names_the_newest(registry: Registry, publish: Publish) -> None:
    publish()
    with pytest.raises(NotFoundError, match="'medical/icd10@7'") as caught:
        registry.versions.resolve(Ref.parse("medical/icd10@7"))
    assert "The newest is medical/icd10@1" in (caught.value.hint or "")


def test_an_unknown_alias_names_the_nearest(registry: Registry, publish: Publish) -> None:
    publish()
    registry.aliases.set(Ref.parse("medical/icd10@1"), "champion")
    with pytest.raises(NotFoundError) as caught:
        registry.versions.resolve(Ref.parse("medical/icd10@champoin"))
    assert "Did you mean 'medical/icd10@champion'?" in (caught.value.hint or "")


# -------------------------------------------------------------------------------- aliases


def test_an_alias_moves_from_old_to_new(registry: Registry, publish: Publish) -> None:
    publish()
    publish()
    assert registry.aliases.set(Ref.parse("medical/icd10@1"), "champion") == (None, 1)
    assert registry.aliases.set(Ref.parse("medical/icd10@2"), "champion") == (1, 2)


def test_a_move_appends_an_event_with_its_detail(registry: Registry, publish: Publish) -> None:
    publish()
    registry.aliases.set(Ref.parse("medical/icd10@1"), "champion", actor="ada")
    event = registry.events.list(subject="medical/icd10")[0]
    assert (event.kind, event.actor) == ("alias.moved", "ada")
    detail = {"alias": "champion", "old": None, "new": 1, "forced": False}
    assert detail.items() <= event.detail.items()


def test_an_unmoved_alias_appends_no_event(registry: Registry, publish: Publish) -> None:
    publish()
    registry.aliases.set(Ref.parse("medical/icd10@1"), "champion")
    before = registry.events.list()
    assert registry.aliases.set(Ref.parse("medical/icd10@1"), "champion") == (1, 1)
    assert registry.events.list() == before


@pytest.mark.parametrize("alias", ["latest", "v3", "base", "3", "Champion"])
def test_a_reserved_alias_is_refused(registry: Registry, publish: Publish, alias: str) -> None:
    publish()
    with pytest.raises(UsageError):
        registry.aliases.set(Ref.parse("medical/icd10@1"), alias)


def test_publishing_and_abandoning_append_events(registry: Registry, publish: Publish) -> None:
    publish()
    registry.versions.abandon("medical", "icd10", reserve(registry))
    kinds = [event.kind for event in registry.events.list(subject="medical/icd10")]
    assert kinds == ["version.abandoned", "version.published"]


def test_events_are_paged(registry: Registry, publish: Publish) -> None:
    publish()
    publish()
    everything = registry.events.list()
    assert registry.events.list(limit=2, before=everything[0].seq) == everything[1:3]

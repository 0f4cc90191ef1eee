"""Which models a key may use, how refs resolve, and the pages of the list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event

import trunkline
from trunkline.api import Platform
from trunkline.errors import BaseMismatchError
from trunkline.refs import Ref
from trunkline.registry.records import KeyRecord
from trunkline.registry.registry import Registry
from trunkline.serving.engines import ServerBase
from trunkline.serving.errors import ApiError
from trunkline.serving.models import ModelEntry, ServedModels

BASE = ServerBase("tiny", "b" * 64, 1)
OTHER_BASE = "c" * 64
ALL = [
    "base",
    "medical/icd",
    "medical/icd@champion",
    "medical/icd@2",
    "medical/icd@1",
    "retail/tax",
    "retail/tax@1",
]
SIZES = [(500, 1000), (500, 5), (3, 3), (2, 1), (1, 2)]
"""Page sizes and batch sizes."""


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    platform = trunkline.open(tmp_path, no_plugins=True)
    yield platform
    platform.registry.close()


@pytest.fixture
def registry(platform: Platform) -> Registry:
    return platform.registry


@pytest.fixture
def models(platform: Platform, versions: Registry) -> ServedModels:
    """The models of a server on ``versions``."""
    return ServedModels(platform, BASE)


def create_key(registry: Registry, *adapters: str) -> KeyRecord:
    return registry.keys.create("me", adapters)[0]


def list_ids(
    models: ServedModels,
    key: KeyRecord | None = None,
    *,
    limit: int = 100,
    after: str | None = None,
) -> list[str]:
    return [entry.id for entry in models.page(key, limit, after)[0]]


def publish(registry: Registry, ref: Ref, base: str = BASE.digest) -> None:
    number = registry.versions.reserve(ref.domain, ref.name, task="classification")
    registry.versions.publish(
        ref.domain, ref.name, number, digest=f"sha256:{number:064x}", path=f"{ref}/{number}",
        bytes=1, base_digest=base,
    )  # fmt: skip


@pytest.fixture
def mixed(versions: Registry) -> Registry:
    """``versions``, and adapters with versions that are removed or belong to another base."""
    for adapter, bases in {
        "finance/both": [BASE.digest, OTHER_BASE, BASE.digest, OTHER_BASE],
        "finance/moved": [BASE.digest, OTHER_BASE],
        "retail/gone": [BASE.digest],
        "retail/lost": [BASE.digest] * 4,
    }.items():
        for base in bases:
            publish(versions, Ref.parse(adapter), base)
    versions.versions.reserve("retail", "lost", task="classification")
    for alias, pointed in {
        "canary": ["finance/both@1", "retail/lost@3"],
        "champion": ["finance/moved@1", "retail/lost@1"],
        "beta": ["finance/both@2", "retail/lost@3"],
    }.items():
        for ref in pointed:
            versions.aliases.set(Ref.parse(ref), alias)
    for ref in ("retail/gone@1", "retail/lost@2", "retail/lost@4"):
        versions.versions.remove(Ref.parse(ref), reason="a test")
    return versions


def resolve_each(
    models: ServedModels, key: KeyRecord | None, adapters: Iterable[str]
) -> list[ModelEntry]:
    """The entries of the base and of every selector of the adapters, up to five versions."""
    selectors = ["", "@beta", "@canary", "@champion", *(f"@{number}" for number in range(5, 0, -1))]
    refs = ["base", *(f"{adapter}{selector}" for adapter in adapters for selector in selectors)]
    entries = []
    for ref in refs:
        try:
            entries.append(models.get(key, ref))
        except (ApiError, BaseMismatchError):
            continue
    return entries


def count_statements(platform: Platform, adapters: int, limit: int) -> int:
    """SQL statements that list the base and ``adapters`` adapters, with two versions each."""
    statements: list[str] = []

    def record(connection: object, cursor: object, statement: str, *more: object) -> None:
        statements.append(statement)

    registry = platform.registry
    engine = registry.sessions.engines.reading
    key = create_key(registry, "base", *(f"many/a-{number}" for number in range(adapters)))
    event.listen(engine, "before_cursor_execute", record)
    try:
        ServedModels(platform, BASE).page(key, limit, None)
    finally:
        event.remove(engine, "before_cursor_execute", record)
    return len(statements)


def test_list_has_base_names_aliases_and_versions_of_this_base(models: ServedModels) -> None:
    assert list_ids(models) == ALL


def test_name_selects_its_champion(models: ServedModels) -> None:
    entry = models.get(None, "medical/icd")
    assert (entry.id, entry.root, entry.parent) == ("medical/icd", "medical/icd@1", "tiny")


def test_key_lists_only_its_adapters(versions: Registry, models: ServedModels) -> None:
    key = create_key(versions, "retail/*")
    assert list_ids(models, key) == ["retail/tax", "retail/tax@1"]


@pytest.mark.parametrize("after", [None, *ALL])
def test_page_starts_after_the_given_id(models: ServedModels, after: str | None) -> None:
    first = 0 if after is None else ALL.index(after) + 1
    assert list_ids(models, limit=2, after=after) == ALL[first : first + 2]


def test_page_reports_whether_there_is_more(models: ServedModels) -> None:
    has_more = [models.page(None, limit, None)[1] for limit in (len(ALL) - 1, len(ALL))]
    assert has_more == [True, False]


@pytest.mark.parametrize(("page_size", "batch_size"), SIZES)
@pytest.mark.parametrize(
    "patterns", [None, ["*"], ["finance/*", "base"], ["retail/lost", "finance/both"], ["x/*"]]
)
def test_list_equals_the_resolution_of_each_ref(
    platform: Platform,
    mixed: Registry,
    patterns: list[str] | None,
    page_size: int,
    batch_size: int,
) -> None:
    models = ServedModels(platform, BASE, page_size=page_size, batch_size=batch_size)
    key = None if patterns is None else create_key(mixed, *patterns)
    adapters = ["finance/both", "finance/moved", "medical/icd", "medical/strange"]
    adapters += ["retail/gone", "retail/lost", "retail/tax"]
    assert models.page(key, 100, None) == (resolve_each(models, key, adapters), False)


@pytest.mark.parametrize(("page_size", "batch_size"), SIZES)
@pytest.mark.parametrize("limit", [1, 3, 7])
@pytest.mark.usefixtures("mixed")
def test_pages_concatenate_to_the_list(
    platform: Platform, page_size: int, batch_size: int, limit: int
) -> None:
    models = ServedModels(platform, BASE, page_size=page_size, batch_size=batch_size)
    expected = list_ids(ServedModels(platform, BASE))
    listed: list[str] = []
    for _ in expected:
        listed += list_ids(models, limit=limit, after=listed[-1] if listed else None)
    assert listed == expected


@pytest.mark.parametrize("limit", [100, 10_000])
def test_number_of_statements_does_not_grow_with_adapters(
    platform: Platform, versions: Registry, limit: int
) -> None:
    for number in range(30):
        for _ in range(2):
            publish(versions, Ref("many", f"a-{number}"))
    assert count_statements(platform, 30, limit) == count_statements(platform, 3, limit)


def test_page_after_a_forbidden_model_is_refused(versions: Registry, models: ServedModels) -> None:
    with pytest.raises(ApiError, match="after"):
        list_ids(models, create_key(versions, "retail/*"), after="medical/icd@1")


def test_page_after_an_unknown_model_is_refused(models: ServedModels) -> None:
    with pytest.raises(ApiError, match="after"):
        list_ids(models, after="medical/none")


@pytest.mark.parametrize(
    "ref",
    ["gpt-4o", "medical/none", "medical/icd@9", "medical/icd@nobody", "../x", "", "medical/icd@"],
)
def test_unknown_or_malformed_ref_is_a_404(models: ServedModels, ref: str) -> None:
    with pytest.raises(ApiError) as caught:
        models.resolve(None, ref)
    assert (caught.value.http_status, caught.value.code) == (404, "model_not_found")


def test_forbidden_model_has_the_same_error_as_an_unknown_one(
    versions: Registry, models: ServedModels
) -> None:
    key = create_key(versions, "retail/*")
    errors = set()
    for ref in ("medical/icd", "medical/ice", "base"):
        with pytest.raises(ApiError) as caught:
            models.resolve(key, ref)
        errors.add(str(caught.value).replace(ref, "X") + str(caught.value.hint))
    assert len(errors) == 1


def test_version_of_another_base_is_refused(models: ServedModels) -> None:
    with pytest.raises(BaseMismatchError, match="other"):
        models.resolve(None, "medical/strange@1")


@pytest.mark.parametrize(
    ("ref", "meant"),
    [
        ("Medical/ICD", "medical/icd"),
        ("medical/icd ", "medical/icd"),
        (" medical/icd\n", "medical/icd"),
        ("medical/icd:latest", "medical/icd"),
        ("medical/icd@latest", "medical/icd"),
        ("medical/icd:1", "medical/icd@1"),
        ("medical/icd@7", "medical/icd"),
        ("medical/icd@v1", "medical/icd"),
        ("medical/icd@champoin", "medical/icd@champion"),
        ("Medical/ICD@2", "medical/icd@2"),
        ("medical/idc", "medical/icd"),
        ("medical_icd", "medical/icd"),
        ("medical-icd", "medical/icd"),
        ("medicalicd", "medical/icd"),
        ("icd", "medical/icd"),
        ("/medical/icd/", "medical/icd"),
        ("openai/medical/icd", "medical/icd"),
        ("hosted_vllm/medical/icd@1", "medical/icd@1"),
        ("retail/TAX", "retail/tax"),
        ("Base", "base"),
        ("BASE ", "base"),
        ("openai/base", "base"),
    ],
)
def test_error_for_a_name_that_nearly_exists_names_the_right_one(
    models: ServedModels, ref: str, meant: str
) -> None:
    with pytest.raises(ApiError) as caught:
        models.resolve(None, ref)
    assert (caught.value.http_status, caught.value.code) == (404, "model_not_found")
    assert f"Did you mean {meant}" in (caught.value.hint or "")


@pytest.mark.parametrize("ref", ["gpt-4o", "x", "", "/", "@", ":", "medical/strange", "a" * 300])
def test_name_like_no_served_model_has_no_suggestion(models: ServedModels, ref: str) -> None:
    with pytest.raises((ApiError, BaseMismatchError)) as caught:
        models.resolve(None, ref)
    assert "Did you mean" not in (caught.value.hint or "")


@pytest.mark.parametrize("ref", ["medical/icd", "Medical/ICD", "icd", "medical/icd@1", "Base"])
def test_suggestion_never_names_a_model_that_the_key_may_not_use(
    versions: Registry, models: ServedModels, ref: str
) -> None:
    key = create_key(versions, "retail/*")
    with pytest.raises(ApiError) as caught:
        models.resolve(key, ref)
    assert caught.value.hint == "GET /v1/models lists the models that you may use."
    with pytest.raises(ApiError, match="does not exist") as caught:
        models.resolve(key, "retial/tax")
    assert "Did you mean retail/tax?" in (caught.value.hint or "")

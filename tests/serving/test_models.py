"""What may be named as a model, by whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from sqlalchemy import event

from trunkline.errors import BaseMismatchError
from trunkline.refs import Ref
from trunkline.registry.records import KeyRecord
from trunkline.registry.registry import Registry
from trunkline.serving import models as module
from trunkline.serving.errors import ApiError
from trunkline.serving.models import Model, ServedBase, find_model, list_models

HERE = ServedBase("tiny", "b" * 64, 1)
ELSEWHERE = "c" * 64
ALL = [
    "base",
    "medical/icd",
    "medical/icd@champion",
    "medical/icd@2",
    "medical/icd@1",
    "retail/tax",
    "retail/tax@1",
]


def key(registry: Registry, *adapters: str) -> KeyRecord:
    return registry.keys.create("me", adapters)[0]


def ids(registry: Registry, key: KeyRecord | None = None, **page: object) -> list[str]:
    limit, after = page.get("limit", 100), page.get("after")
    assert isinstance(limit, int)
    assert after is None or isinstance(after, str)
    return [model.id for model in list_models(registry, HERE, key, limit, after)[0]]


def publish(registry: Registry, ref: Ref, base: str = HERE.digest) -> None:
    number = registry.versions.reserve(ref.domain, ref.name, task="classification")
    registry.versions.publish(
        ref.domain, ref.name, number, digest=f"sha256:{number:064x}", path=f"{ref}/{number}",
        bytes=1, base_digest=base,
    )  # fmt: skip


@pytest.fixture
def mixed(versions: Registry) -> Registry:
    """``versions``, and adapters of which some versions are removed, or of another base."""
    for adapter, bases in {
        "finance/both": [HERE.digest, ELSEWHERE, HERE.digest, ELSEWHERE],
        "finance/moved": [HERE.digest, ELSEWHERE],
        "retail/gone": [HERE.digest],
        "retail/lost": [HERE.digest] * 4,
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


@pytest.fixture
def asked_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """``asked_in(page, together)`` sets how many adapters and versions one query asks for."""

    def asked_in(page: int, together: int) -> None:
        monkeypatch.setattr(module, "_PAGE", page)
        monkeypatch.setattr(module, "_TOGETHER", together)

    return asked_in


ASKED = [(500, 1000), (500, 5), (3, 3), (2, 1), (1, 2)]


def found_one_by_one(
    registry: Registry, key: KeyRecord | None, adapters: Iterable[str]
) -> list[Model]:
    """What answers of the base and all that an adapter may have, up to five versions."""
    selectors = ["", "@beta", "@canary", "@champion", *(f"@{number}" for number in range(5, 0, -1))]
    names = ["base", *(f"{adapter}{selector}" for adapter in adapters for selector in selectors)]
    found = []
    for name in names:
        try:
            found.append(find_model(registry, HERE, key, name))
        except (ApiError, BaseMismatchError):
            continue
    return found


def statements(registry: Registry, adapters: int, limit: int) -> int:
    """How many are sent to list the base and ``adapters`` adapters, two versions each."""
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *more: object) -> None:
        sent.append(statement)

    engine = registry.sessions.engines.reading
    key = registry.keys.create("me", ["base", *(f"many/a-{one}" for one in range(adapters))])[0]
    event.listen(engine, "before_cursor_execute", note)
    try:
        list_models(registry, HERE, key, limit, None)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return len(sent)


def test_base_names_aliases_and_versions_of_this_base_are_listed(versions: Registry) -> None:
    assert ids(versions) == ALL


def test_a_name_means_its_champion(versions: Registry) -> None:
    found = find_model(versions, HERE, None, "medical/icd")
    assert (found.id, found.root, found.parent) == ("medical/icd", "medical/icd@1", "tiny")


def test_a_key_sees_what_it_may_use(versions: Registry) -> None:
    assert ids(versions, key(versions, "retail/*")) == ["retail/tax", "retail/tax@1"]


@pytest.mark.parametrize("after", [None, *ALL])
def test_pages_follow_one_another(versions: Registry, after: str | None) -> None:
    first = 0 if after is None else ALL.index(after) + 1
    assert ids(versions, limit=2, after=after) == ALL[first : first + 2]


def test_a_page_says_whether_there_is_more(versions: Registry) -> None:
    told = [list_models(versions, HERE, None, limit, None)[1] for limit in (len(ALL) - 1, len(ALL))]
    assert told == [True, False]


@pytest.mark.parametrize(("page", "together"), ASKED)
@pytest.mark.parametrize(
    "patterns", [None, ["*"], ["finance/*", "base"], ["retail/lost", "finance/both"], ["x/*"]]
)
def test_the_list_is_what_is_found_one_by_one(
    mixed: Registry,
    asked_in: Callable[[int, int], None],
    patterns: list[str] | None,
    page: int,
    together: int,
) -> None:
    asked_in(page, together)
    used = None if patterns is None else key(mixed, *patterns)
    adapters = ["finance/both", "finance/moved", "medical/icd", "medical/strange"]
    adapters += ["retail/gone", "retail/lost", "retail/tax"]
    assert list_models(mixed, HERE, used, 100, None) == (
        found_one_by_one(mixed, used, adapters),
        False,
    )


@pytest.mark.parametrize(("page", "together"), ASKED)
@pytest.mark.parametrize("limit", [1, 3, 7])
def test_pages_put_together_are_the_list(
    mixed: Registry, asked_in: Callable[[int, int], None], page: int, together: int, limit: int
) -> None:
    whole = ids(mixed)
    asked_in(page, together)
    listed: list[str] = []
    for _ in whole:
        listed += ids(mixed, limit=limit, after=listed[-1] if listed else None)
    assert listed == whole


@pytest.mark.parametrize("limit", [100, 10_000])
def test_more_adapters_take_no_more_statements(versions: Registry, limit: int) -> None:
    for one in range(30):
        for _ in range(2):
            publish(versions, Ref("many", f"a-{one}"))
    assert statements(versions, 30, limit) == statements(versions, 3, limit)


def test_no_place_to_go_on_from_is_what_a_key_may_not_use(versions: Registry) -> None:
    with pytest.raises(ApiError, match="after"):
        ids(versions, key(versions, "retail/*"), after="medical/icd@1")


def test_an_unknown_place_to_go_on_from_is_refused(versions: Registry) -> None:
    with pytest.raises(ApiError, match="after"):
        ids(versions, after="medical/none")


@pytest.mark.parametrize(
    "asked",
    ["gpt-4o", "medical/none", "medical/icd@9", "medical/icd@nobody", "../x", "", "medical/icd@"],
)
def test_whatever_nothing_answers_to_is_not_found(versions: Registry, asked: str) -> None:
    with pytest.raises(ApiError) as caught:
        find_model(versions, HERE, None, asked)
    assert (caught.value.http_status, caught.value.code) == (404, "model_not_found")


def test_what_a_key_may_not_use_looks_like_what_is_not_there(versions: Registry) -> None:
    limited = key(versions, "retail/*")
    told = []
    for asked in ("medical/icd", "medical/ice", "base"):
        with pytest.raises(ApiError) as caught:
            find_model(versions, HERE, limited, asked)
        told.append(str(caught.value).replace(asked, "X") + str(caught.value.hint))
    assert len(set(told)) == 1


def test_a_version_of_another_base_is_not_answered_by_this_one(versions: Registry) -> None:
    with pytest.raises(BaseMismatchError, match="other"):
        find_model(versions, HERE, None, "medical/strange@1")

"""What may be named as a model, by whom."""

from __future__ import annotations

import pytest

from trunkline.errors import BaseMismatchError
from trunkline.registry.records import KeyRecord
from trunkline.registry.store import Registry
from trunkline.serving.errors import ApiError
from trunkline.serving.models import ServedBase, find_model, list_models

HERE = ServedBase("tiny", "b" * 64, 1)
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
    return registry.create_key("me", adapters)[0]


def ids(registry: Registry, key: KeyRecord | None = None, **page: object) -> list[str]:
    limit, after = page.get("limit", 100), page.get("after")
    assert isinstance(limit, int)
    assert after is None or isinstance(after, str)
    return [model.id for model in list_models(registry, HERE, key, limit, after)[0]]


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

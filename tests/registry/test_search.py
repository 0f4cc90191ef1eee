"""The search syntax, what each condition matches, and paging."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postgres_server import drop_database, migrated_database
from trunkline.errors import UsageError
from trunkline.refs import Ref
from trunkline.registry import search
from trunkline.registry.registry import Registry
from trunkline.registry.search_syntax import (
    And,
    FieldCondition,
    Not,
    Or,
    ScoreCondition,
    TagCondition,
    parse,
)

Matches = Callable[[str], list[str]]

SCORES = {"a@1": 0.5, "a@2": 0.9, "b@1": 0.7, "b@2": 0.8, "c@1": None}
BASE = "sha256:" + "b" * 64


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    """A registry with five versions, created once for each engine and only read."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('search') / 'registry.db'}"
    else:
        url = migrated_database()
    with Registry.open(url) as registry:
        fill(registry)
        yield registry
    if request.param == "postgresql":
        drop_database(url)


@pytest.fixture
def filled(registry: Registry) -> Registry:
    """As ``shared``, for a test that changes it."""
    fill(registry)
    return registry


@pytest.fixture
def matches(shared: Registry) -> Matches:
    """``matches(where)`` returns the matching versions, as ``a@2``."""

    def matches(where: str) -> list[str]:
        page = shared.versions.search(where)
        assert page.next is None
        return [str(one.ref).removeprefix("medical/") for one in page.versions]

    return matches


def fill(registry: Registry) -> None:
    """Five versions of three adapters; c@1 was never evaluated, a@2 is champion, b@1 is tagged."""
    registry.sources.record_base(
        digest=BASE,
        name="tiny",
        source="made up",
        architecture="Llama",
        parameters=1,
        dtype="float32",
    )
    dataset = registry.sources.record_dataset(
        name="medical/icd10",
        fingerprint="rows-1",
        split_fingerprint="split-1",
        rows=100,
        license="public domain",
        source="made up",
        counts={},
    )
    for name, value in SCORES.items():
        publish(registry, name[0], dataset)
        if value is not None:
            evaluate(registry, Ref.parse(f"medical/{name}"), dataset, value)
    registry.aliases.move(Ref.parse("medical/a@2"), "champion")
    registry.tags.set("medical/b@1", "reviewed", "yes")
    registry.tags.set("medical/c", "team", "north")


def publish(registry: Registry, name: str, dataset: int | None) -> None:
    """A version with a run, or, without a dataset, one that was imported."""
    run = None
    if dataset is not None:
        run = registry.runs.start(
            recipe=f"medical/{name}",
            base_digest=BASE,
            dataset_id=dataset,
            seed=1,
            settings={},
            environment={},
        )
    number = registry.versions.reserve("medical", name, task="classification", run=run)
    registry.versions.publish(
        "medical",
        name,
        number,
        digest="sha256:" + name * 64,
        path=f"medical/{name}/{number}",
        bytes=1000,
        base_digest=BASE,
    )


def evaluate(registry: Registry, ref: Ref, dataset: int, value: float) -> None:
    figure = {"value": value, "low": value - 0.1, "high": value + 0.1}
    registry.evaluations.record(
        recipe=ref.adapter,
        base_digest=BASE,
        dataset_id=dataset,
        split="test",
        results={
            "metric": "accuracy",
            "verdict": "ties",
            "scores": {"accuracy": figure, "loss": {"value": 1 - value}},
        },
        version=ref,
    )


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("test.accuracy>0.7", ["b@2", "a@2"]),
        ("test.accuracy>=0.7", ["b@2", "b@1", "a@2"]),
        ("test.accuracy=0.5", ["a@1"]),
        ("test.accuracy<0.8 and test.accuracy>0.5", ["b@1"]),
        ("test.accuracy.low>0.75", ["a@2"]),
        ("test.accuracy.high<0.7", ["a@1"]),
        ("test.accuracy!=0.5", ["c@1", "b@2", "b@1", "a@2"]),
        ("not test.accuracy>0", ["c@1"]),
        ("validation.accuracy>0", []),
        ("name=a", ["a@2", "a@1"]),
        ("adapter=medical/b", ["b@2", "b@1"]),
        ("adapter~ICAL/b", ["b@2", "b@1"]),
        ("domain=medical and version=2", ["b@2", "a@2"]),
        ("task=regression", []),
        ("newest=yes", ["c@1", "b@2", "a@2"]),
        ("newest=no", ["b@1", "a@1"]),
        ("newest!=yes", ["b@1", "a@1"]),
        ("alias=champion", ["a@2"]),
        ("alias!=champion and newest=yes", ["c@1", "b@2"]),
        ("tag.reviewed=yes", ["b@1"]),
        ("tag.reviewed~Y", ["b@1"]),
        ("tag.reviewed!=yes", ["c@1", "b@2", "a@2", "a@1"]),
        ("tag.team=north", ["c@1"]),
        ("base=tiny and run=3", ["b@1"]),
        ("dataset=medical/icd10 and rows=rows-1 and bytes<=1000 and name=c", ["c@1"]),
        ("license~'Public Domain' and name=c", ["c@1"]),
        ("created>2000-01-01 and created<2999-01-01T00:00+02:00 and name=c", ["c@1"]),
        ("created<2000-01-01", []),
        ("name=a or name=b and version=1", ["b@1", "a@2", "a@1"]),
        ("(name=a or name=b) and version=1", ["b@1", "a@1"]),
        ("NOT (name=a OR name=b)", ["c@1"]),
        ('name="a"', ["a@2", "a@1"]),
        ("name~%", []),
        ("name~_", []),
        ("digest=sha256:" + "b" * 64, ["b@2", "b@1"]),
    ],
)
def test_search_returns_matching_versions(matches: Matches, where: str, names: list[str]) -> None:
    assert matches(where) == names


@pytest.mark.parametrize(
    ("where", "names"),
    [("name=a and test.accuracy>0.1", ["a@2", "a@1"]), ("tag.team=north or name=b", None)],
)
def test_search_is_the_same_with_and_without_prefetch(
    matches: Matches, monkeypatch: pytest.MonkeyPatch, where: str, names: list[str] | None
) -> None:
    few = matches(where)
    monkeypatch.setattr(search, "PREFETCH_LIMIT", 0)
    assert matches(where) == few == (names or few)


def test_not_matches_a_version_without_a_dataset(filled: Registry) -> None:
    publish(filled, "e", None)
    assert [one.name for one in filled.versions.search("dataset!=medical/icd10").versions] == ["e"]
    assert [one.name for one in filled.versions.search("not run>0").versions] == ["e"]


def test_matching_versions_have_their_score(shared: Registry) -> None:
    (one,) = shared.versions.search("alias=champion").versions
    assert one.score is not None
    assert (one.score.metric, one.score.value, one.score.verdict) == (
        "accuracy",
        0.9,
        "ties",
    )


def test_pages_follow_each_other(shared: Registry) -> None:
    first = shared.versions.search("domain=medical", limit=2)
    second = shared.versions.search("domain=medical", limit=2, after=first.next)
    third = shared.versions.search("domain=medical", limit=2, after=second.next)
    pages = [[str(one.ref)[8:] for one in page.versions] for page in (first, second, third)]
    assert pages == [["c@1", "b@2"], ["b@1", "a@2"], ["a@1"]]
    assert third.next is None


def test_pages_are_complete_with_a_low_scan_limit(
    shared: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PREFETCH_LIMIT", 0)
    monkeypatch.setattr(search, "SCAN_LIMIT", 2)
    seen: list[str] = []
    after: Ref | None = None
    for _ in range(3):
        page = shared.versions.search("not name=b", after=after)
        seen += [str(one.ref)[8:] for one in page.versions]
        after = page.next
    assert (seen, after) == (["c@1", "a@2", "a@1"], None)


def test_removed_versions_do_not_match(filled: Registry) -> None:
    filled.versions.remove(Ref.parse("medical/c@1"), reason="old")
    assert filled.versions.search("name=c").versions == ()


@pytest.mark.parametrize(
    ("where", "at", "problem"),
    [
        ("", 1, "expected a field, but the search ends"),
        ("name", 5, "expected an operator after 'name'"),
        ("name=", 6, "expected a value"),
        ("name=a name=b", 8, "expected 'and' or 'or', not 'name'"),
        ("name=a and", 11, "expected a field"),
        ("(name=a", 8, "expected ')'"),
        ("name=a)", 7, "expected 'and' or 'or'"),
        ("nme=a", 1, "there is no field 'nme'"),
        ("name<a", 5, "'name' can't be compared with '<'"),
        ("test.accuracy~1", 14, "can't be compared with '~'"),
        ("test.accuracy>high", 15, "expected a number, not 'high'"),
        ("test.accuracy>nan", 15, "expected a number"),
        ("name=a and created>yesterday", 20, "expected a time"),
        ("newest=1", 8, "expected yes or no"),
        ("name='a", 6, "unexpected"),
        ("tag.=x", 1, "there is no field 'tag.'"),
        ("tag.No=x", 1, "there is no field"),
        ("name=a\0b", 6, "can't be searched for"),
        ("and=1", 1, "there is no field 'and'"),
        (" or ".join(["name=a"] * 21), 201, "more than 20 conditions"),
        ("(" * 12 + "name=a" + ")" * 12, 12, "more than 10 nested brackets"),
    ],
)
def test_a_syntax_error_has_its_position(where: str, at: int, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(where)
    assert caught.value.message.startswith(f"Error in the search at character {at}: ")
    assert problem in caught.value.message


def test_a_long_search_is_refused() -> None:
    with pytest.raises(UsageError, match="1,001 characters"):
        parse("a" * 1001)


def test_and_binds_stronger_than_or() -> None:
    a, b, c = (FieldCondition("name", "=", letter) for letter in "abc")
    assert parse("name=a or name=b and name=c") == Or((a, And((b, c))))
    assert parse("not name=a and name=b") == And((Not(a), b))


def test_keywords_and_values_are_distinguished() -> None:
    assert parse("tag.x=1 and test.d0/cost.low<=0.5") == And(
        (TagCondition("x", "=", "1"), ScoreCondition("test", "d0/cost", "low", "<=", 0.5))
    )


@given(st.text(max_size=60))
@settings(deadline=None)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with suppress(UsageError):
        parse(text)


@dataclass(frozen=True)
class Case:
    """A search, and whether it matches a version by its name, number and score."""

    text: str
    holds: Callable[[str, int, float | None], bool]


def _leaf() -> st.SearchStrategy[Case]:
    names = st.sampled_from("abc").map(
        lambda letter: Case(f"name={letter}", lambda name, number, score: name == letter)
    )
    numbers = st.integers(0, 3).map(
        lambda least: Case(f"version>={least}", lambda name, number, score: number >= least)
    )
    scores = st.sampled_from([0.4, 0.5, 0.65, 0.8, 0.95]).map(
        lambda least: Case(
            f"test.accuracy>{least}",
            lambda name, number, score: score is not None and score > least,
        )
    )
    return st.one_of(names, numbers, scores)


def _joined(part: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    pairs = st.tuples(part, part)
    return st.one_of(
        pairs.map(
            lambda two: Case(
                f"({two[0].text} and {two[1].text})",
                lambda *version: two[0].holds(*version) and two[1].holds(*version),
            )
        ),
        pairs.map(
            lambda two: Case(
                f"({two[0].text} or {two[1].text})",
                lambda *version: two[0].holds(*version) or two[1].holds(*version),
            )
        ),
        part.map(lambda one: Case(f"not {one.text}", lambda *version: not one.holds(*version))),
    )


def test_every_search_returns_exactly_its_matches(matches: Matches) -> None:
    @given(st.recursive(_leaf(), _joined, max_leaves=6))
    @settings(max_examples=50, deadline=None)
    def check(case: Case) -> None:
        expected = [
            name for name, score in SCORES.items() if case.holds(name[0], int(name[2]), score)
        ]
        assert sorted(matches(case.text)) == sorted(expected)

    check()

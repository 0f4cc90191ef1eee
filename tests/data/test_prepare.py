"""Rows read, checked, counted and divided; every refusal in one sentence with a hint."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_rows import make_dataset, make_recipe, make_row
from trunkline.contracts import Row, Settings, Template
from trunkline.data.prepare import Prepared, fingerprint, prepare, read_rows
from trunkline.data.split import PARTS, Fold
from trunkline.errors import DataError, NotFoundError, PluginError, TrunklineError

NAMES = [
    "amber",
    "bronze",
    "coral",
    "dusk",
    "ember",
    "fjord",
    "grove",
    "haze",
    "iris",
    "jade",
    "kelp",
    "lilac",
    "moss",
    "nectar",
]


def things(count: int = 30) -> list[Row]:
    """Rows whose texts have nothing in common, in groups of their own."""
    rng = random.Random(7)
    texts = [f"{' '.join(rng.sample(NAMES, 3))} {rng.randrange(10**9)}" for _ in range(count)]
    return [make_row(number, text=text) for number, text in enumerate(texts)]


def numbers(count: int = 30) -> list[Row]:
    """The same with a number as target."""
    return [replace(row, target=float(n + 1)) for n, row in enumerate(things(count))]


def prepared(rows: Sequence[Any], **dataset: Any) -> Prepared:
    """Rows made ready by a recipe of defaults."""
    task = dataset.get("task", "classification")
    return prepare(make_dataset(rows, **dataset), make_recipe(task))


def refused(rows: Sequence[Any], kind: type[TrunklineError] = DataError, **dataset: Any) -> str:
    """The message with which the rows are refused; it is one sentence, with a hint."""
    with pytest.raises(kind) as caught:
        prepared(rows, **dataset)
    assert isinstance(caught.value, kind)
    assert caught.value.hint
    assert caught.value.message.endswith((".", "!"))
    assert "\n" not in caught.value.message
    return caught.value.message


# ------------------------------------------------------------------------------------- counts


def test_good_rows_are_all_kept() -> None:
    report = prepared(things()).report

    assert (report.read, report.kept, report.dropped, report.duplicated) == (30, 30, {}, 0)
    assert (report.label_conflicts, report.near_duplicates, report.augmented) == (0, 0, 0)
    assert sum(report.parts.values()) == 30
    assert report.groups == report.parts


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u00a0\u2003"])
def test_empty_text_is_dropped_and_counted(text: str) -> None:
    report = prepared([*things(), make_row(90, text=text)]).report

    assert (report.read, report.kept, report.dropped) == (31, 30, {"empty text": 1})


def test_empty_text_is_dropped_even_if_the_template_cleans_nothing() -> None:
    dataset = make_dataset([*things(), make_row(90, text="  ")])
    report = prepare(dataset, make_recipe(template=Template(clean=()))).report

    assert report.dropped == {"empty text": 1}


@pytest.mark.parametrize("target", ["", "  "])
def test_row_without_a_target_is_dropped_and_counted(target: str) -> None:
    report = prepared([*things(), make_row(90, target=target)]).report

    assert report.dropped == {"no target": 1}


@pytest.mark.parametrize("target", [math.nan, math.inf, -math.inf, 10**400])
def test_target_that_is_no_finite_number_is_dropped_and_counted(target: float) -> None:
    report = prepared([*numbers(), make_row(90, target=target)], task="regression").report

    assert report.dropped == {"target not a finite number": 1}


@pytest.mark.parametrize("target", [0, -2.5])
def test_target_without_a_logarithm_is_dropped_on_a_log_scale_only(target: float) -> None:
    dataset = make_dataset([*numbers(), make_row(90, target=target)], "regression")

    on_log = prepare(dataset, make_recipe("regression", scale="log")).report
    assert on_log.dropped == {"target not above zero": 1}
    assert prepare(dataset, make_recipe("regression")).report.dropped == {}


def test_same_cleaned_text_with_the_same_target_counts_as_duplicate() -> None:
    rows = things()
    again = replace(rows[4], id="again", group="other", text=f"  {rows[4].text.upper()} ")
    recipe = make_recipe(template=Template(clean=("strip", "squeeze", "lowercase")))
    result = prepare(make_dataset([*rows, again]), recipe)

    assert (result.report.kept, result.report.duplicated) == (30, 1)
    kept = {row.id for name in PARTS for row in getattr(result.split, name)}
    assert "again" not in kept


def test_same_text_with_another_target_is_kept_and_counted_as_label_conflicts() -> None:
    rows = things()
    report = prepared([*rows, replace(rows[4], id="no", group="n", target="odd")]).report

    assert (report.kept, report.duplicated, report.label_conflicts) == (31, 0, 2)


def test_duplicate_of_a_label_conflicts_row_is_still_one_duplicate() -> None:
    rows = things()
    other = replace(rows[4], id="no", group="n", target="odd")
    report = prepared([*rows, other, replace(other, id="no2")]).report

    assert (report.kept, report.duplicated, report.label_conflicts) == (31, 1, 2)


@settings(max_examples=25, deadline=None)
@given(
    drawn=st.lists(
        st.tuples(
            st.sampled_from(["", " a b", "a  b", "c d", "e f", "g h"]), st.sampled_from("xy ")
        ),
        max_size=30,
    )
)
def test_every_row_read_is_kept_dropped_or_a_duplicate(drawn: list[tuple[str, str]]) -> None:
    more = [
        make_row(100 + number, text=text, target=target)
        for number, (text, target) in enumerate(drawn)
    ]
    report = prepared([*things(), *more], task="generation").report

    assert report.read == report.kept + sum(report.dropped.values()) + report.duplicated
    assert report.kept == sum(report.parts.values())


def test_report_survives_json() -> None:
    report = prepared(things()).report

    assert json.loads(json.dumps(report.to_json())) == report.to_json()


# -------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    "mark",
    [" ", "\t", "\u00a0", "\u200b", "\ufeff", "\r\n", "\u3000", "\0", "\u202a\u202c", "\u2066"],
)
@pytest.mark.parametrize("before", [True, False])
def test_labels_with_white_space_at_the_ends_are_one_class(mark: str, before: bool) -> None:
    rows = things()
    for index in (0, 2, 5):
        target = str(rows[index].target)
        rows[index] = replace(rows[index], target=mark + target if before else target + mark)
    result = prepared(rows)

    assert result.labels == ("even", "odd")
    assert result.report.labels_cleaned == 3
    assert result.fingerprint == prepared(things()).fingerprint


def test_declared_labels_are_cleaned_as_those_of_the_rows() -> None:
    rows = [replace(row, target=f" {row.target}") for row in things()]

    assert prepared(rows, labels=("odd ", "even", "odd")).labels == ("odd", "even")


@pytest.mark.parametrize("label", ["Odd", "o\u200bdd", "odd\ufe0f"])
def test_undeclared_label_that_looks_like_a_declared_one_is_shown_in_ascii(label: str) -> None:
    rows = [replace(row, target=label) if row.target == "odd" else row for row in things()]
    with pytest.raises(DataError, match="not among its declared ones") as caught:
        prepared(rows, labels=("odd", "even"))
    assert caught.value.hint == f"Write {label!a} as the declared 'odd'."


def test_label_of_invisible_characters_alone_is_no_target() -> None:
    report = prepared([*things(), make_row(90, target="\u200b \ufeff")]).report

    assert report.dropped == {"no target": 1}


def test_same_text_with_a_label_that_differs_at_the_ends_is_a_duplicate() -> None:
    rows = things()
    report = prepared([*rows, replace(rows[0], id="again", target="even ")]).report

    assert (report.duplicated, report.label_conflicts) == (1, 0)


def test_answers_and_their_white_space_are_kept() -> None:
    rows = [replace(row, target=" an answer\n") for row in things()]

    assert prepared(rows, task="generation").split.train[0].target == " an answer\n"


def test_labels_that_differ_in_case_space_or_form_are_reported_and_kept() -> None:
    labels = [
        "Credit card",
        "credit  card",
        "creditcard",
        "caf\u00e9",
        "cafe\u0301",
        "ﬁsh",
        "fish",
        "a",
    ]
    rows = [replace(row, target=labels[n % len(labels)]) for n, row in enumerate(things(40))]
    result = prepared(rows)

    assert len(result.labels) == len(labels)
    assert sorted(map(sorted, result.report.similar_labels)) == [
        ["Credit card", "credit  card", "creditcard"],
        ["cafe\u0301", "caf\u00e9"],
        ["fish", "ﬁsh"],
    ]
    assert prepared(things()).report.similar_labels == []


# -------------------------------------------------------------------------------- given splits


def split_things() -> list[Row]:
    parts = ["train"] * 20 + ["validation"] * 5 + ["test"] * 5
    return [replace(row, split=part) for row, part in zip(things(), parts, strict=True)]


def test_given_split_is_reported_and_enters_the_fingerprints() -> None:
    result, usual = prepared(split_things()), prepared(things())

    assert result.report.given_split
    assert not usual.report.given_split
    assert result.report.parts == {"train": 20, "validation": 5, "test": 5}
    assert result.fingerprint != usual.fingerprint
    assert result.split.fingerprint != usual.split.fingerprint


def test_of_copies_in_a_given_split_that_of_the_test_part_stays() -> None:
    rows = split_things()
    result = prepared([replace(rows[-1], id="copy", group="gc", split="train"), *rows])

    assert rows[-1] in result.split.test
    assert (result.report.duplicated, len(result.split.train)) == (1, 20)


@pytest.mark.parametrize("split", [7, ("test",)])
def test_split_that_is_no_text_is_refused(split: Any) -> None:
    assert "where a text was expected" in refused([*things(), make_row(90, split=split)])


# ------------------------------------------------------------------------------------- labels


def test_labels_of_the_rows_are_sorted() -> None:
    assert prepared(things()).labels == ("even", "odd")


def test_declared_labels_keep_their_order_and_lose_those_without_rows() -> None:
    assert prepared(things(), labels=("odd", "none", "even")).labels == ("odd", "even")


def test_only_a_classification_has_labels() -> None:
    assert prepared(numbers(), task="regression").labels == ()


# -------------------------------------------------------------------------------- fingerprint


def test_fingerprint_does_not_depend_on_the_order_of_rows() -> None:
    rows = things()

    assert fingerprint(rows) == fingerprint(rows[::-1])


@pytest.mark.parametrize(
    "change",
    [
        {"id": "other"},
        {"text": "other"},
        {"target": "other"},
        {"group": "other"},
        {"stratum": "other"},
        {"slices": {"country": "DE"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_fingerprint_sees_every_field(change: dict[str, Any]) -> None:
    rows = things()

    assert fingerprint(rows) != fingerprint([replace(rows[0], **change), *rows[1:]])


def test_fingerprint_does_not_depend_on_the_order_of_slices() -> None:
    one = make_row(1, slices={"a": "x", "b": "y"})

    assert fingerprint([one]) == fingerprint([replace(one, slices={"b": "y", "a": "x"})])


def test_fingerprint_is_of_the_kept_rows_and_not_of_the_seed() -> None:
    rows = things()
    dataset = make_dataset([*rows, make_row(90, text="")])
    other = prepare(dataset, make_recipe(settings=Settings(split_seed=5, max_train_samples=3)))

    assert other.fingerprint == prepare(dataset, make_recipe()).fingerprint == fingerprint(rows)


def test_preparing_twice_gives_the_same() -> None:
    assert prepared(things()) == prepared(things())


# -------------------------------------------------------------------------- settings and folds


def test_max_examples_cuts_train_alone() -> None:
    dataset = make_dataset(things())
    full = prepare(dataset, make_recipe())
    few = prepare(dataset, make_recipe(settings=Settings(max_train_samples=5)))

    assert len(few.split.train) == few.report.parts["train"] == 5
    assert all(row in full.split.train for row in few.split.train)
    assert few.split.test == full.split.test
    assert few.split.validation == full.split.validation
    assert few.split.fingerprint == full.split.fingerprint


def test_max_examples_above_the_number_of_rows_changes_nothing() -> None:
    dataset = make_dataset(things())

    assert prepare(dataset, make_recipe(settings=Settings(max_train_samples=999))) == prepare(
        dataset, make_recipe()
    )


def test_fold_decides_the_test_part() -> None:
    dataset = make_dataset(things())
    tests = [prepare(dataset, make_recipe(), fold=Fold(n, 5)).split.test for n in range(5)]

    assert sorted(row.id for test in tests for row in test) == sorted(row.id for row in things())


# ------------------------------------------------------------------------------------ refusals


def test_no_rows_are_refused() -> None:
    assert "has no rows" in refused([])


def test_rows_that_are_all_dropped_are_refused_with_the_reasons() -> None:
    rows = [make_row(1, text=""), make_row(2, target=" "), make_row(3, text=" ")]

    assert refused(rows) == "toy/things has no rows left of 3: 2 empty text, 1 no target."


@pytest.mark.parametrize("name", ["", " "])
def test_row_without_an_id_is_refused_with_its_place(name: str) -> None:
    rows = things()
    rows[2] = replace(rows[2], id=name)
    assert "Row 3 of toy/things has an empty id" in refused(rows)


def test_train_rows_that_are_all_in_test_are_named_as_the_reason() -> None:
    rows = [replace(row, split="test") for row in things()]
    again = [replace(row, id=f"{row.id}-again", split="train") for row in rows]
    assert "has the text and target of a row of the validation or test" in refused([*again, *rows])


def test_two_rows_with_one_id_are_refused_with_the_id() -> None:
    assert "'r3' more than once" in refused([*things(), make_row(3, text="new")])


def test_one_class_is_refused_with_its_name() -> None:
    rows = [replace(row, target="same") for row in things()]

    assert "one class only: 'same'" in refused(rows)


def test_class_with_one_row_is_refused_with_its_name() -> None:
    assert "'lonely'" in refused([*things(), make_row(90, target="lonely")])


def test_class_with_one_row_after_duplicates_are_dropped_is_refused() -> None:
    rows = [make_row(90, text="same", target="lonely"), make_row(91, text="same", target="lonely")]

    assert "'lonely'" in refused([*things(), *rows])


def test_label_that_was_not_declared_is_refused_with_its_name() -> None:
    assert "'odd'" in refused(things(), labels=("even", "uneven"))


@pytest.mark.parametrize("target", ["12", None, True, [1.0]])
def test_regression_target_that_is_no_number_is_refused(target: Any) -> None:
    message = refused([*numbers(), make_row(90, target=target)], task="regression")

    assert f"'r90' of toy/things has the target {target!r}, not a number" in message


@pytest.mark.parametrize("task", ["classification", "generation"])
@pytest.mark.parametrize("target", [3, None, math.nan])
def test_text_target_that_is_no_text_is_refused(task: str, target: Any) -> None:
    assert "not a text" in refused([*things(), make_row(90, target=target)], task=task)


@pytest.mark.parametrize("field", ["id", "text", "group", "stratum"])
@pytest.mark.parametrize("value", [7, math.nan, b"bytes"])
def test_field_that_is_no_text_is_refused(field: str, value: Any) -> None:
    message = refused([*things(), make_row(90, **{field: value})])

    assert f"has {value!r} where a text was expected" in message


@pytest.mark.parametrize("slices", [{"country": 5}, {5: "DE"}])
def test_slice_that_is_no_text_is_refused(slices: Any) -> None:
    assert "5 where a text was expected" in refused([*things(), make_row(90, slices=slices)])


@pytest.mark.parametrize("slices", [None, ("country", "DE")])
def test_slices_that_are_no_mapping_are_refused(slices: Any) -> None:
    assert "not a mapping" in refused([*things(), make_row(90, slices=slices)])


@pytest.mark.parametrize("field", ["id", "text", "group", "target", "stratum"])
def test_half_a_character_is_refused(field: str) -> None:
    assert "not a character" in refused([*things(), make_row(90, **{field: "caf\udce9"})])


def test_fewer_than_three_groups_are_refused() -> None:
    assert "2 group(s)" in refused([replace(row, group=row.target) for row in things()])


def test_something_that_is_no_row_is_the_plugins_fault() -> None:
    assert "'dict' where a Row" in refused([*things(), {"text": "x"}], PluginError)


@pytest.mark.parametrize("failure", [ValueError("bad zip"), SystemExit(3), KeyError("x")])
def test_reader_that_fails_is_the_plugins_fault(failure: BaseException) -> None:
    def load() -> Iterator[Row]:
        yield make_row(1)
        raise failure

    reason = r"sys\.exit\(3\)" if isinstance(failure, SystemExit) else type(failure).__name__
    with pytest.raises(PluginError, match=reason) as caught:
        read_rows(replace(make_dataset([]), load=load))
    assert caught.value.hint


def test_readers_own_error_is_passed_on() -> None:
    def load() -> list[Row]:
        raise NotFoundError("The package is missing.", "Install it.")

    with pytest.raises(NotFoundError, match="package is missing"):
        read_rows(replace(make_dataset([]), load=load))

"""Cleaning before the split, augmentation of training rows alone, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from made_rows import make_dataset, make_recipe, make_row
from trunkline.contracts import Row, Settings, TransformSpec
from trunkline.data.prepare import Prepared, prepare
from trunkline.errors import DataError, PluginError

Apply = Callable[[Row, random.Random], Iterable[Row]]

ROWS = [make_row(number, text=f"thing {number:04}") for number in range(30)]


def clean(apply: Apply, name: str = "toy/clean") -> TransformSpec:
    return TransformSpec(name=name, description="cleans", stage="clean", apply=apply)


def augment(apply: Apply, name: str = "toy/augment") -> TransformSpec:
    return TransformSpec(name=name, description="adds", stage="augment", apply=apply)


def prepared(*transforms: TransformSpec, task: Any = "classification", **settings: Any) -> Prepared:
    recipe = make_recipe(task, settings=Settings(**settings))
    return prepare(make_dataset(ROWS, task), recipe, transforms)


def doubled(row: Row, rng: random.Random) -> list[Row]:
    return [row, replace(row, id=f"{row.id}+", text=f"{row.text} again {rng.random()}")]


# --------------------------------------------------------------------------------------- clean


def test_clean_step_changes_rows_of_every_part() -> None:
    result = prepared(clean(lambda row, rng: [replace(row, text=row.text.upper())]))
    rows = [*result.split.train, *result.split.validation, *result.split.test]

    assert all(row.text.isupper() for row in rows)


def test_row_that_a_clean_step_drops_is_counted_under_its_name() -> None:
    result = prepared(clean(lambda row, rng: [] if row.id in ("r1", "r2") else [row]))

    assert result.report.dropped == {"by toy/clean": 2}
    assert result.report.kept == 28


def test_clean_steps_run_in_their_order() -> None:
    result = prepared(
        clean(lambda row, rng: [replace(row, text=row.text + " one")], "toy/one"),
        clean(lambda row, rng: [replace(row, text=row.text + " two")], "toy/two"),
    )

    assert result.split.train[0].text.endswith(" one two")


def test_row_that_the_first_step_drops_is_not_given_to_the_second() -> None:
    def never(row: Row, rng: random.Random) -> list[Row]:
        raise AssertionError(row)

    dropped = [clean(lambda row, rng: [], "toy/one"), clean(never, "toy/two")]
    with pytest.raises(DataError, match="30 by toy/one"):
        prepared(*dropped)


def test_text_that_a_clean_step_empties_is_dropped_as_empty() -> None:
    result = prepared(clean(lambda row, rng: [replace(row, text=" ")] if row.id == "r1" else [row]))

    assert result.report.dropped == {"empty text": 1}


def test_clean_step_that_gives_two_rows_is_refused() -> None:
    with pytest.raises(PluginError, match="toy/clean gave 2 rows for one") as caught:
        prepared(clean(doubled))

    assert caught.value.hint


def test_clean_step_that_changes_an_id_is_refused() -> None:
    with pytest.raises(PluginError, match="gave row 'r0' the id 'same'"):
        prepared(clean(lambda row, rng: [replace(row, id="same")]))


# ------------------------------------------------------------------------------------- augment


def test_rows_are_added_to_train_alone() -> None:
    result = prepared(augment(doubled))
    trained = {row.group for row in result.split.train}

    assert len(result.augmented) == result.report.augmented == len(result.split.train)
    assert {row.group for row in result.augmented} == trained


def test_augmentation_leaves_split_and_fingerprints_as_they_were() -> None:
    plain, more = prepared(), prepared(augment(doubled))

    assert more.split == plain.split
    assert more.fingerprint == plain.fingerprint


def test_row_given_back_unchanged_is_not_counted_as_added() -> None:
    assert prepared(augment(lambda row, rng: [row])).report.augmented == 0


def test_only_the_chosen_examples_are_augmented() -> None:
    result = prepared(augment(doubled), max_train_samples=4)

    assert {row.group for row in result.augmented} == {row.group for row in result.split.train}
    assert result.report.augmented == 4


def test_augmentation_follows_the_seed() -> None:
    assert prepared(augment(doubled), seed=1) == prepared(augment(doubled), seed=1)
    assert prepared(augment(doubled), seed=1) != prepared(augment(doubled), seed=2)


def test_added_copy_of_a_test_row_is_counted_as_near_duplicate() -> None:
    held_out = prepared().split.test[0].text
    result = prepared(augment(lambda row, rng: [replace(row, text=held_out)]))

    assert result.report.near_duplicates == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text": " "}, "empty text"),
        ({"target": ""}, "no target"),
        ({"target": "unheard of"}, "undeclared label"),
    ],
)
def test_added_row_that_can_not_be_trained_on_is_refused(
    change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(PluginError, match=f"21 with {reason}") as caught:
        prepared(augment(lambda row, rng: [replace(row, **change)]))

    assert caught.value.hint


def test_added_row_with_a_target_of_another_kind_is_refused() -> None:
    with pytest.raises(DataError, match="has the target 3, not a text"):
        prepared(augment(lambda row, rng: [replace(row, target=3)]), task="generation")


# ----------------------------------------------------------------------------------- isolation


@pytest.mark.parametrize("make", [clean, augment])
@pytest.mark.parametrize("failure", [KeyError("x"), SystemExit(1)])
def test_failure_of_a_transform_names_it_and_the_row(
    make: Callable[[Apply], TransformSpec], failure: BaseException
) -> None:
    def fail(row: Row, rng: random.Random) -> list[Row]:
        raise failure

    ends = isinstance(failure, SystemExit)
    reason = "tried to end the program" if ends else "failed"
    with pytest.raises(PluginError, match=rf"toy/\w+ on row 'r\d+' {reason}") as caught:
        prepared(make(fail))
    assert ("sys.exit(1)" if ends else "KeyError") in caught.value.message


@pytest.mark.parametrize("make", [clean, augment])
@pytest.mark.parametrize("wrong", ["a text", None, make_row(1, text=None)])
def test_transform_that_gives_no_row_is_refused(
    make: Callable[[Apply], TransformSpec], wrong: Any
) -> None:
    with pytest.raises(PluginError, match=r"toy/\w+ gave"):
        prepared(make(lambda row, rng: [wrong]))


def test_transform_that_gives_nothing_iterable_is_refused() -> None:
    with pytest.raises(PluginError, match="TypeError"):
        prepared(clean(lambda row, rng: None))  # type: ignore[arg-type, return-value]

"""The division by group: who is held out, and that nothing else decides it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_rows import make_row
from trunkline.contracts import Row, Task
from trunkline.data.split import PARTS, Fold, Split, split_fingerprint, split_rows, stratum_of
from trunkline.errors import DataError

quick = settings(max_examples=40, deadline=None)

row_lists = st.lists(
    st.tuples(st.integers(0, 14), st.sampled_from("abcd"), st.sampled_from([None, "x", "y"])),
    min_size=1,
    max_size=60,
).map(
    lambda drawn: [
        make_row(number, group=f"g{group}", target=label, stratum=stratum)
        for number, (group, label, stratum) in enumerate(drawn)
    ]
)
tasks = st.sampled_from(["classification", "generation"])
seeds = st.integers(0, 1000)

FINGERPRINT = "3b2ed39da375c9adbb121e73a6597331bb8e923e325f7424e1c408388495f93b"


def divided(
    rows: list[Row], task: Task = "classification", seed: int = 0, fold: Fold | None = None
) -> Split | None:
    """The split with usual shares; None where it is refused."""
    try:
        return split_rows(rows, task, seed=seed, validation_share=0.1, test_share=0.2, fold=fold)
    except DataError:
        return None


def part_of(split: Split) -> dict[str, str]:
    """Row id → part."""
    return {row.id: name for name in PARTS for row in getattr(split, name)}


def many(count: int = 50, labels: str = "ab") -> list[Row]:
    """``count`` groups of two rows each, the labels in turn."""
    return [
        make_row(number, group=f"g{number // 2}", target=labels[number // 2 % len(labels)])
        for number in range(2 * count)
    ]


@quick
@given(rows=row_lists, task=tasks, seed=seeds)
def test_every_row_is_in_one_part(rows: list[Row], task: Task, seed: int) -> None:
    split = divided(rows, task, seed)
    if split is not None:
        standing = [row.id for name in PARTS for row in getattr(split, name)]
        assert Counter(standing) == Counter(row.id for row in rows)
        assert len(split) == len(rows)


@quick
@given(rows=row_lists, task=tasks, seed=seeds)
def test_group_never_crosses_parts(rows: list[Row], task: Task, seed: int) -> None:
    split = divided(rows, task, seed)
    if split is not None:
        parts = [{row.group for row in getattr(split, name)} for name in PARTS]
        assert sum(map(len, parts)) == len(set().union(*parts))


@quick
@given(rows=row_lists, task=tasks, seed=seeds)
def test_every_stratum_keeps_a_group_in_train(rows: list[Row], task: Task, seed: int) -> None:
    split = divided(rows, task, seed)
    if split is not None:
        wanted = {stratum_of(row, task) for row in rows} - {None}
        assert wanted <= {stratum_of(row, task) for row in split.train}


@quick
@given(rows=row_lists, seed=seeds, shuffle=st.randoms(use_true_random=False))
def test_same_seed_gives_the_same_split_in_any_row_order(
    rows: list[Row], seed: int, shuffle: random.Random
) -> None:
    other = list(rows)
    shuffle.shuffle(other)
    one, two = divided(rows, seed=seed), divided(other, seed=seed)

    assert (one is None) == (two is None)
    if one is not None and two is not None:
        assert part_of(one) == part_of(two)
        assert one.fingerprint == two.fingerprint


@quick
@given(rows=row_lists, seeds=st.tuples(seeds, seeds))
def test_fingerprint_changes_just_when_the_division_does(
    rows: list[Row], seeds: tuple[int, int]
) -> None:
    one, two = (divided(rows, seed=seed) for seed in seeds)
    if one is not None and two is not None:
        assert (part_of(one) == part_of(two)) == (one.fingerprint == two.fingerprint)


@quick
@given(moved=st.integers(0, 9), to=st.sampled_from(PARTS))
def test_fingerprint_sees_a_single_row_that_moves(moved: int, to: str) -> None:
    rows = [make_row(number) for number in range(10)]
    parts = {"train": rows[:6], "validation": rows[6:8], "test": rows[8:]}
    before = split_fingerprint(parts)
    after = {name: [row for row in part if row != rows[moved]] for name, part in parts.items()}
    after[to].append(rows[moved])

    assert (split_fingerprint(after) == before) == (rows[moved] in parts[to])


def test_fingerprint_does_not_look_at_what_rows_say() -> None:
    rows = many()
    other = [replace(row, text=row.text.upper()) for row in rows]
    one, two = divided(rows), divided(other)

    assert one is not None
    assert two is not None
    assert one.fingerprint == two.fingerprint


def test_fingerprint_of_a_known_division_stays_what_it_was() -> None:
    split = divided(many(10), seed=3)

    assert split is not None
    assert split.fingerprint == FINGERPRINT


def test_another_seed_holds_out_other_groups() -> None:
    one, two = divided(many(), seed=0), divided(many(), seed=1)

    assert one is not None
    assert two is not None
    assert {row.group for row in one.test} != {row.group for row in two.test}


def test_shares_are_of_the_groups() -> None:
    rows = [make_row(0, id=f"big{number}", group="big") for number in range(500)]
    split = split_rows(
        [*rows, *many(100)], "generation", seed=0, validation_share=0.1, test_share=0.3
    )

    assert len({row.group for row in split.test}) == 30
    assert len({row.group for row in split.validation}) == 10


def test_a_new_group_leaves_the_others_nearly_where_they_were() -> None:
    rows = many(100)
    one, two = divided(rows), divided([*rows, make_row(999, target="a")])

    assert one is not None
    assert two is not None
    before, after = part_of(one), part_of(two)
    assert sum(before[row.id] != after[row.id] for row in rows) <= 6


def test_part_keeps_the_order_of_the_rows() -> None:
    rows = many()
    split = divided(rows)

    assert split is not None
    for name in PARTS:
        part = getattr(split, name)
        assert list(part) == sorted(part, key=rows.index)


# -------------------------------------------------------------------------------------- folds


@quick
@given(rows=row_lists, task=tasks, seed=seeds, count=st.integers(2, 5))
def test_over_all_folds_a_group_is_tested_at_most_once_and_exactly_once_unless_kept_in_train(
    rows: list[Row], task: Task, seed: int, count: int
) -> None:
    splits = [divided(rows, task, seed, Fold(index, count)) for index in range(count)]
    if any(split is None for split in splits):
        return
    folds: dict[str, set[int]] = {row.group: set() for row in rows}
    strata: dict[str, set[str]] = {row.group: set() for row in rows}
    for row in rows:
        strata[row.group] |= {stratum_of(row, task) or ""} - {""}
    for index, split in enumerate(splits):
        for row in split.test if split else ():
            folds[row.group].add(index)
    for group, where in folds.items():
        assert len(where) <= 1
        if not where:  # then one of its strata has groups in this one fold only
            together = (
                {index for other in strata if one in strata[other] for index in folds[other]}
                for one in strata[group]
            )
            assert any(len(them) <= 1 for them in together)


def test_without_rare_strata_every_group_is_tested_once() -> None:
    rows = many(53)
    splits = [divided(rows, fold=Fold(index, 5)) for index in range(5)]

    tested = Counter(row.id for split in splits if split for row in split.test)
    assert tested == Counter(row.id for row in rows)


def test_only_group_of_a_label_stays_in_train_in_every_fold() -> None:
    rows = [*many(20), make_row(900, target="rare"), make_row(901, target="rare", group="g900")]
    for index in range(5):
        split = divided(rows, fold=Fold(index, 5))
        assert split is not None
        assert {"r900", "r901"} <= {row.id for row in split.train}


def test_folds_of_one_seed_share_no_test_group() -> None:
    one, two = (divided(many(), fold=Fold(index, 5)) for index in (0, 1))

    assert one is not None
    assert two is not None
    assert not {row.group for row in one.test} & {row.group for row in two.test}


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("groups", [1, 2])
def test_fewer_than_three_groups_are_refused(groups: int) -> None:
    rows = [make_row(number, group=str(number % groups)) for number in range(12)]

    with pytest.raises(DataError, match=rf"{groups} group\(s\); three") as caught:
        split_rows(rows, "regression", seed=0, validation_share=0.1, test_share=0.2)
    assert caught.value.hint


def test_three_groups_are_enough() -> None:
    rows = [make_row(number, group=str(number % 3)) for number in range(12)]
    split = split_rows(rows, "regression", seed=0, validation_share=0.1, test_share=0.2)

    assert [len(getattr(split, name)) for name in PARTS] == [4, 4, 4]


def test_more_folds_than_groups_are_refused() -> None:
    with pytest.raises(DataError, match="20 folds can't be made of 10 groups") as caught:
        split_rows(
            many(10), "classification",
            seed=0, validation_share=0.1, test_share=0.2, fold=Fold(0, 20),
        )  # fmt: skip
    assert caught.value.hint


def test_strata_that_leave_nothing_to_test_are_refused() -> None:
    rows = [make_row(number, target=str(number)) for number in range(8)]

    with pytest.raises(DataError, match="part has no rows left") as caught:
        split_rows(rows, "classification", seed=0, validation_share=0.1, test_share=0.2)
    assert caught.value.hint


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    rows = [make_row(number) for number in range(10)]

    with pytest.raises(DataError, match="train part has no rows left"):
        split_rows(rows, "regression", seed=0, validation_share=0.5, test_share=0.5)


# -------------------------------------------------------------------------------- given splits


def given_split(*parts: str, labels: str = "ab") -> list[Row]:
    """Twelve rows with groups of their own for each of the parts."""
    return [
        make_row(20 * number + index, target=labels[index % len(labels)], split=part)
        for number, part in enumerate(parts)
        for index in range(12)
    ]


def test_given_split_is_used_as_it_is() -> None:
    rows = given_split("train", "validation", "test")
    split = divided(rows)

    assert split is not None
    assert part_of(split) == {row.id: row.split for row in rows}


@quick
@given(seed=seeds)
def test_without_given_validation_rows_groups_of_train_are_taken(seed: int) -> None:
    rows = given_split("train", "test")
    split = divided(rows, seed=seed)

    assert split is not None
    assert {row.id for row in split.test} == {row.id for row in rows if row.split == "test"}
    assert len(split.validation) == 1
    assert {row.split for row in (*split.train, *split.validation)} == {"train"}


def test_rare_label_of_a_given_test_part_is_not_moved_to_train() -> None:
    rows = given_split("train", "test")
    rows[-1] = replace(rows[-1], stratum="rare")
    split = divided(rows)

    assert split is not None
    assert rows[-1] in split.test


def test_given_split_has_a_fingerprint_of_its_own() -> None:
    rows = given_split("train", "validation", "test")
    moved = [replace(rows[0], split="validation"), *rows[1:]]
    one, two = divided(rows), divided(moved)

    assert one is not None
    assert two is not None
    assert one.fingerprint != two.fingerprint


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"split": "dev"}, "Row 'r0' has the split 'dev'"),
        ({"split": "Train"}, "Row 'r0' has the split 'Train'"),
        ({"split": None}, "Row 'r0' has the split None"),
        ({"group": "g20"}, "divides 1 of 23 groups: 'g20' lies in train and test"),
        ({"target": "c", "split": "test"}, r"no train row of 1 label\(s\), such as 'c'"),
    ],
)
def test_given_split_that_can_not_be_kept_is_refused(change: dict[str, str], problem: str) -> None:
    rows = given_split("train", "test")
    rows[0] = replace(rows[0], **change)  # type: ignore[arg-type]

    with pytest.raises(DataError, match=problem) as caught:
        split_rows(rows, "classification", seed=0, validation_share=0.1, test_share=0.2)
    assert caught.value.hint


@pytest.mark.parametrize("part", ["train", "test"])
def test_given_split_without_a_part_is_refused(part: str) -> None:
    with pytest.raises(DataError, match="has no"):
        split_rows(given_split(part), "regression", seed=0, validation_share=0.1, test_share=0.2)


def test_folds_leave_the_given_test_part_out() -> None:
    rows = given_split("train", "validation", "test")
    splits = [divided(rows, fold=Fold(index, 4)) for index in range(4)]

    used = {row.id for split in splits if split for name in PARTS for row in getattr(split, name)}
    assert used == {row.id for row in rows if row.split != "test"}
    tested = [row.id for split in splits if split for row in split.test]
    assert sorted(tested) == sorted(used)

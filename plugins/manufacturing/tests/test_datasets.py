"""The rows: their labels, their number, and the part that is held out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from trunkline.contracts import DatasetSpec, Row
from trunkline_manufacturing.datasets import (
    DATASETS,
    defect_rows,
    held_out,
    load_defect,
    probability_rows,
)
from trunkline_manufacturing.elpv import Cell


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return load_defect()


def cell(number: int, probability: float = 0.0, module: str = "mono") -> Cell:
    id = f"cell{number:04}"
    return Cell(id=id, picture=Path(f"{id}.png"), probability=probability, module=module)


@pytest.mark.parametrize(
    ("probability", "label"),
    [(0.0, "functional"), (1 / 3, "functional"), (2 / 3, "defective"), (1.0, "defective")],
)
def test_label_follows_from_the_probability(probability: float, label: str) -> None:
    (row,) = defect_rows([cell(1, probability)])
    assert row.target == label


def test_probability_is_the_target_of_the_regression() -> None:
    (row,) = probability_rows([cell(1, 2 / 3)])
    assert row.target == 2 / 3
    assert row.slices == {"module": "mono", "annotation": "uncertain"}


def test_a_quarter_of_each_stratum_is_held_out() -> None:
    cells = [cell(n, n % 4 / 3, "mono" if n % 8 < 4 else "poly") for n in range(320)]
    test = held_out(cells)
    parts = Counter((one.probability, one.module) for one in cells if one.id in test)
    assert len(parts) == 8
    assert set(parts.values()) == {10}


def test_what_is_held_out_does_not_depend_on_the_order() -> None:
    cells = [cell(n) for n in range(100)]
    assert held_out(cells) == held_out(cells[::-1])


def test_the_number_of_rows_is_that_of_the_readme(rows: list[Row]) -> None:
    assert Counter(row.target for row in rows) == {"functional": 1803, "defective": 821}
    assert Counter(row.split for row in rows) == {"train": 1970, "test": 654}


def test_both_datasets_hold_out_the_same_cells(rows: list[Row]) -> None:
    other = {row.id: row.split for row in DATASETS[1].load()}
    assert other == {row.id: row.split for row in rows}


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: dataset.name)
def test_every_row_is_a_picture_with_the_declared_slices(dataset: DatasetSpec) -> None:
    rows = list(dataset.load())
    assert all(tuple(row.slices) == dataset.slices for row in rows)
    assert all(row.picture.name.endswith(".png") and not row.text for row in rows)


def test_equal_pictures_are_on_one_side(rows: list[Row]) -> None:
    digests = [row.picture.identified().sha256 for row in rows]
    assert len(set(digests)) == len(digests)


def test_grouping_says_that_modules_are_not_known() -> None:
    assert all("cells of a module may be in train and in test" in d.grouping for d in DATASETS)
    assert {d.restrictions for d in DATASETS} == {"Commercial use is not allowed."}

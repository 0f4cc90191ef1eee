"""The rows: their number and form, and the properties that the split relies on."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from trunkline.contracts import DatasetSpec, Row
from trunkline_medical.chapters import CHAPTERS
from trunkline_medical.datasets import DATASETS, spread
from trunkline_medical.transforms import WITHOUT_NOS, without_nos


def category_of(row: Row) -> str:
    return row.id.split(":")[0].split(".")[0]


def test_the_number_of_rows_is_that_of_the_readme(chapters: list[Row], titles: list[Row]) -> None:
    assert (len(chapters), len(titles)) == (5134, 4537)


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: dataset.name)
def test_loading_twice_gives_the_same_rows(dataset: DatasetSpec) -> None:
    assert list(dataset.load()) == list(dataset.load())


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: dataset.name)
def test_row_ids_are_unique(dataset: DatasetSpec) -> None:
    ids = [row.id for row in dataset.load()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: dataset.name)
def test_every_row_has_the_declared_slices(dataset: DatasetSpec) -> None:
    assert all(tuple(row.slices) == dataset.slices for row in dataset.load())


def test_a_chapter_row_is_grouped_by_its_category(chapters: list[Row]) -> None:
    assert all(row.group == category_of(row) for row in chapters)


def test_a_category_gives_at_most_three_chapter_rows(chapters: list[Row]) -> None:
    assert max(Counter(row.group for row in chapters).values()) == 3


def test_a_category_belongs_to_one_chapter(chapters: list[Row]) -> None:
    pairs = {(row.group, row.target) for row in chapters}
    assert len(pairs) == len({row.group for row in chapters})


def test_labels_are_the_chapters_in_order_without_chapter_22(chapters: list[Row]) -> None:
    seen = tuple(dict.fromkeys(row.target for row in chapters))
    assert seen == DATASETS[0].labels == tuple(chapter.title for chapter in CHAPTERS[:21])


def test_a_synonym_is_a_group_of_its_own(titles: list[Row]) -> None:
    assert len({row.group for row in titles}) == len(titles)


def test_synonyms_stay_distinct_after_cleaning(titles: list[Row]) -> None:
    assert len({without_nos(row.text).lower() for row in titles}) == len(titles)


def test_a_title_rows_stratum_is_its_category(titles: list[Row]) -> None:
    assert all(row.stratum == category_of(row) for row in titles)


def test_a_stratum_has_one_title(titles: list[Row]) -> None:
    answers = {(row.stratum, row.target) for row in titles}
    assert len(answers) == len({row.stratum for row in titles})


def test_a_category_gives_at_most_four_synonyms(titles: list[Row]) -> None:
    assert max(Counter(row.stratum for row in titles).values()) == 4


def test_no_synonym_equals_its_title(titles: list[Row]) -> None:
    assert not [row for row in titles if without_nos(row.text).lower() == str(row.target).lower()]


def test_classical_cholera_is_coded_as_cholera(titles: list[Row]) -> None:
    assert {row.target for row in titles if row.text == "Classical cholera"} == {"Cholera"}


@pytest.mark.parametrize(
    "note",
    [
        "Conditions classifiable to C17",
        "Any condition listed under K45 specified as gangrenous",
        "Angiostrongyliasis due to:",
        "This category is for use with categories O00-O02 to identify any associated complications",
    ],
)
def test_coding_instructions_are_excluded(note: str, titles: list[Row]) -> None:
    assert note not in {row.text for row in titles}


def test_a_term_of_two_categories_is_excluded(titles: list[Row]) -> None:
    assert "Eosinophilic granuloma" not in {row.text for row in titles}


@pytest.mark.parametrize(
    ("count", "picked"), [(2, [0, 9]), (3, [0, 4, 9]), (4, [0, 3, 6, 9]), (20, list(range(10)))]
)
def test_spread_takes_both_ends_and_even_steps(count: int, picked: list[int]) -> None:
    assert spread(range(10), count) == picked


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Scarlet fever, NOS", "Scarlet fever"),
        ("Congenital anomaly NOS of brain", "Congenital anomaly of brain"),
        ("Diagnosed NOSE bleed", "Diagnosed NOSE bleed"),
        ("Myeloid leukemia NEC", "Myeloid leukemia"),
    ],
)
def test_without_nos_removes_only_the_abbreviations(text: str, cleaned: str) -> None:
    assert without_nos(text) == cleaned


def test_the_transform_changes_only_the_text() -> None:
    row = Row(id="1", text="Measles NOS", target="Measles", group="g", stratum="B05")
    (cleaned,) = WITHOUT_NOS.apply(row, random.Random(0))
    assert cleaned == Row(id="1", text="Measles", target="Measles", group="g", stratum="B05")


def test_the_transform_drops_a_row_that_it_would_empty() -> None:
    row = Row(id="1", text="NOS", target="Measles", group="g")
    assert list(WITHOUT_NOS.apply(row, random.Random(0))) == []

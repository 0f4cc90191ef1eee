"""Bank-statement lines: expanded, mapped to categories, grouped, reproducible."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from trunkline.errors import DataError
from trunkline_finance.bank_lines import (
    Reading,
    expand,
    fold_patterns,
    load,
    read_patterns,
)
from trunkline_finance.categories import CATEGORIES, SILENT, TABLE, category_of


@pytest.fixture(scope="module")
def reading() -> Reading:
    return fold_patterns(read_patterns())


def pattern(title: Any, *types: str, pretty: str = "Shop") -> dict[str, Any]:
    return {"title": title, "prettyTitle": pretty, "types": list(types)}


def template(text: str, **params: Any) -> dict[str, Any]:
    return pattern({"type": "template", "template": text, "params": params}, "cafe")


def test_the_package_gives_2635_rows_of_2682_patterns(reading: Reading) -> None:
    assert (len(reading.rows), reading.patterns) == (2635, 2682)


def test_every_pattern_without_a_row_is_counted(reading: Reading) -> None:
    assert (reading.unfolded, reading.contradicted, reading.repeated) == (0, 8, 39)


def test_every_category_has_at_least_50_rows(reading: Reading) -> None:
    targets = [row.target for row in reading.rows]
    assert all(targets.count(category) >= 50 for category in CATEGORIES)


def test_about_half_of_the_lines_are_marked_as_generated(reading: Reading) -> None:
    generated = sum(row.slices["origin"] == "generated" for row in reading.rows)
    assert generated == 1339


def test_every_raw_tag_occurs_in_the_table_once_or_is_listed_as_silent() -> None:
    listed = [tag for _, tags in TABLE for tag in tags] + sorted(SILENT)
    raw = {tag for _, result in read_patterns() for tag in result["types"]}
    assert sorted(listed) == sorted(raw)


def test_the_table_contains_exactly_the_categories() -> None:
    assert {category for category, _ in TABLE} == set(CATEGORIES)


@pytest.mark.parametrize(
    ("tags", "category"),
    [
        (["duty_free", "airport", "shopping"], "shopping"),
        (["subscription", "entertainment", "ai_generated"], "leisure"),
        (["hotel", "dining"], "travel"),
        (["pharmacy", "shopping"], "health and beauty"),
        (["ai_generated", "online"], None),
    ],
)
def test_the_most_specific_tag_gives_the_category(tags: list[str], category: str | None) -> None:
    assert category_of(tags) == category


def test_a_line_with_two_categories_is_excluded() -> None:
    result = fold_patterns(
        [("uk", pattern("Pay  Me", "cafe")), ("usa", pattern("PAY ME", "pharmacy"))]
    )
    assert (len(result.rows), result.contradicted) == (0, 2)


def test_a_line_without_an_informative_tag_is_excluded() -> None:
    result = fold_patterns([("uk", pattern("Mystery", "online", "ai_generated"))])
    assert (len(result.rows), result.unfolded) == (0, 1)


def test_no_two_rows_share_a_line_or_an_id(reading: Reading) -> None:
    lines = {" ".join(row.text.lower().split()) for row in reading.rows}
    assert len(lines) == len({row.id for row in reading.rows}) == len(reading.rows)


def test_no_line_keeps_a_placeholder(reading: Reading) -> None:
    assert not [row.text for row in reading.rows if "{" in row.text]


def test_lines_are_the_same_under_another_hash_seed() -> None:
    program = "from trunkline_finance.bank_lines import load; print(repr(load()))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONUTF8": "1"},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_loading_twice_gives_the_same_rows() -> None:
    assert load() == load()


def test_digits_have_the_requested_length() -> None:
    line = expand(template("Shop {n}", n={"generator": "random_digits", "length": 7}))
    assert line.removeprefix("Shop ").isdigit()
    assert len(line) == len("Shop ") + 7


def test_the_requested_case_is_applied() -> None:
    field = {"generator": "choice", "options": ["oslo"], "transform": {"case": "upper"}}
    assert expand(template("Shop {place}", place=field)) == "Shop OSLO"


def test_an_unknown_generator_is_named() -> None:
    with pytest.raises(DataError, match="'random_emoji'"):
        expand(template("Shop {n}", n={"generator": "random_emoji"}))

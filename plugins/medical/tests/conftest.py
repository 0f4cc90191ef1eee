"""Rows of both datasets, read once for all tests of this plugin."""

from __future__ import annotations

import pytest

from trunkline.contracts import Row
from trunkline_medical.datasets import chapter_rows, title_rows


@pytest.fixture(scope="session")
def chapters() -> list[Row]:
    return list(chapter_rows())


@pytest.fixture(scope="session")
def titles() -> list[Row]:
    return list(title_rows())

"""A file of short insurance claims that a few steps on the tiny base learn."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

TERMS = {"fire": ("smoke", "flame", "ash"), "water": ("flood", "leak", "rain")}


@pytest.fixture(scope="session")
def claims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """640 texts whose label is mostly decided by their first word."""
    file = tmp_path_factory.mktemp("claims") / "claims.csv"
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["text", "label"])
        for number in range(640):
            label = ("fire", "water")[number % 2]
            shown = label if number % 7 else "fire"
            writer.writerow([f"{TERMS[shown][number % 3]} in house {number}", label])
    return file

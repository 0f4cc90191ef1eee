"""The smallest plugin of docs/plugins.md: its wheel is built and checked as the guide shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trunkline.plugins import check

GUIDE = Path(__file__).parents[2] / "docs" / "plugins.md"


def example(language: str, start: str) -> str:
    """The first block of a language whose text contains ``start``."""
    blocks = re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    return next(block for block in blocks if start in block)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Give the guide's folder, with rows for its CSV."""
    package = tmp_path / "trunkline-law" / "src" / "trunkline_law"
    package.mkdir(parents=True)
    folder = package.parents[1]
    (folder / "pyproject.toml").write_text(example("toml", "[build-system]"))
    (package / "__init__.py").write_text(example("python", "TRUNKLINE_API"))
    lines = [
        f"clause {number} of contract {number // 2},{('payment', 'term')[number % 2]},{number // 2}"
        for number in range(12)
    ]
    (package / "clauses.csv").write_text("\n".join(["text,kind,contract", *lines]) + "\n")
    return folder


def test_folder_listing_of_the_guide_names_every_file(project: Path) -> None:
    listing = example("", "trunkline-law/\n").split()
    files = {str(file.relative_to(project)) for file in project.rglob("*") if file.is_file()}
    assert set(listing[1:]) == files


@pytest.mark.merge
def test_wheel_of_the_guide_contains_its_rows_and_passes_the_check(project: Path) -> None:
    assert check(project) == ()

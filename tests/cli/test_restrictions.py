"""Listings, trainings and model cards state what the license of a dataset forbids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import toy_plugin
from cli_runner import invoke
from trunkline.contracts import DatasetSpec

if TYPE_CHECKING:
    from conftest import Run, Shared

FORBIDDEN = "Commercial use is not allowed."


@pytest.fixture(autouse=True)
def restricted(toy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The license of ``toy/prices`` alone forbids something."""

    def spec(**fields: object) -> DatasetSpec:
        if fields["name"] == "toy/prices":
            fields |= {"license": "CC-BY-NC-4.0", "restrictions": FORBIDDEN}
        return DatasetSpec(**fields)  # type: ignore[arg-type]

    monkeypatch.setattr(toy_plugin, "DatasetSpec", spec)


def test_listing_of_plugins_has_it(run: Run) -> None:
    assert f"toy: CC-BY-NC-4.0: {FORBIDDEN}" in run("plugins", "list").stderr
    listed = json.loads(run("plugins", "list", "--json").stdout)
    (toy,) = (one for one in listed if one["domain"] == "toy")
    assert toy["restrictions"] == [f"CC-BY-NC-4.0: {FORBIDDEN}"]
    assert FORBIDDEN in run("plugins", "show", "toy").stdout


def test_description_of_the_dataset_has_it(run: Run) -> None:
    assert FORBIDDEN in run("datasets", "show", "toy/prices").stdout
    assert FORBIDDEN not in run("datasets", "show", "toy/animals").stdout


def test_training_says_it_once_and_the_card_repeats_it(tmp_path: Path, shared: Shared) -> None:
    place = ("--workspace", str(tmp_path), "--base", str(shared.base))
    result = invoke(*place, "train", "toy/prices", "--set", "max_steps=1")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count(f"toy/prices is CC-BY-NC-4.0: {FORBIDDEN}") == 1
    card = (tmp_path / "adapters" / "toy" / "prices" / "1" / "README.md").read_text()
    assert f"- **{FORBIDDEN}**" in card
    assert FORBIDDEN in invoke(*place, "adapters", "card", "toy/prices@1").stdout


def test_training_without_restrictions_says_nothing(run: Run) -> None:
    result = run("train", "toy/animals", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "CC0-1.0:" not in result.stderr

"""The model card says what a stranger must know, in a form that the hub reads."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

import toy_plugin
from trunkline.api import Platform
from workbench import Whole


def card_of(whole: Whole, recipe: str) -> str:
    path = whole.platform.workspace.adapters / whole.runs[recipe].version.path / "README.md"
    return path.read_text(encoding="utf-8")


def metadata(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---")[1])
    return found


@pytest.mark.parametrize("recipe", ["toy/animals", "toy/prices", "toy/plurals"])
def test_metadata_is_yaml_that_names_base_and_data(whole: Whole, recipe: str) -> None:
    found = metadata(card_of(whole, recipe))
    assert found["base_model"] == "tiny"
    assert found["library_name"] == "peft"
    assert found["datasets"] == [recipe]
    assert "lora" in found["tags"]


def test_card_names_data_licence_split_and_counts(whole: Whole) -> None:
    card = card_of(whole, "toy/animals")
    for words in ("CC0-1.0", "made up", "an animal: its rows", '"train": 39', '"empty text": 1'):
        assert words in card


def test_card_gives_scores_with_intervals_floors_and_the_verdict(whole: Whole) -> None:
    card = card_of(whole, "toy/animals")
    assert re.search(r"\| this adapter \| \d\.\d{3} \[", card)
    for floor in ("majority", "tfidf"):
        assert f"| floor: {floor} |" in card
    assert re.search(r"\*\*(beats|ties|loses)\*\*", card)


def test_card_says_how_plain_peft_loads_it(whole: Whole) -> None:
    assert "num_labels=3)" in card_of(whole, "toy/animals")
    assert "num_labels=1)" in card_of(whole, "toy/prices")
    assert "AutoModelForCausalLM.from_pretrained(BASE)" in card_of(whole, "toy/plurals")


def test_card_lists_the_labels_in_the_order_of_the_outputs(whole: Whole) -> None:
    assert '["bird", "fish", "mammal"]' in card_of(whole, "toy/animals")


def test_card_tells_the_unit_and_the_scale(whole: Whole) -> None:
    card = card_of(whole, "toy/prices")
    assert "EUR" in card
    assert "log" in card


def test_table_has_as_many_cells_in_each_row(whole: Whole) -> None:
    card = card_of(whole, "toy/animals")
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


def test_words_of_a_plugin_do_not_break_the_metadata(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        toy_plugin, "DatasetSpec", lambda **named: _spec(**{**named, "licence": 'it\'s: "odd" # x'})
    )
    run = platform.train("toy/animals", max_steps=2)
    card = (platform.workspace.adapters / run.version.path / "README.md").read_text()
    assert metadata(card)["library_name"] == "peft"


def _spec(**named: Any) -> Any:
    from trunkline.contracts import DatasetSpec

    return DatasetSpec(**named)


def test_card_has_no_path_of_this_machine(whole: Whole) -> None:
    assert str(whole.platform.workspace.root.parent) not in card_of(whole, "toy/prices")

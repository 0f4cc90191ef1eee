"""What training writes beside an artifact's identity: provenance, card, Croissant file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import toy_plugin
from trunkline.adapters.artifact import read_artifact
from trunkline.adapters.provenance import Provenance, read_provenance, version_provenance
from trunkline.api import Platform
from trunkline.contracts import DatasetSpec
from workbench import SETTINGS, Whole

RECIPES = ("toy/animals", "toy/prices", "toy/plurals")


def folder_of(whole: Whole, recipe: str) -> Path:
    return whole.platform.workspace.adapters / whole.runs[recipe].version.path


def card_text(whole: Whole, recipe: str) -> str:
    return (folder_of(whole, recipe) / "README.md").read_text(encoding="utf-8")


def metadata(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---")[1])
    return found


@pytest.fixture
def animals(whole: Whole) -> Provenance:
    return read_provenance(read_artifact(folder_of(whole, "toy/animals")))


# ---------------------------------------------------------------------------------- provenance


def test_provenance_names_base_data_and_plugin(whole: Whole, animals: Provenance) -> None:
    info = whole.platform.engine.base.info
    assert (animals.base.digest, animals.base.parameters) == (info.digest, info.parameters)
    assert animals.dataset is not None
    assert (animals.dataset.license, animals.dataset.rows) == ("CC0-1.0", 63)
    assert animals.run is not None
    assert animals.run.plugin is not None
    assert animals.run.plugin.distribution == "trunkline-toy"


def test_provenance_tells_the_run_as_finished_with_its_times(animals: Provenance) -> None:
    run = animals.run
    assert run is not None
    assert (run.number, run.status, run.seed) == (1, "finished", SETTINGS["seed"])
    assert run.finished is not None
    assert run.started <= run.finished
    assert (run.actor or "").startswith("system:")


def test_provenance_holds_the_figures_of_the_registry(whole: Whole, animals: Provenance) -> None:
    version = whole.runs["toy/animals"].version
    kept = whole.platform.registry.evaluations.list(version=version.ref)[0]
    assert [one.results for one in animals.evaluations] == [kept.results]


def test_report_of_the_registry_is_that_of_the_provenance(
    whole: Whole, animals: Provenance
) -> None:
    assert animals.run is not None
    assert whole.platform.registry.runs.get(1).report == animals.run.report


def test_registry_and_file_give_the_same_account(whole: Whole, animals: Provenance) -> None:
    version = whole.runs["toy/animals"].version
    artifact = whole.platform.store.fetch(version)
    now = version_provenance(whole.platform.registry, version, artifact).to_json()
    then = animals.to_json()
    for said in (now, then):  # the end of the run is told before the registry hears of it
        said["version"].pop("created")
        said["run"].pop("finished")
    assert now == then


def test_specification_is_in_the_registry_and_in_the_file(
    whole: Whole, animals: Provenance
) -> None:
    kept = whole.platform.registry.runs.get(1).specification
    assert animals.run is not None
    assert kept == animals.run.specification
    assert kept is not None
    assert kept["gate"]["at_least"] == 0.99


def test_compute_follows_from_parameters_and_tokens(whole: Whole) -> None:
    report = whole.runs["toy/animals"].report
    parameters = whole.platform.engine.base.info.parameters
    assert report["compute"]["flops"] == 6.0 * parameters * report["tokens_trained"]
    assert "Kaplan" in report["compute"]["how"]


def test_energy_is_measured_or_said_not_to_be(whole: Whole) -> None:
    energy = whole.runs["toy/animals"].report["compute"]["energy"]
    assert energy["how"]
    assert (energy["joules"] is None) == ("no readable" in energy["how"])


# ---------------------------------------------------------------------------------------- card


@pytest.mark.parametrize("recipe", RECIPES)
def test_metadata_is_yaml_that_names_base_and_data(whole: Whole, recipe: str) -> None:
    found = metadata(card_text(whole, recipe))
    assert found["base_model"] == "tiny"
    assert found["library_name"] == "peft"
    assert found["datasets"] == [recipe]
    assert "lora" in found["tags"]


def test_metadata_carries_every_score(whole: Whole) -> None:
    found = metadata(card_text(whole, "toy/animals"))["model-index"][0]["results"][0]
    scores = whole.runs["toy/animals"].evaluation_report.scores
    assert {one["type"]: one["value"] for one in found["metrics"]} == {
        metric: score.value for metric, score in scores.items()
    }


def test_card_names_data_license_split_and_counts(whole: Whole) -> None:
    card = card_text(whole, "toy/animals")
    for said in ("CC0-1.0", "made up", "an animal: its rows", '"train": 39', '"empty text": 1'):
        assert said in card


def test_card_gives_scores_with_intervals_baselines_and_the_verdict(whole: Whole) -> None:
    card = card_text(whole, "toy/animals")
    assert re.search(r"\| this adapter \| \d\.\d{3} \[", card)
    for baseline in ("majority", "tfidf"):
        assert f"| baseline: {baseline} |" in card
    assert re.search(r"\*\*(beats|ties|loses)\*\*", card)


def test_card_gives_the_slices_worst_first(whole: Whole) -> None:
    slices = re.findall(r"\| age = \w+ \| \d+ \| (\d\.\d+) \|", card_text(whole, "toy/animals"))
    assert len(slices) == 3
    assert slices == sorted(slices)


def test_card_lists_the_labels_in_the_order_of_the_outputs(whole: Whole) -> None:
    assert '["bird", "fish", "mammal"]' in card_text(whole, "toy/animals")


def test_card_tells_the_unit_and_the_scale(whole: Whole) -> None:
    card = card_text(whole, "toy/prices")
    assert "EUR" in card
    assert "log" in card


@pytest.mark.parametrize("recipe", RECIPES)
def test_card_leaves_to_people_what_only_they_can_say(whole: Whole, recipe: str) -> None:
    card = card_text(whole, recipe)
    for said in ("what it is not for", "license of the adapter", "authors, contact"):
        assert re.search(rf"{said}.*: NOT PROVIDED", card)


def test_card_has_no_path_of_this_machine(whole: Whole) -> None:
    assert str(whole.platform.workspace.root.parent) not in card_text(whole, "toy/prices")


def test_words_of_a_plugin_do_not_break_the_metadata(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = 'it\'s: "odd" # x\x07\n---'
    monkeypatch.setattr(
        toy_plugin, "DatasetSpec", lambda **named: DatasetSpec(**{**named, "license": odd})
    )
    run = platform.train("toy/animals", max_steps=2)
    card = (platform.workspace.adapters / run.version.path / "README.md").read_text()
    assert metadata(card)["library_name"] == "peft"
    assert "\x07" not in card


def test_card_now_has_the_evaluation_made_since(platform: Platform) -> None:
    version = platform.train("toy/prices", max_steps=2).version
    platform.registry.evaluations.record(
        recipe="toy/prices",
        base_digest=version.base_digest,
        dataset_id=platform.registry.sources.list_datasets()[0].id,
        split="a later test",
        results={"scores": {"mae": {"value": 1.25, "low": 1.0, "high": 1.5}}},
        version=version.ref,
    )
    card = platform.store.render_card(version)
    assert "(split `a later test`)" in card
    assert "1.250 [1.000, 1.500]" in card


# ----------------------------------------------------------------------------------- croissant


@pytest.mark.parametrize("recipe", RECIPES)
def test_croissant_file_has_the_fingerprint_of_the_rows(whole: Whole, recipe: str) -> None:
    found = json.loads((folder_of(whole, recipe) / "croissant.json").read_text())
    version = whole.runs[recipe].version
    assert found["identifier"] == f"sha256:{version.dataset_fingerprint}"

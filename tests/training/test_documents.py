"""The files that training writes with an artifact: provenance, model card, Croissant file."""

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
from trunkline.bases import describe
from trunkline.contracts import DatasetSpec
from workbench import RECIPES, SETTINGS, TrainedAdapter

Trained = dict[str, TrainedAdapter]


def card_text(trained: Trained, recipe: str) -> str:
    return (trained[recipe].folder / "README.md").read_text(encoding="utf-8")


def metadata(card: str) -> dict[str, Any]:
    front_matter: dict[str, Any] = yaml.safe_load(card.split("---")[1])
    return front_matter


@pytest.fixture
def animals(trained: Trained) -> Provenance:
    return read_provenance(read_artifact(trained["toy/animals"].folder))


# ---------------------------------------------------------------------------------- provenance


def test_provenance_names_base_data_and_plugin(tiny: Path, animals: Provenance) -> None:
    info = describe(str(tiny))
    assert (animals.base.digest, animals.base.parameters) == (info.digest, info.parameters)
    assert animals.dataset is not None
    assert (animals.dataset.license, animals.dataset.rows) == ("CC0-1.0", 63)
    assert animals.run is not None
    assert animals.run.plugin is not None
    assert animals.run.plugin.distribution == "trunkline-toy"


def test_provenance_records_the_run_with_its_times(animals: Provenance) -> None:
    run = animals.run
    assert run is not None
    assert (run.number, run.status, run.seed) == (1, "finished", SETTINGS["seed"])
    assert run.finished is not None
    assert run.started <= run.finished
    assert (run.actor or "").startswith("system:")


def test_provenance_holds_the_evaluations_of_the_registry(
    trained: Trained, animals: Provenance
) -> None:
    version = trained["toy/animals"].version
    kept = trained["toy/animals"].platform.registry.evaluations.list(version=version.ref)[0]
    assert [one.results for one in animals.evaluations] == [kept.results]


def test_report_of_the_registry_is_that_of_the_provenance(
    trained: Trained, animals: Provenance
) -> None:
    assert animals.run is not None
    assert trained["toy/animals"].platform.registry.runs.get(1).report == animals.run.report


def test_registry_and_file_give_the_same_provenance(trained: Trained, animals: Provenance) -> None:
    version = trained["toy/animals"].version
    artifact = trained["toy/animals"].platform.store.fetch(version)
    now = version_provenance(trained["toy/animals"].platform.registry, version, artifact).to_json()
    then = animals.to_json()
    for provenance in (now, then):  # the file is written before the run ends
        provenance["version"].pop("created")
        provenance["run"].pop("finished")
    assert now == then


def test_specification_is_in_the_registry_and_in_the_file(
    trained: Trained, animals: Provenance
) -> None:
    kept = trained["toy/animals"].platform.registry.runs.get(1).specification
    assert animals.run is not None
    assert kept == animals.run.specification
    assert kept is not None
    assert kept["gate"]["at_least"] == 0.99


def test_compute_follows_from_parameters_and_tokens(trained: Trained, tiny: Path) -> None:
    report = trained["toy/animals"].report
    parameters = describe(str(tiny)).parameters
    assert report["compute"]["flops"] == 6.0 * parameters * report["tokens_trained"]
    assert "Kaplan" in report["compute"]["how"]


def test_energy_is_measured_or_its_absence_explained(trained: Trained) -> None:
    energy = trained["toy/animals"].report["compute"]["energy"]
    assert energy["how"]
    assert (energy["joules"] is None) == ("no readable" in energy["how"])


# ---------------------------------------------------------------------------------------- card


@pytest.mark.parametrize("recipe", RECIPES)
def test_metadata_is_yaml_that_names_base_and_data(trained: Trained, recipe: str) -> None:
    front_matter = metadata(card_text(trained, recipe))
    assert front_matter["base_model"] == "tiny"
    assert front_matter["library_name"] == "peft"
    assert front_matter["datasets"] == [recipe]
    assert "lora" in front_matter["tags"]


def test_metadata_carries_every_score(trained: Trained) -> None:
    results = metadata(card_text(trained, "toy/animals"))["model-index"][0]["results"][0]
    scores = trained["toy/animals"].evaluation_report.scores
    assert {one["type"]: one["value"] for one in results["metrics"]} == {
        metric: score.value for metric, score in scores.items()
    }


def test_card_names_data_license_split_and_counts(trained: Trained) -> None:
    card = card_text(trained, "toy/animals")
    for text in ("CC0-1.0", "made up", "an animal: its rows", '"train": 39', '"empty text": 1'):
        assert text in card


def test_card_gives_scores_with_intervals_baselines_and_the_verdict(trained: Trained) -> None:
    card = card_text(trained, "toy/animals")
    assert re.search(r"\| this adapter \| \d\.\d{3} \[", card)
    for baseline in ("majority", "tfidf"):
        assert f"| baseline: {baseline} |" in card
    assert re.search(r"\*\*(beats|ties|loses)\*\*", card)


def test_card_gives_the_slices_worst_first(trained: Trained) -> None:
    slices = re.findall(r"\| age = \w+ \| \d+ \| (\d\.\d+) \|", card_text(trained, "toy/animals"))
    assert len(slices) == 3
    assert slices == sorted(slices)


def test_card_lists_the_labels_in_the_order_of_the_outputs(trained: Trained) -> None:
    assert '["bird", "fish", "mammal"]' in card_text(trained, "toy/animals")


def test_card_names_the_unit_and_the_scale(trained: Trained) -> None:
    card = card_text(trained, "toy/prices")
    assert "EUR" in card
    assert "log" in card


@pytest.mark.parametrize("recipe", RECIPES)
def test_card_leaves_judgments_to_people(trained: Trained, recipe: str) -> None:
    card = card_text(trained, recipe)
    for text in ("what it is not for", "license of the adapter", "authors, contact"):
        assert re.search(rf"{text}.*: NOT PROVIDED", card)


def test_card_has_no_path_of_this_machine(trained: Trained, trained_workspace: Path) -> None:
    assert str(trained_workspace) not in card_text(trained, "toy/prices")


def test_text_of_a_plugin_does_not_break_the_metadata(
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


def test_current_card_has_later_evaluations(trained_platform: Platform) -> None:
    platform = trained_platform
    version = platform.resolve("toy/prices@1").version
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
def test_croissant_file_has_the_fingerprint_of_the_rows(trained: Trained, recipe: str) -> None:
    croissant = json.loads((trained[recipe].folder / "croissant.json").read_text())
    version = trained[recipe].version
    assert croissant["identifier"] == f"sha256:{version.dataset_fingerprint}"

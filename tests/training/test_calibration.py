"""A classifier is calibrated when it is trained, and abstains on request."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cli_runner import invoke
from trunkline.api import Platform
from trunkline.errors import UsageError
from trunkline.inference.request import Request
from trunkline.training.config import make_config
from written_claims import TERMS, claims

__all__ = ["claims"]


@pytest.fixture
def calibrated(platform: Platform, claims: Path) -> Platform:
    config = make_config(
        {
            "name": "own/claims",
            "data": {"file": str(claims), "label": "label"},
            "settings": {"max_steps": 25, "learning_rate": 0.005, "evals_per_epoch": 1},
        },
        "test",
    )
    platform.train(config, split_seed=1)
    return platform


def test_probabilities_are_those_of_the_fitted_temperature(calibrated: Platform) -> None:
    version = calibrated.resolve("own/claims").version
    manifest = calibrated.store.fetch(version).manifest
    fitted = manifest.task["calibration"]
    assert 0.2 <= fitted["temperature"] <= 10
    assert all(0.5 <= value <= 1 for value in fitted["thresholds"].values())
    evaluated = calibrated.evaluation_report(version)
    assert evaluated is not None
    report = evaluated[0].calibration
    assert report is not None
    assert report.temperature == fitted["temperature"]
    assert calibrated.evaluate("own/claims").calibration == report


def test_without_calibration_the_artifact_says_nothing(trained_platform: Platform) -> None:
    artifact = trained_platform.store.fetch(trained_platform.resolve("toy/animals").version)
    assert "calibration" not in artifact.manifest.task
    with pytest.raises(UsageError, match="no thresholds to abstain by"):
        trained_platform.run([Request("toy/animals", "a cat", abstain=0.9)])
    with pytest.raises(UsageError, match="only a classification abstains"):
        trained_platform.run([Request("toy/prices", "a cat", abstain=0.9)])


def test_an_uncertain_text_gets_no_label(calibrated: Platform) -> None:
    task = calibrated.store.fetch(calibrated.resolve("own/claims").version).manifest.task
    thresholds = {int(key) / 100: value for key, value in task["calibration"]["thresholds"].items()}
    wanted = max(thresholds)
    texts = [f"{token} in house" for group in TERMS.values() for token in group] + ["a", "?"]
    plain = calibrated.predict("own/claims", texts)
    answers = calibrated.run([Request("own/claims", text, abstain=wanted) for text in texts])
    for one, other in zip(plain, answers, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities)
        assert one.probabilities is not None
        certain = max(one.probabilities.values()) >= thresholds[wanted]
        assert other.abstained == (not certain)
        assert other.label == (one.label if certain else None)
    with pytest.raises(UsageError, match="no threshold for a precision of"):
        calibrated.run([Request("own/claims", "a", abstain=0.975)])


def test_the_command_abstains_in_text_and_in_json(calibrated: Platform, tmp_path: Path) -> None:
    where = ["--workspace", str(calibrated.workspace.root), "--base", str(calibrated.base_name)]
    task = calibrated.store.fetch(calibrated.resolve("own/claims").version).manifest.task
    wanted = f"0.{max(task['calibration']['thresholds'])}"
    rows = tmp_path / "rows.csv"
    rows.write_text("text\nsmoke in house 1\nflood\nx\n")
    done = invoke(
        *where, "predict", "own/claims", "--file", str(rows), "--abstain", wanted, "--json"
    )
    assert done.exit_code == 0, done.output
    answers = json.loads(done.stdout)
    assert f"No label for {sum('abstained' in one for one in answers)} row" in done.stderr
    for one in answers:
        assert ("label" in one) != one.get("abstained", False)
    done = invoke(*where, "eval", "own/claims")
    assert "Expected calibration error" in done.stdout


def test_a_merged_export_gives_the_calibrated_probabilities(
    calibrated: Platform, tmp_path: Path
) -> None:
    done = calibrated.files.export_model("own/claims", tmp_path / "out", "merged")
    assert done.largest_difference < 1e-3
    assert math.isfinite(done.largest_difference)

"""Versions of an adapter for pictures: listed, promoted, verified, moved to another workspace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from cli_runner import invoke
from image_workbench import NAME, image_run, image_workspace, shapes, tiny_resnet
from workbench import tiny

__all__ = ["image_run", "image_workspace", "shapes", "tiny", "tiny_resnet"]

Run = Callable[..., Result]


@pytest.fixture
def two(image_run: Run, shapes: Path) -> Run:
    """The workspace with a second version."""
    options = ("--set", "max_steps=1", "--set", "r=2", "--set", "precision=fp32")
    result = image_run("train", "--data", str(shapes), "--name", NAME, *options)
    assert result.exit_code == 0, result.stderr
    return image_run


def test_listing_says_what_it_reads_and_on_which_base(image_run: Run) -> None:
    text = " ".join(image_run("adapters", "list").stdout.split())
    assert "classification pictures resnet 1 of 1" in text
    (listed,) = json.loads(image_run("adapters", "list", "--json").stdout)
    assert (listed["modality"], Path(listed["base"]).name) == ("image", "resnet")


def test_search_finds_what_reads_pictures(image_run: Run) -> None:
    matching = json.loads(
        image_run("adapters", "list", "--where", "modality=image", "--json").stdout
    )
    assert [one["ref"] for one in matching] == [f"{NAME}@1"]
    assert matching[0]["modality"] == "image"
    none = image_run("adapters", "list", "--where", "modality=text", "--json").stdout
    assert json.loads(none) == []


def test_show_and_lineage_name_the_modality(image_run: Run) -> None:
    shown = image_run("adapters", "show", NAME)
    assert "pictures" in shown.stdout
    assert "verified" in shown.stdout
    lineage = json.loads(image_run("lineage", NAME, "--json").stdout)
    assert lineage["base"]["modality"] == "image"
    text = image_run("lineage", NAME).stdout
    assert f"{NAME}@1" in text
    assert "resnet" in text


def test_version_is_promoted_and_rolled_back(two: Run) -> None:
    forced = ("--force", "--reason", "a test")
    for number in (1, 2):
        result = two("adapters", "promote", f"{NAME}@{number}", *forced)
        assert result.exit_code == 0, result.stderr
    assert two("adapters", "rollback", NAME).exit_code == 0
    (listed,) = json.loads(two("adapters", "list", "--json").stdout)
    assert listed["aliases"] == {"champion": 1}
    assert two("adapters", "history", NAME).exit_code == 0
    assert two("adapters", "diff", f"{NAME}@1", f"{NAME}@2").exit_code == 0


def test_gate_compares_with_the_baselines(two: Run) -> None:
    result = two("adapters", "promote", f"{NAME}@2")
    assert result.exit_code in (0, 1)
    assert "baseline" in result.stdout + result.stderr


def test_version_is_verified_and_damage_is_noticed(image_run: Run, tmp_path: Path) -> None:
    assert image_run("adapters", "verify", NAME).exit_code == 0
    shown = json.loads(image_run("adapters", "show", NAME, "--json").stdout)
    weights = Path(shown["folder"]) / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    result = image_run("adapters", "verify", NAME)
    assert result.exit_code == 1
    assert "was changed" in result.stdout + result.stderr


def test_card_is_printed(image_run: Run) -> None:
    card = image_run("adapters", "card", NAME).stdout
    assert "A LoRA adapter for classification of pictures" in card
    assert "baseline: frozen-features" in card


def test_exported_version_answers_in_another_workspace(
    image_run: Run, tmp_path: Path, tiny_resnet: Path, shapes: Path
) -> None:
    archive, picture = tmp_path / "shapes.tar", str(shapes / "circle" / "0.png")
    result = image_run("adapters", "export", NAME, str(archive))
    assert result.exit_code == 0, result.stderr
    (tmp_path / "other").mkdir()
    place = ("--workspace", str(tmp_path / "other"), "--base", str(tiny_resnet), "--no-plugins")
    result = invoke(*place, "adapters", "import", str(archive), "--name", "other/shapes")
    assert result.exit_code == 0, result.stderr
    (listed,) = json.loads(invoke(*place, "adapters", "list", "--json").stdout)
    assert (listed["adapter"], listed["modality"]) == ("other/shapes", "image")
    before = json.loads(image_run("predict", NAME, picture, "--json").stdout)[0]
    after = json.loads(invoke(*place, "predict", "other/shapes", picture, "--json").stdout)[0]
    assert after["probabilities"] == pytest.approx(before["probabilities"])
    lineage = json.loads(invoke(*place, "lineage", "other/shapes", "--json").stdout)
    assert lineage["base"]["modality"] == "image"


def test_registry_is_rebuilt_from_the_artifacts(image_run: Run, tmp_path: Path) -> None:
    (tmp_path / "workspace" / "registry.db").unlink()
    result = image_run("db", "rebuild")
    assert result.exit_code == 0, result.stderr
    (listed,) = json.loads(image_run("adapters", "list", "--json").stdout)
    assert (listed["adapter"], listed["modality"]) == (NAME, "image")


def test_peft_folder_of_pictures_is_refused_whatever_the_base(
    image_run: Callable[..., Result], image_workspace: Path, tiny: Path, tmp_path: Path
) -> None:
    (artifact,) = {file.parent for file in image_workspace.rglob("adapter_config.json")
                   if "adapters" in file.parts}  # fmt: skip
    foreign = shutil.copytree(artifact, tmp_path / "foreign")
    (foreign / "trunkline.json").unlink()
    config = json.loads((foreign / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "timm/tf_efficientnet_lite0.in1k"
    (foreign / "adapter_config.json").write_text(json.dumps(config))
    for folder in (artifact, foreign):
        for base in (("--base", str(tiny)), ()):
            result = image_run("adapters", "import", str(folder), "--name", "own/other", *base)
            assert result.exit_code == 2
            assert "is for pictures" in result.stderr
            assert "adapters export" in result.stderr

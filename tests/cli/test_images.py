"""Pictures on the command line: bases, training a folder, predicting files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from cli_runner import invoke
from image_workbench import NAME, image_run, image_workspace, shapes, tiny_resnet
from tiny_images import make_tiny_image_base
from trunkline.bases import release_image
from workbench import tiny

__all__ = ["image_run", "image_workspace", "shapes", "tiny", "tiny_resnet"]


@pytest.fixture
def run(image_run: Callable[..., Result]) -> Callable[..., Result]:
    return image_run


def test_base_show_says_what_it_reads(tiny_resnet: Path) -> None:
    shown = invoke("base", "show", str(tiny_resnet))
    assert "pictures, as 32 × 32 pixels" in shown.stdout
    stored = json.loads(invoke("base", "show", str(tiny_resnet), "--json").stdout)
    assert stored["preprocessing"]["shortest_edge"] == 36


def test_pictures_are_predicted(run: Callable[..., Result], shapes: Path) -> None:
    files = [str(shapes / "circle" / "0.png"), str(shapes / "square" / "1.png")]
    result = run("predict", NAME, *files, "--json")
    assert result.exit_code == 0, result.stderr
    answers = json.loads(result.stdout)
    assert [one["image"] for one in answers] == files
    assert all(set(one["probabilities"]) == {"circle", "square"} for one in answers)
    assert f"{NAME}@1" in result.stderr


def test_folder_is_trained(run: Callable[..., Result], shapes: Path) -> None:
    options = ("--set", "max_steps=1", "--set", "r=2", "--set", "precision=fp32")
    result = run("train", "--data", str(shapes), "--name", "own/again", *options)
    assert result.exit_code == 0, result.stderr
    assert "frozen-features" in result.stdout
    assert "trunkline predict own/again@1 picture.jpg" in result.stderr


def test_dry_run_estimates_a_training_of_pictures(run: Callable[..., Result], shapes: Path) -> None:
    result = run("train", "--data", str(shapes), "--name", "own/again", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "nothing was trained" in result.stdout
    assert "32 × 32 pixels" in result.stdout
    assert "tokens" not in result.stdout
    assert "FLOPs" not in result.stdout


def test_text_for_an_adapter_of_pictures_is_refused(run: Callable[..., Result]) -> None:
    result = run("predict", NAME, "a red circle")
    assert result.exit_code != 0
    assert "There is no file 'a red circle'" in result.stderr


def test_chat_with_an_adapter_of_pictures_is_refused(run: Callable[..., Result]) -> None:
    result = run("chat", NAME)
    assert result.exit_code == 2
    assert "reads pictures, and a chat has texts" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--template", "A cell: {text}"), "The template of own/again is for texts"),
        (("--set", "max_length=30"), "max_length = 30 is not supported for pictures"),
    ],
)
def test_option_without_an_effect_on_pictures_is_refused(
    run: Callable[..., Result], shapes: Path, options: tuple[str, ...], message: str
) -> None:
    data = ("train", "--data", str(shapes), "--name", "own/again", "--dry-run")
    result = run(*data, *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_table_for_an_adapter_of_pictures_is_refused(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("text\na\n")
    result = run("predict", NAME, "--file", str(tmp_path / "rows.csv"))
    assert result.exit_code != 0
    assert "reads pictures, and rows.csv holds texts" in result.stderr


def test_image_base_must_read_pictures(tmp_path: Path, tiny: Path, shapes: Path) -> None:
    result = invoke(
        "--image-base", str(tiny), "--no-plugins", "--workspace", str(tmp_path),
        "train", "--data", str(shapes), "--name", "own/again",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "does not read pictures" in result.stderr


def test_both_bases_can_be_named(
    tmp_path: Path, tiny: Path, image_workspace: Path, tiny_resnet: Path, shapes: Path
) -> None:
    workspace = shutil.copytree(image_workspace, tmp_path / "workspace")
    result = invoke(
        "--base", str(tiny), "--image-base", str(tiny_resnet), "--workspace", str(workspace),
        "--no-plugins", "predict", NAME, str(shapes / "circle" / "0.png"),
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr


def test_adapter_of_another_base_names_it(
    tmp_path: Path, image_workspace: Path, shapes: Path
) -> None:
    release_image()
    other = make_tiny_image_base(tmp_path / "other", "vit")
    result = invoke(
        "--base", str(other), "--workspace", str(image_workspace), "--no-plugins",
        "predict", NAME, str(shapes / "circle" / "0.png"),
    )  # fmt: skip
    assert result.exit_code == 1
    assert "was trained on resnet" in result.stderr

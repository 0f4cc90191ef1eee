"""A workspace with an adapter for pictures, trained once per test run on a tiny ResNet."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import ImageDraw

from cli_runner import invoke
from tiny_images import encoded, make_tiny_image_base, picture
from trunkline.api import Platform, open
from trunkline.bases import load_image, release_image
from trunkline.cli.file_options import make_own_recipe
from trunkline.errors import BaseModelError
from trunkline.evaluation.intervals import group_draws
from trunkline.training.config import RecipeConfig
from workbench import build_once

SHAPES = ("circle", "square")
NAME = "own/shapes"
SETTINGS: dict[str, Any] = {
    "max_steps": 6,
    "r": 4,
    "evals_per_epoch": 2,
    "learning_rate": 5e-3,
    "precision": "fp32",
    "seed": 2,
}


def draw_shapes(folder: Path, count: int = 24) -> Path:
    """A folder for each class: red circles and blue squares on colored ground."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(SHAPES):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            image = picture(1000 * number + index, 48, 48)
            x, y = rng.integers(4, 20, 2).tolist()
            box = (x, y, x + 20, y + 20)
            if name == "circle":
                ImageDraw.Draw(image).ellipse(box, fill=(255, 0, 0))
            else:
                ImageDraw.Draw(image).rectangle(box, fill=(0, 0, 255))
            (folder / name / f"{index}.png").write_bytes(encoded(image))
    return folder


def shapes_recipe(folder: Path, **settings: Any) -> RecipeConfig:
    """The recipe of a folder of :func:`draw_shapes`."""
    config = make_own_recipe(NAME, folder, {})
    return config.model_copy(update={"settings": {**SETTINGS, **settings}})


def opened_images(workspace: Path, base: Path) -> Iterator[Platform]:
    """A platform whose image base stays loaded from one test to the next."""
    try:
        load_image(str(base))
    except BaseModelError:  # another test left another base loaded
        release_image()
    workspace.mkdir(exist_ok=True)
    platform = open(workspace, base=str(base), no_plugins=True)
    yield platform
    if platform.engines.loaded():
        platform.engines.image.close()
    platform.registry.close()


@pytest.fixture(scope="session")
def tiny_resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ResNet; read only."""
    return build_once(
        tmp_path_factory, "resnet", lambda folder: make_tiny_image_base(folder, "resnet")
    )


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two classes; read only."""
    return build_once(tmp_path_factory, "shapes", draw_shapes)


@pytest.fixture(scope="session")
def image_workspace(
    tmp_path_factory: pytest.TempPathFactory, tiny_resnet: Path, shapes: Path
) -> Path:
    """A workspace with version 1 of :data:`NAME`; read only."""

    def build(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRUNKLINE_CACHE", str(tmp_path_factory.mktemp("cache")))
            patch.delenv("TRUNKLINE_REGISTRY", raising=False)
            patch.setattr(group_draws, "__defaults__", (20,))
            for platform in opened_images(folder, tiny_resnet):
                platform.train(shapes_recipe(shapes))

    return build_once(tmp_path_factory, "images", build)


@pytest.fixture
def image_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_workspace: Path, tiny_resnet: Path
) -> Iterator[Platform]:
    """A platform on a copy of the workspace with the adapter for pictures."""
    monkeypatch.setattr(group_draws, "__defaults__", (20,))
    workspace = shutil.copytree(image_workspace, tmp_path / "workspace")
    yield from opened_images(workspace, tiny_resnet)


@pytest.fixture
def image_run(tmp_path: Path, image_workspace: Path, tiny_resnet: Path) -> Callable[..., Result]:
    """Run a command in a copy of the workspace with the adapter for pictures."""
    try:
        load_image(str(tiny_resnet))
    except BaseModelError:
        release_image()
    workspace = shutil.copytree(image_workspace, tmp_path / "workspace")
    place = ("--workspace", str(workspace), "--base", str(tiny_resnet), "--no-plugins")
    return lambda *args: invoke(*place, *args)

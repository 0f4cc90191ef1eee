"""A workspace with fusions of a text and an image adapter, trained once per test run."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from image_workbench import tiny_resnet
from tiny_images import encoded, picture
from trunkline.api import Platform, open
from trunkline.bases import load, load_image, release, release_image
from trunkline.cli.file_options import make_own_recipe
from trunkline.errors import BaseModelError
from trunkline.evaluation.intervals import group_draws
from trunkline.training.config import RecipeConfig
from workbench import build_once

__all__ = ["tiny_resnet"]

GOODS = "shop/goods"
KINDS = ("bowl", "lamp", "shirt")
SETTINGS: dict[str, Any] = {
    "max_steps": 6,
    "r": 4,
    "evals_per_epoch": 2,
    "learning_rate": 5e-3,
    "precision": "fp32",
}


def draw_goods(folder: Path, count: int = 96) -> Path:
    """A folder with ``labels.csv``: goods with a name and a picture, and an official split."""
    folder.mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("path", "text", "label", "split"))
        for index in range(count):
            kind = KINDS[index % len(KINDS)]
            image = picture(index, 40, 40)
            image.paste((80 * (index % len(KINDS)), 90, 90), (8, 8, 32, 32))
            (folder / f"{index}.png").write_bytes(encoded(image))
            name = f"{kind if index % 4 else 'thing'} number {index}"
            part = ("train", "train", "validation", "test")[index // len(KINDS) % 4]
            table.writerow((f"{index}.png", name, kind, part))
    return folder


def goods_recipes(folder: Path, name: str = GOODS, **columns: Any) -> list[RecipeConfig]:
    """The recipes for the texts and for the pictures of a folder of :func:`draw_goods`."""
    columns = {"text": "text", **columns}
    recipes = [
        make_own_recipe(f"{name}-{reads}", folder, {**columns, "reads": reads})
        for reads in ("text", "image")
    ]
    return [one.model_copy(update={"settings": SETTINGS}) for one in recipes]


def opened_both(workspace: Path, text: Path, image: Path) -> Iterator[Platform]:
    """A platform with both bases, which stay loaded from one test to the next."""
    for loading, base, releasing in ((load, text, release), (load_image, image, release_image)):
        try:
            loading(str(base))
        except BaseModelError:  # another test left another base loaded
            releasing()
    workspace.mkdir(exist_ok=True)
    platform = open(workspace, base=str(text), image_base=str(image), no_plugins=True)
    yield platform
    for engine in platform.engines.loaded():
        engine.close()
    platform.registry.close()


@pytest.fixture(scope="session")
def goods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Goods with names and pictures; read only."""
    return build_once(tmp_path_factory, "goods", draw_goods)


@pytest.fixture(scope="session")
def fused_workspace(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, tiny_resnet: Path, goods: Path
) -> Path:
    """A workspace with :data:`GOODS`: version 1 averages its parents, 2 stacks them; read only."""

    def build(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRUNKLINE_CACHE", str(tmp_path_factory.mktemp("cache")))
            patch.delenv("TRUNKLINE_REGISTRY", raising=False)
            patch.setattr(group_draws, "__defaults__", (20,))
            for platform in opened_both(folder, tiny, tiny_resnet):
                platform.files.train_fused(*goods_recipes(goods), GOODS)
                platform.files.fuse_adapters(
                    f"{GOODS}-image", f"{GOODS}-text", GOODS, method="stacked"
                )

    return build_once(tmp_path_factory, "fused", build)


@pytest.fixture
def fused_platform(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fused_workspace: Path,
    tiny: Path,
    tiny_resnet: Path,
) -> Iterator[Platform]:
    """A platform on a copy of the workspace with fusions."""
    monkeypatch.setattr(group_draws, "__defaults__", (20,))
    workspace = shutil.copytree(fused_workspace, tmp_path / "workspace")
    yield from opened_both(workspace, tiny, tiny_resnet)

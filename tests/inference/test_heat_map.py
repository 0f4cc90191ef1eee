"""Heat maps of pictures: Grad-CAM as its paper defines it, on the last feature map."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from image_workbench import (
    NAME,
    image_platform,
    image_run,
    image_workspace,
    opened_images,
    shapes,
    shapes_recipe,
    tiny_resnet,
)
from tiny_images import encoded, make_tiny_image_base, picture
from trunkline.api import Platform
from trunkline.data.pictures import prepare, read_pixels, region, to_tensor
from trunkline.errors import NotFoundError, UsageError
from trunkline.images import ImageSource
from trunkline.inference.heat_map import HeatMap, explain
from trunkline.preprocessing import Preprocessing

pytest.importorskip("captum")

__all__ = ["image_platform", "image_run", "image_workspace", "shapes", "tiny_resnet"]


def explained(platform: Platform, source: ImageSource, output: str | None = None) -> HeatMap:
    artifact = platform.store.fetch(platform.resolve(NAME).version)
    return explain(artifact, platform.engines.image.base, source, output)


def gradcam(platform: Platform, source: ImageSource, index: int) -> np.ndarray:
    """The formula of Selvaraju et al. 2017, section 3, on the output of the last stage."""
    from peft import PeftModel

    from trunkline.bases import load_fresh_image

    artifact = platform.store.fetch(platform.resolve(NAME).version)
    base = platform.engines.image.base
    model: Any = PeftModel.from_pretrained(load_fresh_image(base.info.name, 2), artifact.folder)
    steps = artifact.manifest.make_preprocessing()
    maps: list[torch.Tensor] = []
    stage = model.get_base_model().resnet.encoder.stages[-1]
    stage.register_forward_hook(lambda module, inputs, output: maps.append(output))
    pixels = to_tensor(read_pixels(source, steps), steps)[None].requires_grad_()
    score = model.eval()(pixel_values=pixels).logits[0, index]
    (gradient,) = torch.autograd.grad(score, maps)
    weights = gradient.mean((2, 3), keepdim=True)
    heat = torch.relu((weights * maps[0]).sum(1))[0]
    return (heat / heat.max().clamp(min=1e-12)).detach().numpy()


@pytest.mark.parametrize("label", ["circle", "square"])
def test_map_is_that_of_the_paper(image_platform: Platform, shapes: Path, label: str) -> None:
    source = ImageSource(shapes / "circle" / "3.png")
    heat_map = explained(image_platform, source, label)
    expected = gradcam(image_platform, source, ["circle", "square"].index(label))
    assert heat_map.output == label
    assert heat_map.values.shape == expected.shape
    np.testing.assert_allclose(heat_map.values, expected, atol=1e-4)


def test_answer_is_explained_by_default(image_platform: Platform, shapes: Path) -> None:
    source = ImageSource(shapes / "square" / "2.png")
    label = image_platform.predict_images(NAME, [source.origin])[0].label
    assert explained(image_platform, source).output == label


def test_unknown_label_names_the_nearest(image_platform: Platform, shapes: Path) -> None:
    with pytest.raises(NotFoundError, match="'circel'") as caught:
        explained(image_platform, ImageSource(shapes / "circle" / "3.png"), "circel")
    assert "circle" in (caught.value.hint or "")


def test_base_without_a_feature_map_is_refused(tmp_path: Path, shapes: Path) -> None:
    base = make_tiny_image_base(tmp_path / "vit", "vit")
    for platform in opened_images(tmp_path / "workspace", base):
        platform.train(shapes_recipe(shapes, max_steps=1))
        with pytest.raises(UsageError, match="no feature map") as caught:
            explained(platform, ImageSource(shapes / "circle" / "3.png"))
        assert "efficientnet-lite0" in (caught.value.hint or "")


def test_missing_package_is_named(
    image_platform: Platform, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(UsageError, match="need the package captum") as caught:
        explained(image_platform, ImageSource(shapes / "circle" / "3.png"))
    assert caught.value.hint == "Run: pip install 'trunkline[explain]'"


# --------------------------------------------------------------------------------- the picture


@pytest.mark.parametrize("size", [(48, 48), (300, 100), (20, 31), (4, 400)])
def test_region_is_what_is_prepared(size: tuple[int, int]) -> None:
    """A picture that is white in the region and black elsewhere becomes white."""
    steps = Preprocessing(height=32, width=32, shortest_edge=36, resample="box")
    left, top, right, bottom = region(size, steps)
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[top:bottom, left:right] = 255
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    assert prepare(pixels, steps)[2:-2, 2:-2].mean() > 250
    outside = 255 - pixels
    assert prepare(outside, steps)[2:-2, 2:-2].mean() < 5


def test_picture_is_gray_outside_of_the_region_and_colored_where_the_heat_is() -> None:
    values = np.array([[1.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    pixels = np.asarray(picture(1, 60, 40))
    heat_map = HeatMap(output="a", values=values, region=(10, 0, 50, 40), pixels=pixels)
    shown = np.asarray(Image.open(io.BytesIO(heat_map.to_png())))
    assert shown.shape == pixels.shape
    assert (shown[:, :10] == shown[:, :10, :1]).all()
    assert (shown[-3:, 40:50] == pixels[-3:, 40:50]).all()
    changed = np.abs(shown.astype(int) - pixels)[:, 10:50]
    assert changed[:10, :10].mean() > 10


# --------------------------------------------------------------------------------- the command


def test_command_writes_the_picture(
    image_run: Callable[..., Result], shapes: Path, tmp_path: Path
) -> None:
    import json

    out = tmp_path / "heat.png"
    args = ("explain", NAME, str(shapes / "circle" / "3.png"), "--out", str(out))
    result = image_run(*args)
    assert result.exit_code == 0, result.stderr
    assert "What speaks for" in result.stderr
    assert Image.open(out).size == (48, 48)
    first = out.read_bytes()
    values = json.loads(image_run(*args, "--label", "square", "--json").stdout)
    assert values["explained"] == "square"
    assert values["label"] in ("circle", "square")
    assert len(values["region"]) == 4
    assert max(map(max, values["map"])) <= 1
    image_run(*args)
    assert out.read_bytes() == first


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (("{picture}", "--out", "{folder}/heat.jpg"), "is not a PNG"),
        (("{picture}", "--out", "{folder}/none/heat.png"), "does not exist"),
        (("{folder}/a.png", "--out", "{folder}/a.png"), "is the file that the command reads"),
        (("{folder}/none.png", "--out", "{folder}/heat.png"), "There is no file"),
        (("{picture}", "--out", "{folder}/heat.png", "--label", "nut"), "no label 'nut'"),
    ],
)
def test_wrong_use_is_one_sentence(
    image_run: Callable[..., Result],
    shapes: Path,
    tmp_path: Path,
    args: tuple[str, ...],
    problem: str,
) -> None:
    places = {"picture": shapes / "circle" / "3.png", "folder": tmp_path}
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    result = image_run("explain", NAME, *(one.format(**places) for one in args))
    assert result.exit_code in (1, 2)
    assert problem in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "heat.png").exists()

"""Adapters for pictures are merged as those for text are: proved, evaluated and served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from image_workbench import (
    NAME,
    draw_shapes,
    image_platform,
    image_workspace,
    shapes,
    shapes_recipe,
    tiny_resnet,
)
from tiny_images import encoded, picture
from trunkline.adapters.artifact import Artifact
from trunkline.api import Platform
from trunkline.bases import load_fresh_image
from trunkline.data.pictures import decode, prepare, to_tensor
from trunkline.errors import RefusedError

__all__ = ["image_platform", "image_workspace", "shapes", "tiny_resnet"]

MERGE = "own/both"


@pytest.fixture
def parents(image_platform: Platform, shapes: Path) -> list[str]:
    """Two versions of one recipe, of different ranks."""
    image_platform.train(shapes_recipe(shapes, seed=3, max_steps=2, r=8))
    return [f"{NAME}@1", f"{NAME}@2"]


def artifact_of(platform: Platform, ref: str) -> Artifact:
    return platform.store.fetch(platform.resolve(ref).version)


def update(artifact: Artifact, base: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """PEFT's model of an artifact, and what it adds to each layer."""
    from peft import PeftModel

    assert artifact.lora.rank
    outputs = next(shape[0] for key, shape in shapes_of(artifact) if key.endswith("classifier"))
    model = PeftModel.from_pretrained(load_fresh_image(str(base), outputs), artifact.folder)
    added = {
        name: module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    return model.eval(), added


def shapes_of(artifact: Artifact) -> list[tuple[str, Any]]:
    return [(key.removesuffix(".weight"), tensor.shape) for key, tensor in artifact.tensors.items()]


@pytest.mark.parametrize("method", ["linear", "svd", "ties", "dare"])
def test_merge_is_proved_evaluated_and_answers(
    image_platform: Platform, parents: list[str], method: str
) -> None:
    merged = image_platform.files.merge_adapters(parents, MERGE, method=method)
    assert merged.proof.to_trained < 1e-3 < merged.proof.to_base
    assert merged.rank == (12 if method == "linear" else 4)  # the narrowest layer has 4 outputs
    assert merged.evaluation_report is not None
    assert set(merged.evaluation_report.baselines) == {"majority", "frozen-features", "hog"}
    assert image_platform.predict_images(MERGE, [encoded(picture())])[0].label
    assert image_platform.verify(merged.version).damage is None


def test_linear_merge_adds_the_weighted_updates(
    image_platform: Platform, parents: list[str], tiny_resnet: Path
) -> None:
    image_platform.files.merge_adapters(parents, MERGE, weights=(0.25, 0.75))
    (_, one), (_, other) = (
        update(artifact_of(image_platform, ref), tiny_resnet) for ref in parents
    )
    _, both = update(artifact_of(image_platform, MERGE), tiny_resnet)
    assert both.keys() == one.keys()
    for name, added in both.items():
        assert torch.allclose(added, 0.25 * one[name] + 0.75 * other[name], atol=1e-6)


def test_peft_loads_the_merge(
    image_platform: Platform, parents: list[str], tiny_resnet: Path
) -> None:
    image_platform.files.merge_adapters(parents, MERGE)
    model, _ = update(artifact_of(image_platform, MERGE), tiny_resnet)
    steps = image_platform.engines.image.base.info.preprocessing
    pixels = to_tensor(prepare(decode(encoded(picture())), steps), steps)
    with torch.inference_mode():
        expected = model(pixel_values=pixels[None]).logits[0].softmax(-1).tolist()
    answer = image_platform.predict_images(MERGE, [encoded(picture())])[0]
    assert list((answer.probabilities or {}).values()) == pytest.approx(expected, abs=1e-4)


def test_merge_of_other_rows_is_not_evaluated(
    image_platform: Platform, parents: list[str], shapes: Path, tmp_path: Path
) -> None:
    other = draw_shapes(tmp_path / "fewer", 16)
    config = shapes_recipe(other, max_steps=2).model_copy(update={"name": "own/fewer"})
    image_platform.train(config)
    merged = image_platform.files.merge_adapters([parents[0], "own/fewer"], MERGE)
    assert merged.evaluation_report is None
    assert "was not evaluated" in merged.notes[0]
    assert merged.proof.rows == 8


def test_same_artifact_twice_is_refused(image_platform: Platform) -> None:
    with pytest.raises(RefusedError, match="the same artifact"):
        image_platform.files.merge_adapters([NAME, NAME], MERGE)

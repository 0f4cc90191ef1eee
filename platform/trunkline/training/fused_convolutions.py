"""Compute the convolutions of an image model in fewer passes while its adapter is trained on a CPU.

Batch normalization is folded into the convolution before it, since it uses the base's statistics.
In a narrow 1×1 convolution the update ``s·BA`` is added to the weight instead of to every position
of every picture; in a wide one ``s`` multiplies B instead of the outputs. Outputs and gradients are
the same but for rounding. The outputs are compared on the first pictures before the first step.
``benchmarks/bench_images.py`` measures trainings with and without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from trunkline.bases.image_model import folded_convolution
from trunkline.bases.linear import is_pointwise
from trunkline.tasks.batches import PIXELS

if TYPE_CHECKING:
    import torch
    from torch import nn

NARROW = 4.0
"""A layer is narrow if inputs · outputs ≤ NARROW · rank · (inputs + outputs)."""

_TRIED = 2
_TOLERANCE = 1e-4
"""Largest difference of an output, as a share of the largest output."""


@contextmanager
def fused_convolutions(
    model: Any, examples: Sequence[dict[str, Any]], *, bf16: bool
) -> Iterator[None]:
    """Inside the block, the model's convolutions are fused, unless that changes its outputs.

    Args:
        model: a PEFT model of an image base; its parameters stay the same.
        examples: of the training, of which the first ones are compared.
        bf16: whether steps are computed in bfloat16, where an update would be lost in the rounding
            of a weight; nothing is fused then.
    """
    with ExitStack() as stack:
        if model.device.type == "cpu" and not bf16:
            import torch

            pixels = torch.stack([one[PIXELS]() for one in examples[:_TRIED]])
            expected = _outputs(model, pixels)
            fusing = ExitStack()
            _fuse(model, fusing)
            stack.push(fusing)
            change = (_outputs(model, pixels) - expected).abs().max()
            if not bool(change <= _TOLERANCE * expected.abs().max().clamp(min=1e-6)):
                fusing.close()
        yield


def _outputs(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    import torch

    training = model.training
    model.eval()
    with torch.no_grad():
        outputs: torch.Tensor = model(pixel_values=pixels).logits
    model.train(training)
    return outputs


def _fuse(model: Any, undo: ExitStack) -> None:
    """Fuse in place; closing ``undo`` restores the modules."""
    from torch import nn

    for parent in model.modules():
        children = [child for _, child in parent.named_children()]
        for child, following in pairwise([*children, None]):
            convolution = getattr(child, "base_layer", child)
            if not isinstance(convolution, nn.Conv2d):
                continue
            adapted = _is_adapted(child)
            if convolution is not child and not adapted:
                continue
            folded = folded_convolution(convolution, following)
            if folded is not None:
                _replace(convolution, folded.weight, folded.bias, undo)
                _set_forward(following, nn.Identity().forward, undo)
            gain = None if folded is None else folded.gain
            if adapted:
                _set_forward(child, partial(_forward, child, gain), undo)


def _is_adapted(module: Any) -> bool:
    """Whether a module is PEFT's plain LoRA of a 1×1 convolution, without dropout."""
    from torch import nn

    names: Sequence[str] = getattr(module, "active_adapters", ())
    return (
        len(names) == 1
        and names[0] in getattr(module, "lora_A", {})
        and is_pointwise(module.base_layer)
        and isinstance(module.lora_dropout[names[0]], nn.Identity)
    )


def _replace(
    convolution: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor, undo: ExitStack
) -> None:
    from torch import nn

    parameters = convolution._parameters
    undo.callback(parameters.update, dict(parameters))
    parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    parameters["bias"] = nn.Parameter(bias, requires_grad=False)


def _set_forward(module: Any, forward: Any, undo: ExitStack) -> None:
    module.forward = forward
    undo.callback(delattr, module, "forward")


def _forward(module: Any, gain: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """A 1×1 convolution with its update; ``gain`` ``[out]`` scales its outputs."""
    from torch.nn.functional import conv2d

    (name,) = module.active_adapters
    base = module.base_layer
    down = module.lora_A[name].weight
    up = module.lora_B[name].weight * module.scaling[name]
    if gain is not None:
        up = up * gain[:, None, None, None]
    outputs, inputs = base.weight.shape[:2]
    if outputs * inputs <= NARROW * len(down) * (outputs + inputs):
        update = (up.flatten(1) @ down.flatten(1))[..., None, None]
        return conv2d(x, base.weight + update, base.bias, base.stride)
    result: torch.Tensor = base(x) + conv2d(conv2d(x, down, None, base.stride), up)
    return result

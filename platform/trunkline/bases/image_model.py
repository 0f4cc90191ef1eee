"""An image backbone with an optional head: the module that is trained, and that inference runs.

The backbone is an ``AutoModel`` of transformers. Its submodule has the name that transformers'
own classification models give it (``vit``, ``resnet``), so that adapters have the names of those.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput


class ImageModel(nn.Module):
    """A backbone, and a linear head without a bias on its pooled features.

    Args:
        backbone: a vision model of transformers.
        outputs: of the head; None: no head.
        seed: of the head.

    Attributes:
        base_model_prefix: the name of the backbone's submodule.
        features: width of the pooled features.
    """

    main_input_name = "pixel_values"

    def __init__(
        self, backbone: Any, features: int, outputs: int | None = None, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.base_model_prefix = backbone.base_model_prefix
        self.config = backbone.config
        self.features = features
        self.add_module(self.base_model_prefix, backbone)
        self.classifier = None
        if outputs is not None:
            generator = torch.Generator().manual_seed(seed)
            self.classifier = nn.Linear(features, outputs, bias=False)
            deviation = float(getattr(self.config, "initializer_range", 0.02))
            with torch.no_grad():
                self.classifier.weight.normal_(0.0, deviation, generator=generator)

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    def train(self, mode: bool = True) -> Self:
        """Set the mode; batch normalization always uses the base's statistics.

        In training mode it would normalize by the batch and change the statistics, which belong
        to the shared base and are not part of an adapter.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def pooled(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pooled features ``[batch, features]`` of pictures ``[batch, 3, height, width]``."""
        backbone = getattr(self, self.base_model_prefix)
        pixels = pixel_values.to(self.device, self.dtype).contiguous(
            memory_format=torch.channels_last
        )
        return pool(backbone(pixel_values=pixels))

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> ImageClassifierOutput:
        """The head's outputs ``[batch, outputs]``, as ``logits``.

        PEFT passes the arguments of text models too, with None; they have no effect.
        """
        assert self.classifier is not None
        return ImageClassifierOutput(logits=self.classifier(self.pooled(pixel_values)))


def fold_batch_norms(model: nn.Module) -> None:
    """Fold each batch normalization into the convolution before it, in place.

    A pair is a convolution and the normalization that is the next child of its parent, which is
    the order of computation in the networks that are known here; the caller compares the outputs.
    A convolution whose outputs are scaled has the factors ``[out]`` in its attribute ``gain``:
    what an adapter adds to its outputs is scaled by them too.

    Args:
        model: in eval mode, for inference.
    """
    for parent in list(model.modules()):
        for (_, convolution), (name, norm) in pairwise(list(parent.named_children())):
            folded = folded_convolution(convolution, norm)
            if folded is None:
                continue
            convolution.weight = nn.Parameter(folded.weight, requires_grad=False)
            convolution.bias = nn.Parameter(folded.bias, requires_grad=False)
            convolution.register_buffer("gain", folded.gain, persistent=False)
            setattr(parent, name, nn.Identity())


class Folded(NamedTuple):
    """A convolution with a normalization in it; ``gain`` ``[out]`` are factors of its outputs."""

    weight: torch.Tensor
    bias: torch.Tensor
    gain: torch.Tensor


def folded_convolution(convolution: nn.Module, norm: nn.Module | None) -> Folded | None:
    """A convolution with the batch normalization of its outputs; None if they are not such."""
    if not isinstance(convolution, nn.Conv2d) or type(norm) is not nn.BatchNorm2d:
        return None
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or len(mean) != convolution.out_channels:
        return None
    gain = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.detach()
    shift = -mean if convolution.bias is None else convolution.bias.detach() - mean
    shift = shift * gain
    if norm.bias is not None:
        shift = shift + norm.bias.detach()
    return Folded(convolution.weight.detach() * gain[:, None, None, None], shift, gain)


def pool(output: Any) -> torch.Tensor:
    """The pooled features ``[batch, features]`` in a backbone's output.

    They are the backbone's own (``pooler_output``), else the first token's, else the mean over
    all positions.
    """
    pooled = getattr(output, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)
    hidden: torch.Tensor = output.last_hidden_state
    return hidden[:, 0] if hidden.dim() == 3 else hidden.mean((2, 3))

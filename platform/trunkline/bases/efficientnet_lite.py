"""EfficientNet-Lite0: the architecture of the default image base, with timm's names of modules.

Tan & Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", table 1,
without squeeze-and-excitation and with ReLU6. timm calls it ``tf_efficientnet_lite0``; it is
computed here, so that the default base needs neither timm nor torchvision.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

FEATURES = 1280

_EPSILON = 1e-3
_STEM = 32
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Of each stage: blocks, kernel, stride of the first block, expansion, output channels."""


class SamePadded(nn.Conv2d):
    """A convolution that pads as TensorFlow does: more at the end, so that out = ⌈in / stride⌉.

    Where the padding is odd, the kernel gets a zero at its start and the picture is padded evenly,
    which gives the same and doesn't copy the picture.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = (
            max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            for size, kernel, stride in zip(
                x.shape[-2:], self.kernel_size, self.stride, strict=True
            )
        )
        weight = self.weight
        if height % 2 or width % 2:
            weight = nn.functional.pad(weight, (width % 2, 0, height % 2, 0))
        padding = ((height + 1) // 2, (width + 1) // 2)
        return nn.functional.conv2d(
            x, weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


class Block(nn.Module):
    """Expand by a 1×1 convolution, convolve each channel, project by a 1×1 convolution.

    Without an expansion the first step is left out, and timm calls the last one ``conv_pw``.
    """

    def __init__(self, inputs: int, kernel: int, stride: int, expansion: int, outputs: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.expands = expansion > 1
        self.adds = stride == 1 and inputs == outputs
        if self.expands:
            self.conv_pw = _pointwise(inputs, middle)
            self.bn1 = _norm(middle)
        depthwise = SamePadded(middle, middle, kernel, stride, groups=middle, bias=False)
        self.conv_dw = depthwise
        if self.expands:
            self.bn2 = _norm(middle)
            self.conv_pwl = _pointwise(middle, outputs)
            self.bn3 = _norm(outputs)
        else:
            self.bn1 = _norm(middle)
            self.conv_pw = _pointwise(middle, outputs)
            self.bn2 = _norm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.expands:
            y = _activated(self.bn1(self.conv_pw(x)))
            y = _activated(self.bn2(self.conv_dw(y)))
            y = self.bn3(self.conv_pwl(y))
        else:
            y = _activated(self.bn1(self.conv_dw(x)))
            y = self.bn2(self.conv_pw(y))
        return x + y if self.adds else y


class EfficientNetLite(nn.Module):
    """The network; with ``classes``, also the classifier that it was trained with."""

    def __init__(self, classes: int | None = None) -> None:
        super().__init__()
        self.conv_stem = SamePadded(3, _STEM, 3, 2, bias=False)
        self.bn1 = _norm(_STEM)
        stages: list[nn.Module] = []
        inputs = _STEM
        for blocks, kernel, stride, expansion, outputs in STAGES:
            stage: list[nn.Module] = []
            for index in range(blocks):
                stage.append(Block(inputs, kernel, 1 if index else stride, expansion, outputs))
                inputs = outputs
            stages.append(nn.Sequential(*stage))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = _pointwise(inputs, FEATURES)
        self.bn2 = _norm(FEATURES)
        self.act2 = nn.ReLU6()  # a module, so that its output can be explained
        self.classifier = None if classes is None else nn.Linear(FEATURES, classes)

    def hidden(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The last hidden state ``[batch, 1280, height / 32, width / 32]``."""
        x = _activated(self.bn1(self.conv_stem(pixel_values)))
        hidden: torch.Tensor = self.act2(self.bn2(self.conv_head(self.blocks(x))))
        return hidden

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` of pictures ``[batch, 3, height, width]``."""
        assert self.classifier is not None
        logits: torch.Tensor = self.classifier(self.hidden(pixel_values).mean((2, 3)))
        return logits


class LiteBackbone(nn.Module):
    """The network as a backbone, with the names of transformers' ``TimmWrapperModel``."""

    base_model_prefix = "timm_model"

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.timm_model = EfficientNetLite()

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        """Hidden state ``[batch, 1280, …]`` and pooled features ``[batch, 1280]``."""
        hidden = self.timm_model.hidden(pixel_values)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden, pooler_output=hidden.mean((2, 3))
        )


def _activated(x: torch.Tensor) -> torch.Tensor:
    """ReLU6, in place: nothing else reads what a convolution or a normalization gives."""
    return nn.functional.relu6(x, inplace=True)


def _pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON)

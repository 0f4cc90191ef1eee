"""Matrix products with weights in 8 bits (int8) or 4 bits (NF4)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trunkline.errors import BaseModelError

if TYPE_CHECKING:
    import torch

    from trunkline.bases.linear import Product

_MOST = 127  # the largest int8
_ZERO = 128  # the zero point of uint8
_BYTE = 256
_HALF = 0.5  # conversion to integers truncates

Affine = tuple["torch.Tensor", "torch.Tensor | None"]
"""Weight ``[columns, in]`` and bias ``[columns]`` of a block."""

Multiply = Callable[["torch.Tensor"], "torch.Tensor"]
"""``x [rows, in]`` uint8 with zero point 128 → ``[rows, out]`` float32."""

MakeMultiply = Callable[["torch.Tensor", "torch.Tensor"], Multiply]
"""Takes weights ``[out, in]`` int8 and the scale of each output."""


def in_int8(affine: Sequence[Affine]) -> Product:
    """Product with weights in 8 bits, inputs in two times 8 bits and sums in 32 bits.

    Weights have one scale per output. Inputs have one scale per row, so no row depends on another.
    Some inputs of a language model are hundreds of times larger than the others (Dettmers et al.
    2022, "LLM.int8()"), which 8 bits per row can't represent. Inputs are therefore rounded to 16
    bits, and the lower byte is multiplied as a second row. This costs little, because reading the
    weights dominates.
    """
    import torch

    dtype = affine[0][0].dtype
    nothing = torch.tensor(_ZERO * _BYTE + _ZERO + _HALF)  # either byte of it is _ZERO
    blocks = [(_weight_in_int8(weight), len(weight), bias) for weight, bias in affine]

    def product(x: torch.Tensor) -> list[torch.Tensor]:
        x = x.float()
        rows, inputs = x.shape
        largest = x.abs().amax(1, keepdim=True).clamp_(min=1e-12)
        scaled = x.div(largest)
        rounded = torch.add(nothing, scaled, alpha=_MOST * _BYTE, out=scaled).to(torch.int32)
        both = torch.empty((2, rows, inputs), dtype=torch.uint8)
        upper, lower = both.unbind()
        lower.copy_(rounded)  # torch's conversion from float to uint8 is not vectorized
        upper.copy_(rounded.bitwise_right_shift_(8))
        given = []
        for multiply, columns, bias in blocks:
            y, finer = multiply(both.view(-1, inputs)).view(2, rows, columns).unbind()
            y.add_(finer, alpha=1 / _BYTE).mul_(largest)
            if bias is not None:
                y.add_(bias)
            given.append(y.to(dtype))
        return given

    return product


def _weight_in_int8(weight: torch.Tensor) -> Multiply:
    import torch

    scale = weight.float().abs().amax(1).clamp_(min=1e-12).div_(_MOST)
    rounded = (weight.float() / scale[:, None]).round_().to(torch.int8)
    return integer_form()(rounded, scale / _MOST)


@functools.cache
def integer_form() -> MakeMultiply:
    """The fastest integer product that is exact on this CPU.

    Without VNNI instructions a CPU may add pairs in 16 bits, which silently saturates; and some
    builds of torch lack some forms.

    Raises:
        BaseModelError: there is none.
    """
    import torch

    x = torch.tensor([[255] * 64, [0] * 64, [_ZERO] * 64], dtype=torch.uint8)
    weight = torch.full((32, 64), _MOST, dtype=torch.int8)
    right = (x.float() - _ZERO) @ weight.float().T
    for make in (by_onednn, by_int_mm):
        try:
            if make(weight, torch.ones(32))(x).equal(right):
                return make
        except (AttributeError, RuntimeError):
            continue
    raise BaseModelError(
        "This CPU, or this build of torch, computes no exact products of 8-bit integers.",
        "Use --dtype fp32 or bf16.",
    )


def by_onednn(weight: torch.Tensor, scale: torch.Tensor) -> Multiply:
    """oneDNN's product on packed weights, which applies the scale in the same kernel."""
    import torch

    ops: Any = torch.ops.onednn
    packed = ops.qlinear_prepack(weight, None)
    zeros = torch.zeros(len(weight), dtype=torch.int64)

    def multiply(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = ops.qlinear_pointwise(
            x, 1.0, _ZERO, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return y

    return multiply


def by_int_mm(weight: torch.Tensor, scale: torch.Tensor) -> Multiply:
    """torch's int8 product, which packs the weights in every call."""
    import torch

    columns = weight.T.contiguous()

    def multiply(x: torch.Tensor) -> torch.Tensor:
        centred = x.to(torch.int16).sub_(_ZERO).to(torch.int8)
        return torch._int_mm(centred, columns).float().mul_(scale)

    return multiply


def in_nf4(affine: Sequence[Affine]) -> Product:
    """Product with weights in 4 bits, one scale per 64, by bitsandbytes; inputs unchanged."""
    import bitsandbytes

    packed = [
        (*bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", blocksize=64), bias)
        for weight, bias in affine
    ]

    def product(x: torch.Tensor) -> list[torch.Tensor]:
        return [
            bitsandbytes.matmul_4bit(x, weight.t(), quant_state=state, bias=bias)
            for weight, state, bias in packed
        ]

    return product

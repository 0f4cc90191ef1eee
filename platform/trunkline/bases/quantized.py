"""Products of the base whose weights are kept in 8 or 4 bits.

Owns: how numbers become integers and back, and which integer product a CPU computes rightly. Must
not know: which layers there are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trunkline.errors import BaseModelError

if TYPE_CHECKING:
    import torch

    from trunkline.bases.linear import Product

_MOST = 127  # of a signed number in 8 bits
_ZERO = 128  # of an unsigned one that stands for nothing
_BYTE = 256
_HALF = 0.5  # numbers are cut off, not rounded, when they become integers

Affine = tuple["torch.Tensor", "torch.Tensor | None"]
"""Weight ``[columns, in]`` and bias ``[columns]`` of a block."""

Multiply = Callable[["torch.Tensor"], "torch.Tensor"]
"""``x [rows, in]`` uint8, 128 of which stand for nothing → ``[rows, out]`` float32."""

MakeMultiply = Callable[["torch.Tensor", "torch.Tensor"], Multiply]
"""Of weights ``[out, in]`` int8 and the scale of each output."""


def in_int8(affine: Sequence[Affine]) -> Product:
    """Weights in 8 bits, inputs in twice 8 bits, sums in 32.

    One scale an output for the weights; one scale a row for the inputs, so that no row depends on
    its neighbors. A few inputs of a language model are hundreds of times the others (Dettmers et
    al. 2022, "LLM.int8()"), which 8 bits a row can't hold: inputs are rounded to 16, and the lower
    byte is multiplied as a second row. That costs little where reading the weights is what takes
    time.
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
        whole = torch.add(nothing, scaled, alpha=_MOST * _BYTE, out=scaled).to(torch.int32)
        both = torch.empty((2, rows, inputs), dtype=torch.uint8)
        upper, lower = both.unbind()
        lower.copy_(whole)  # torch takes floats to unsigned bytes without vectors
        upper.copy_(whole.bitwise_right_shift_(8))
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
    """The fastest product of integers whose sums are right on this CPU.

    Those of CPUs without instructions for it (VNNI) may add pairs in 16 bits, where large ones are
    cut off without a word; and not every build of torch has every form.

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
        "Take --dtype fp32 or bf16.",
    )


def by_onednn(weight: torch.Tensor, scale: torch.Tensor) -> Multiply:
    """Weights in the order oneDNN packs them in, scaled as the sums leave the registers."""
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
    """torch's product of int8, which packs the weights each time."""
    import torch

    columns = weight.T.contiguous()

    def multiply(x: torch.Tensor) -> torch.Tensor:
        centred = x.to(torch.int16).sub_(_ZERO).to(torch.int8)
        return torch._int_mm(centred, columns).float().mul_(scale)

    return multiply


def in_nf4(affine: Sequence[Affine]) -> Product:
    """Weights in 4 bits, 64 to a scale, by bitsandbytes; inputs as they are."""
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

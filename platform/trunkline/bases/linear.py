"""The base's linear layers as inference wants them: side by side, packed, perhaps quantized.

Owns: how a matrix product of the base is computed, and the place beside it where something may be
added. Must not know: adapters, tokens, batches.

Layers that read the same input (q, k and v; gate and up) are computed together. transformers' model
code stays as it is: each layer is replaced by a :class:`Member` that gives its columns. On a CPU,
float32 weights are kept in the order that oneDNN packs them in, which reads them once a step at the
speed of the memory; torch's own product goes through MKL, which takes more than twice as long here
for 16 rows (``benchmarks/bench_linear.py``).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from trunkline.bases.quantized import Affine, in_int8, in_nf4

if TYPE_CHECKING:
    import torch

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that read the same input where they stand in the same module."""

_PACKED_FOR = 16  # rows; oneDNN's layout for it is that of larger batches too
_HALF_PAGE = 2048  # bytes; rows a multiple of it apart fall into the same few places of the cache
_LINE = 64
_LARGE = 512  # outputs from which a layer is a block of its own
_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "64"}
"""Variables that oneDNN, and torch's way to it, read at their first product.

They keep what they made ready for each number of rows, half a megabyte and more a product, 1,024
times by default: 300 numbers of tokens take 0.6 GB, and it goes on from there; with these it stays
below 0.2 GB (``benchmarks/bench_memory.py``). 256 hold what up to 16 rows need; making one again
takes half a millisecond.
"""


class Product(Protocol):
    """``x [rows, in]`` → ``[rows, columns]`` of each block, bias included, new and contiguous.

    They may be written into. Columns after those of the layers mean nothing.
    """

    def __call__(self, x: torch.Tensor, /) -> Sequence[torch.Tensor]: ...


Addition = Callable[["torch.Tensor", "Sequence[torch.Tensor]"], None]
"""Told ``x [rows, in]`` and what the product gave; adds to that in place."""


class Block(NamedTuple):
    """Layers side by side in one tensor of a product.

    Attributes:
        layers: how many.
        columns: of the tensor: as many as the layers have outputs, or more for a single layer.
    """

    layers: int
    columns: int


class FusedLinear:
    """Linear layers of one input as one product.

    Attributes:
        names: of the layers within the model.
        inputs: features of ``x``.
        outputs: features of each layer, in the order of ``names``.
        blocks: what the product gives, in the order of the layers.
        addition: what is added to the product, if anything.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        inputs: int,
        outputs: tuple[int, ...],
        product: Product,
        blocks: Sequence[Block] | None = None,
    ) -> None:
        self.names = names
        self.inputs = inputs
        self.outputs = outputs
        self.product = product
        self.addition: Addition | None = None
        self._x: torch.Tensor | None = None
        self._parts: list[torch.Tensor] = []
        self.blocks = tuple(blocks or [Block(len(outputs), sum(outputs))])
        left = iter(outputs)
        self._cuts = [tuple(islice(left, block.layers)) for block in self.blocks]

    def part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """The columns of one layer; the product is computed when the first is asked for."""
        if x is not self._x:
            rows = x.reshape(-1, self.inputs)
            blocks = self.product(rows)
            if self.addition is not None:
                self.addition(rows, blocks)
            self._x = x
            self._parts = [
                part.view(*x.shape[:-1], -1)
                for block, cut in zip(blocks, self._cuts, strict=True)
                for part in block[:, : sum(cut)].split(cut, -1)
            ]
        part = self._parts[index]
        if index == len(self._parts) - 1:
            self._x, self._parts = None, []
        return part


@dataclass(frozen=True, slots=True)
class FusedLayers:
    """What a model's linear layers became; ``fused`` in the order of the model.

    Whoever sets additions holds ``turn`` until they are taken off again.
    """

    fused: tuple[FusedLinear, ...]
    turn: threading.Lock = field(default_factory=threading.Lock)

    def members(self) -> Iterator[tuple[str, FusedLinear, int]]:
        """Yield name, fused layer and index within it of every linear layer."""
        for fused in self.fused:
            for index, name in enumerate(fused.names):
                yield name, fused, index


Quantized = Literal["int8", "nf4"]
"""How the trunk's weights may be kept: 8 bits, or 4 (NormalFloat, Dettmers et al. 2023)."""


def fuse_linear_layers(model: Any, *, quantized: Quantized | None = None) -> FusedLayers:
    """Replace the linear layers of a causal LM, in place; its own weights of them are let go.

    Args:
        model: of transformers, in eval mode, not to be trained any more.
        quantized: how to keep the layers' weights; nf4 leaves the head as it is.
    """
    from torch import nn

    for variable, entries in _CACHES.items():
        os.environ.setdefault(variable, entries)

    class Member(nn.Module):
        """One layer of a fused product."""

        def __init__(self, fused: FusedLinear, index: int) -> None:
            super().__init__()
            self.fused, self.index = fused, index
            self.in_features, self.out_features = fused.inputs, fused.outputs[index]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fused.part(self.index, x)

    backbone = f"{model.base_model_prefix}."
    fused: list[FusedLinear] = []
    for parent_name, parent in list(model.named_modules()):
        for names in _groups(parent):
            layers = [getattr(parent, name) for name in names]
            inside = f"{parent_name}.".startswith(backbone)
            outputs = tuple(_outputs(layer) for layer in layers)
            way = quantized if inside or quantized == "int8" else None
            blocks, affine = _blocked(layers, outputs, apart=way != "int8")
            one = FusedLinear(
                tuple(f"{parent_name}.{name}" if parent_name else name for name in names),
                affine[0][0].shape[1],
                outputs,
                _product(affine, way),
                blocks,
            )
            for index, name in enumerate(names):
                setattr(parent, name, Member(one, index))
            if inside:
                fused.append(one)
    return FusedLayers(tuple(fused))


def _groups(parent: Any) -> Iterator[tuple[str, ...]]:
    """Names of the linear layers directly in a module, those of one input together."""
    linear = [name for name, child in parent.named_children() if _is_linear(child)]
    for names in SIBLINGS:
        if (
            all(name in linear for name in names)
            and len({getattr(parent, name).in_features for name in names}) == 1
        ):
            yield names
            linear = [name for name in linear if name not in names]
    for name in linear:
        yield (name,)


def _is_linear(module: Any) -> bool:
    return type(module).__name__ in ("Linear", "Conv1D")


def _outputs(layer: Any) -> int:
    """GPT-2's Conv1D is linear too, with its weight transposed."""
    return int(layer.weight.shape[1 if type(layer).__name__ == "Conv1D" else 0])


def _blocked(
    layers: Sequence[Any], outputs: Sequence[int], *, apart: bool = True
) -> tuple[list[Block], list[Affine]]:
    """Layers of one input in as few blocks as is good for whoever adds to them.

    On a CPU, a batch of thin products is added in parallel to a whole contiguous tensor, one by one
    to some of its columns, so large layers are apart. And thin products are added up to twice as
    fast where the rows do not lie a multiple of half a page apart, so layers that are alone, or of
    one size, get a few empty columns more if they would (``benchmarks/bench_linear.py``).

    Args:
        apart: whether large layers may be; 8-bit products have much to do for each block.
    """
    apart = len(layers) == 1 or (apart and min(outputs) >= _LARGE)
    groups = [[layer] for layer in layers] if apart else [layers]
    affine = [_joined(group) for group in groups]
    if layers[0].weight.device.type == "cpu" and apart and len(set(outputs)) == 1:
        affine = [_spread(*one) for one in affine]
    blocks = [
        Block(len(group), len(weight)) for group, (weight, _) in zip(groups, affine, strict=True)
    ]
    return blocks, affine


def _joined(layers: Sequence[Any]) -> Affine:
    """Weight and bias of layers one below another."""
    import torch

    weights = [
        layer.weight.detach().T if type(layer).__name__ == "Conv1D" else layer.weight.detach()
        for layer in layers
    ]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0].contiguous()
    if all(layer.bias is None for layer in layers):
        return weight, None
    biases = [
        layer.bias.detach() if layer.bias is not None else weight.new_zeros(_outputs(layer))
        for layer in layers
    ]
    return weight, torch.cat(biases)


def _spread(weight: torch.Tensor, bias: torch.Tensor | None) -> Affine:
    """The same with some empty columns more, if need be."""
    import torch

    if len(weight) * weight.element_size() % _HALF_PAGE:
        return weight, bias
    more = _LINE // weight.element_size()
    weight = torch.cat((weight, weight.new_zeros(more, weight.shape[1])))
    return weight, None if bias is None else torch.cat((bias, bias.new_zeros(more)))


def _product(affine: Sequence[Affine], quantized: Quantized | None) -> Product:
    import torch

    weight = affine[0][0]
    if quantized == "int8":
        return in_int8(affine)
    if quantized == "nf4":
        return in_nf4(affine)
    if (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
    ):
        return _packed(affine)

    def product(x: torch.Tensor) -> list[torch.Tensor]:
        return [torch.nn.functional.linear(x, weight, bias) for weight, bias in affine]

    return product


def _packed(affine: Sequence[Affine]) -> Product:
    """oneDNN's product on weights in oneDNN's own order."""
    import torch

    ops: Any = torch.ops.mkldnn
    packed = [(ops._reorder_linear_weight(weight, _PACKED_FOR), bias) for weight, bias in affine]

    def product(x: torch.Tensor) -> list[torch.Tensor]:
        return [ops._linear_pointwise(x, weight, bias, "none", [], "") for weight, bias in packed]

    return product

"""Fuse the base's linear layers for inference: packed or quantized weights, with additions.

Layers that read the same input (q, k and v; gate and up) are computed together. The model code of
transformers is unchanged: each layer is replaced by a module that returns its columns. A 1×1
convolution is a linear layer on every position of a picture, and is computed as one. On a CPU,
float32 weights are stored in oneDNN's packed order, so each step reads them once at memory speed.
torch's own product uses MKL, which takes more than twice as long for 16 rows
(``benchmarks/bench_linear.py``).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from trunkline.bases.quantized import Affine, in_int8, in_nf4

if TYPE_CHECKING:
    import torch

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that read the same input if they are in the same module."""

_PACKED_FOR = 16  # rows; oneDNN's layout for it is that of larger batches too
_HALF_PAGE = 2048  # bytes; rows a multiple of it apart fall into the same few places of the cache
_LINE = 64
_SMALL = 128  # half of the harmonic mean of inputs and outputs; larger weights are never merged
_LARGE = 512  # outputs from which a layer is a block of its own
CACHE_LIMITS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "64"}
"""Environment variables that bound the caches of oneDNN and of torch's interface to it.

They cache a prepared primitive for each number of rows, at least 0.5 MB per product, 1,024 entries
by default: 300 different numbers of tokens take 0.6 GB, and more follow. With these bounds the
caches stay below 0.2 GB (``benchmarks/bench_memory.py``). 256 entries are enough for up to 16 rows;
preparing one again takes 0.5 ms.
"""


class Product(Protocol):
    """``x [rows, in]`` → a new contiguous ``[rows, columns]`` for each block, bias included.

    The caller may write into the results. Columns beyond those of the layers are padding.
    """

    def __call__(self, x: torch.Tensor, /) -> Sequence[torch.Tensor]: ...


Quantized = Literal["int8", "nf4"]
"""How weights may be quantized: 8 bits, or 4 bits (NormalFloat, Dettmers et al. 2023)."""

Addition = Callable[["torch.Tensor", "Sequence[torch.Tensor]"], None]
"""Called with ``x [rows, in]`` and the results of the product; adds to them in place."""

Substitute = Callable[["torch.Tensor"], "Sequence[torch.Tensor] | None"]
"""Called with ``x [rows, in]``; returns the results, or None to compute them as usual."""


class Block(NamedTuple):
    """Layers whose outputs are adjacent columns of one result tensor.

    Attributes:
        layers: number of layers.
        columns: of the tensor: the outputs of the layers, plus padding.
    """

    layers: int
    columns: int


class FusedLinear:
    """Linear layers with the same input, computed as one product.

    Attributes:
        names: of the layers within the model.
        inputs: features of ``x``.
        outputs: features of each layer, in the order of ``names``.
        blocks: the results of the product, in the order of the layers.
        quantized: how the weights are stored, if not as they were loaded.
        addition: called on the results before they are split, if set.
        substitute: called first, if set; what it returns replaces product and addition.
        gain: factors ``[out]`` of the outputs, if a normalization was folded into the weight.
        plain: weight ``[columns, inputs]`` and bias of a small 1×1 convolution in float32, to which
            updates of single pictures can be added.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        inputs: int,
        outputs: tuple[int, ...],
        product: Product,
        blocks: Sequence[Block] | None = None,
        quantized: Quantized | None = None,
    ) -> None:
        self.names = names
        self.inputs = inputs
        self.outputs = outputs
        self.product = product
        self.quantized = quantized
        self.addition: Addition | None = None
        self.substitute: Substitute | None = None
        self.gain: torch.Tensor | None = None
        self.plain: Affine | None = None
        self._x: torch.Tensor | None = None
        self._parts: list[torch.Tensor] = []
        self.blocks = tuple(blocks or [Block(len(outputs), sum(outputs))])
        left = iter(outputs)
        self._cuts = [tuple(islice(left, block.layers)) for block in self.blocks]

    def part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """The output of one layer; the product is computed when the first layer is called."""
        if x is not self._x:
            rows = x.reshape(-1, self.inputs)
            blocks = None if self.substitute is None else self.substitute(rows)
            if blocks is None:
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
    """The fused linear layers of a model, in the order of the model.

    A caller that sets additions holds the lock ``turn`` until it has removed them.

    Attributes:
        fused: those of the backbone.
        others: the head.
        users: the engines that compute with them; the weights are released for one that is alone.
    """

    fused: tuple[FusedLinear, ...]
    others: tuple[FusedLinear, ...] = ()
    turn: threading.Lock = field(default_factory=threading.Lock)
    users: weakref.WeakSet[object] = field(default_factory=weakref.WeakSet)

    def members(self) -> Iterator[tuple[str, FusedLinear, int]]:
        """Yield name, fused layer and index within it of every linear layer."""
        for fused in self.fused:
            for index, name in enumerate(fused.names):
                yield name, fused, index

    def release(self) -> None:
        """Free the weights; the model can compute nothing until :meth:`restore`."""
        for fused in (*self.fused, *self.others):
            fused.product = _released

    def restore(self, model: Any) -> None:
        """Take the weights of a model that was loaded as the first one was, and not fused."""
        for fused in (*self.fused, *self.others):
            layers = [model.get_submodule(name) for name in fused.names]
            _, affine = _blocked(layers, fused.outputs, apart=fused.quantized != "int8")
            fused.product = _product(affine, fused.quantized)


def _released(x: torch.Tensor) -> Sequence[torch.Tensor]:
    raise RuntimeError("The weights of the base are not in memory.")


def fuse_linear_layers(model: Any, *, quantized: Quantized | None = None) -> FusedLayers:
    """Replace the linear layers of a model in place; their original weights are released.

    Args:
        model: of transformers, in eval mode; it can't be trained afterwards.
        quantized: how to store the layers' weights; nf4 does not change the head.
    """
    from torch import nn

    for variable, entries in CACHE_LIMITS.items():
        os.environ.setdefault(variable, entries)

    class Member(nn.Module):
        """One layer of a fused product."""

        def __init__(self, fused: FusedLinear, index: int) -> None:
            super().__init__()
            self.fused, self.index = fused, index
            self.in_features, self.out_features = fused.inputs, fused.outputs[index]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fused.part(self.index, x)

    class PointwiseMember(Member):
        """A 1×1 convolution, computed as the linear layer that it is."""

        def __init__(self, fused: FusedLinear, index: int, stride: tuple[int, int]) -> None:
            super().__init__(fused, index)
            self.stride = stride

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """``[batch, in, height, width]`` → ``[batch, out, …]``, strided."""
            if self.stride != (1, 1):
                x = x[..., :: self.stride[0], :: self.stride[1]]
            return self.fused.part(self.index, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    backbone = f"{model.base_model_prefix}."
    fused: list[FusedLinear] = []
    others: list[FusedLinear] = []
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
                way,
            )
            if is_pointwise(layers[0]):
                one.gain = getattr(layers[0], "gain", None)
                if way is None and _is_small(*affine[0][0].shape):
                    one.plain = affine[0]
            for index, name in enumerate(names):
                member = (
                    PointwiseMember(one, index, tuple(layers[index].stride))
                    if is_pointwise(layers[index])
                    else Member(one, index)
                )
                setattr(parent, name, member)
            (fused if inside else others).append(one)
    return FusedLayers(tuple(fused), tuple(others))


def _groups(parent: Any) -> Iterator[tuple[str, ...]]:
    """Names of the linear layers directly in a module, those of one input together."""
    linear = [name for name, child in parent.named_children() if is_linear(child)]
    for names in SIBLINGS:
        if (
            all(name in linear for name in names)
            and len({getattr(parent, name).in_features for name in names}) == 1
        ):
            yield names
            linear = [name for name in linear if name not in names]
    for name in linear:
        yield (name,)


def is_linear(module: Any) -> bool:
    """Whether a module is computed as a linear layer."""
    return type(module).__name__ in ("Linear", "Conv1D") or is_pointwise(module)


def is_pointwise(module: Any) -> bool:
    """Whether a module is a 1×1 convolution that mixes all channels and pads nothing."""
    return (
        type(module).__name__ == "Conv2d"
        and tuple(module.kernel_size) == (1, 1)
        and module.groups == 1
        and module.padding in ((0, 0), 0, "valid", "same")
    )


def _is_small(columns: int, inputs: int) -> bool:
    """Whether merging an update into the weight may take less time than adding it to outputs."""
    return columns * inputs <= _SMALL * (columns + inputs)


def _outputs(layer: Any) -> int:
    """GPT-2's Conv1D is linear too, with its weight transposed."""
    return int(layer.weight.shape[1 if type(layer).__name__ == "Conv1D" else 0])


def _blocked(
    layers: Sequence[Any], outputs: Sequence[int], *, apart: bool = True
) -> tuple[list[Block], list[Affine]]:
    """Arrange layers with the same input in blocks, so that LoRA updates can be added quickly.

    On a CPU, torch adds a batch of low-rank products in parallel to a contiguous tensor, but one by
    one to some of its columns, so large layers get blocks of their own. The addition is up to twice
    as fast if rows are not a multiple of half a page apart, so blocks of a single layer or of equal
    sizes get a few padding columns if necessary (``benchmarks/bench_linear.py``).

    Args:
        apart: whether large layers may be separate; 8-bit products have a high cost per block.
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
    """The concatenated weights and biases of layers."""
    import torch

    weights = [
        layer.weight.detach().T
        if type(layer).__name__ == "Conv1D"
        else layer.weight.detach().flatten(1)
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
    """Add padding columns if the rows would be a multiple of half a page apart."""
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

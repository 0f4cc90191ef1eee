"""Paged LoRA buffers: the device memory for adapters of one base, in pages of a fixed rank.

A *page* contains :data:`PAGE_RANK` ranks of one adapter in all layers. An adapter of rank 16 takes
two pages; one of rank 2 leaves six ranks of its page empty. Page 0 is empty: the bare base. A
:class:`Routing` maps tokens to pages, so switching to another adapter on the device only changes an
index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from trunkline.lora.kernels import Blocks, PagedLoraLayer
from trunkline.lora.routing import PAGE_RANK, Pages, Routing

if TYPE_CHECKING:
    import torch

    from trunkline.bases.linear import FusedLayers

TURN_SECONDS = 600.0
"""How long a step waits for the previous one."""

Matrices = Mapping[str, tuple["torch.Tensor", "torch.Tensor"]]
"""Module → ``A [rank, in]`` and ``B [out, rank]``."""

Gains = Mapping[str, "torch.Tensor"]
"""Module → the factor ``[out]`` on its outputs without their bias: DoRA's."""

_CHUNK = 512
"""Rows of the identity that are multiplied at once to read a layer's weights."""


class LoraSlots:
    """The pages of one base.

    The system commits memory when a page is first written.

    Args:
        fused_layers: linear layers of the base.
        pages: how many there are, without the empty one.
    """

    def __init__(
        self, fused_layers: FusedLayers, pages: int, *, dtype: torch.dtype, device: Any
    ) -> None:
        import torch

        row_indices: dict[Any, torch.Tensor] = {}
        self.pages = pages
        self._fused_layers = fused_layers
        self._routing = Routing()
        self.layers = [
            PagedLoraLayer(fused, pages + 1, dtype, device, row_indices)
            for fused in fused_layers.fused
        ]
        self._by_name = {
            name: (layer, index)
            for layer in self.layers
            for index, name in enumerate(layer.fused.names)
        }
        self._additions = [partial(self._add, layer) for layer in self.layers]
        self._device = torch.device(device)
        self._indices: dict[tuple[int, int], torch.Tensor] = {}
        self._norms: dict[str, torch.Tensor] = {}
        self._biases: dict[str, torch.Tensor] = {}

    @contextmanager
    def route(self, routing: Routing) -> Iterator[None]:
        """Add the adapters of ``routing`` to what the base computes inside the block.

        One thread at a time; another one waits. Blocks don't nest.

        Raises:
            RuntimeError: the previous block did not end within ten minutes, as if nested.
        """
        if not self._fused_layers.turn.acquire(timeout=TURN_SECONDS):
            raise RuntimeError("Routings don't nest: one step is computed at a time.")
        try:
            self._routing = routing
            if routing.rows and self._device.type != "cpu":
                routing.indices["pages"] = self._static_indices(routing)
            if not routing.empty:
                for layer, addition in zip(self.layers, self._additions, strict=True):
                    layer.fused.addition = addition
                    if routing.images and layer.merges:
                        layer.fused.substitute = partial(layer.merged, routing)
            yield
        finally:
            for layer in self.layers:
                layer.fused.addition = layer.fused.substitute = None
            self._fused_layers.turn.release()

    def _static_indices(self, routing: Routing) -> torch.Tensor:
        """Copy the rows' pages to a fixed address for this shape, which a captured graph reads."""
        import torch

        pages = torch.tensor(routing.padded, dtype=torch.int64)
        shape = (len(routing.rows), routing.depth)
        if shape not in self._indices:
            self._indices[shape] = torch.empty(shape, dtype=torch.int64, device=self._device)
        return self._indices[shape].copy_(pages)

    @staticmethod
    def page_bytes(fused_layers: FusedLayers, item: int) -> int:
        """Size of one page in bytes, with ``item`` bytes for each number."""
        numbers = sum(
            fused.inputs * max(2, len(fused.outputs))
            + sum(block.layers * block.columns for block in fused.blocks)
            for fused in fused_layers.fused
        )
        return numbers * PAGE_RANK * item

    def gains(
        self, matrices: Matrices, scaling: float, magnitudes: Gains, dtype: torch.dtype
    ) -> dict[str, torch.Tensor]:
        """DoRA's factors ``m / ‖W + s·BA‖``, with the norms over the inputs of each output.

        Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5. The layers'
        weights are read through their products, so that packed and quantized layers have theirs:
        ``‖W + s·BA‖² = ‖W‖² + 2s·Σ(WAᵀ∘B) + s²·Σ((AAᵀ)Bᵀ∘Bᵀ)``.

        Args:
            magnitudes: ``m`` by module.
            dtype: of the base's inputs.
        """
        import torch

        gains = {}
        for name, magnitude in magnitudes.items():
            down, up = matrices[name]
            moved = self._product(name, down.to(self._device, dtype)).cpu()
            squares = (
                self._squared_norms(name, dtype)
                + 2 * scaling * (moved.T * up).sum(1)
                + scaling**2 * ((up @ (down @ down.T)) * up).sum(1)
            )
            norms = squares.clamp(min=torch.finfo(torch.float32).tiny).sqrt()
            gains[name] = magnitude / norms
        return gains

    def _squared_norms(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """``‖W‖²`` of each output ``[out]`` of a layer, computed once."""
        import torch

        if name not in self._norms:
            inputs = self._by_name[name][0].fused.inputs
            rows = torch.eye(inputs, dtype=dtype, device=self._device).split(_CHUNK)
            sums = [self._product(name, part).square().sum(0) for part in rows]
            self._norms[name] = torch.stack(sums).sum(0).cpu()
        return self._norms[name]

    def _product(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """``W x`` of one layer, without its bias, ``[rows, out]`` float32."""
        layer, index = self._by_name[name]
        bias = self._bias(name, x.dtype).to(x.device)
        with self._fused_layers.turn:
            return layer.member_outputs(index, x) - bias

    def _bias(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The bias ``[out]`` of one layer, computed once; zero if it has none."""
        import torch

        if name not in self._biases:
            layer, index = self._by_name[name]
            zero = torch.zeros(1, layer.fused.inputs, dtype=dtype, device=self._device)
            with self._fused_layers.turn:
                self._biases[name] = layer.member_outputs(index, zero)[0].cpu()
        return self._biases[name]

    def write(
        self, pages: Pages, matrices: Matrices, scaling: float, gains: Gains | None = None
    ) -> None:
        """Write an adapter into pages, with B multiplied by ``scaling`` and by DoRA's gains.

        No step may use these pages meanwhile.
        """
        gains = gains or {}
        touched = {id(self._by_name[name][0]) for name in matrices}
        for layer in self.layers:
            for page in pages:
                layer.clear(page, used=id(layer) in touched)
        for name, (down, up) in matrices.items():
            layer, index = self._by_name[name]
            factor: Any = scaling
            if layer.fused.gain is not None:
                factor = scaling * layer.fused.gain[:, None].to(up.device)
            if name in gains:
                layer.set_gain(pages[0], index, gains[name], self._biases[name])
                factor = scaling * gains[name][:, None]
            for part, page in enumerate(pages):
                ranks = slice(part * PAGE_RANK, (part + 1) * PAGE_RANK)
                layer.write(page, index, down[ranks], up[:, ranks] * factor)

    def _add(self, layer: PagedLoraLayer, x: torch.Tensor, blocks: Blocks) -> None:
        routing = self._routing.at(len(x))
        if layer.gains:
            layer.scale(routing, blocks)
        if not layer.used.isdisjoint(routing.pages):
            layer.add(routing, x, blocks)

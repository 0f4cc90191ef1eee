"""Adapters stacked beside the base's layers.

Owns: the stacked tensors of all layers, writing an adapter into them, and whose turn it is.
Must not know: files, digests, which adapters deserve a place.

A *page* holds :data:`PAGE_RANK` ranks of one adapter in all layers; an adapter of rank 16 takes
two, one of rank 2 leaves six empty. Page 0 is empty: the bare base. Which token uses which pages is
told by a :class:`Routing`, so making a resident adapter answer is writing an index.
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

Matrices = Mapping[str, tuple["torch.Tensor", "torch.Tensor"]]
"""Module → ``A [rank, in]`` and ``B [out, rank]``."""


class LoraSlots:
    """The pages of one trunk.

    Memory is taken from the system as pages are first written, not before.
    """

    def __init__(
        self, fused_layers: FusedLayers, pages: int, *, dtype: torch.dtype, device: Any
    ) -> None:
        import torch

        lines: dict[Any, torch.Tensor] = {}
        self.pages = pages
        self._fused_layers = fused_layers
        self._routing = Routing()
        self._layers = [
            PagedLoraLayer(fused, pages + 1, dtype, device, lines) for fused in fused_layers.fused
        ]
        self._by_name = {
            name: (layer, index)
            for layer in self._layers
            for index, name in enumerate(layer.fused.names)
        }
        self._additions = [partial(self._add, layer) for layer in self._layers]
        self._device = torch.device(device)
        self._indices: dict[tuple[int, int], torch.Tensor] = {}

    @contextmanager
    def route(self, routing: Routing) -> Iterator[None]:
        """Send what the trunk computes through pages, until the block ends.

        One thread at a time; another waits. Blocks don't nest.

        Raises:
            RuntimeError: nothing ended for ten minutes, as when blocks are nested.
        """
        if not self._fused_layers.turn.acquire(timeout=TURN_SECONDS):
            raise RuntimeError("Routings don't nest: one step is computed at a time.")
        try:
            self._routing = routing
            if routing.rows and self._device.type != "cpu":
                routing.indices["pages"] = self._static(routing)
            if not routing.empty:
                for layer, addition in zip(self._layers, self._additions, strict=True):
                    layer.fused.addition = addition
            yield
        finally:
            for layer in self._layers:
                layer.fused.addition = None
            self._fused_layers.turn.release()

    def _static(self, routing: Routing) -> torch.Tensor:
        """The rows' pages, at one address for all routings of one shape: a captured graph reads
        them there."""
        import torch

        pages = torch.tensor(routing.padded, dtype=torch.int64)
        shape = (len(routing.rows), routing.depth)
        if shape not in self._indices:
            self._indices[shape] = torch.empty(shape, dtype=torch.int64, device=self._device)
        return self._indices[shape].copy_(pages)

    @staticmethod
    def page_bytes(fused_layers: FusedLayers, item: int) -> int:
        """Bytes of one page with ``item`` bytes a number."""
        numbers = sum(
            fused.inputs * max(2, len(fused.outputs))
            + sum(block.layers * block.columns for block in fused.blocks)
            for fused in fused_layers.fused
        )
        return numbers * PAGE_RANK * item

    def write(self, pages: Pages, matrices: Matrices, scaling: float) -> None:
        """Put an adapter into pages, ``scaling`` times B.

        No step may be routed through these pages meanwhile.
        """
        touched = {id(self._by_name[name][0]) for name in matrices}
        for layer in self._layers:
            for page in pages:
                layer.clear(page, used=id(layer) in touched)
        for name, (down, up) in matrices.items():
            layer, index = self._by_name[name]
            for place, page in enumerate(pages):
                ranks = slice(place * PAGE_RANK, (place + 1) * PAGE_RANK)
                layer.write(page, index, down[ranks], up[:, ranks] * scaling)

    def _add(self, layer: PagedLoraLayer, x: torch.Tensor, blocks: Blocks) -> None:
        if not layer.used.isdisjoint(self._routing.pages):
            layer.add(self._routing, x, blocks)

"""Adapters stacked beside the base's layers, and the arithmetic of a batch that uses several.

Owns: the stacked tensors, and ``y += B (A x)`` with another A and B for each token. Must not know:
files, digests, which adapters deserve a place.

A *page* holds :data:`PAGE_RANK` ranks of one adapter in all layers; an adapter of rank 16 takes
two, one of rank 2 leaves six empty. Page 0 is empty: the bare base. Which token uses which pages is
told by a :class:`Routing`, so making a resident adapter answer is writing an index.

Two forms of one product (the figures are in ``benchmarks/bench_bank.py``):

- *rows*, for single tokens (decode): both products are weighted sums of rows of a table, which
  torch's ``embedding_bag`` reads in place, adapter by adapter; nothing is gathered or copied. The
  idea of a kernel that reads each row's own adapter is Punica's (Chen et al. 2023).
- *spans*, for many tokens of one adapter (prefill): two plain matrix products a span (SGMV of the
  same paper).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from trunkline.base_model.trunk import Fused, Trunk

PAGE_RANK = 8
Pages = tuple[int, ...]
Matrices = Mapping[str, tuple["torch.Tensor", "torch.Tensor"]]
"""Module → ``A [rank, in]`` and ``B [out, rank]``."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens ``start`` to ``stop`` go through these pages; ``stop`` None: to the end."""

    start: int
    stop: int | None
    pages: Pages


class Routing:
    """Which pages each token of a step goes through.

    Args:
        rows: pages of the first tokens, one entry a token; tokens after those and outside of
            every span are the bare base's.
        spans: of tokens that come after them.
    """

    def __init__(self, rows: Sequence[Pages] = (), spans: Sequence[Span] = ()) -> None:
        self.rows = tuple(rows)
        self.spans = tuple(span for span in spans if span.pages)
        self.depth = max((len(pages) for pages in self.rows), default=0)
        if self.depth == 0:
            self.rows = ()
        used = {page for pages in self.rows for page in pages}
        self.pages = used | {page for span in self.spans for page in span.pages}
        self.indices: dict[Any, torch.Tensor] = {}

    @property
    def empty(self) -> bool:
        """Whether every token is the bare base's."""
        return not self.pages


class Stack:
    """The pages of one trunk.

    Memory is taken from the system as pages are first written, not before.
    """

    def __init__(self, trunk: Trunk, pages: int, *, dtype: torch.dtype, device: Any) -> None:
        self.pages = pages
        self.routing = Routing()
        self._layers = [_Layer(fused, pages + 1, dtype, device) for fused in trunk.fused]
        self._by_name = {
            name: (layer, index)
            for layer in self._layers
            for index, name in enumerate(layer.fused.names)
        }
        for layer in self._layers:
            layer.fused.addition = partial(self._add, layer)

    @staticmethod
    def page_bytes(trunk: Trunk, item: int) -> int:
        """Bytes of one page with ``item`` bytes a number."""
        numbers = sum(
            fused.inputs * len(fused.outputs) + sum(fused.outputs) for fused in trunk.fused
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

    def _add(self, layer: _Layer, x: torch.Tensor, y: torch.Tensor) -> None:
        routing = self.routing
        if routing.pages and not layer.used.isdisjoint(routing.pages):
            layer.add(routing, x, y)


class _Layer:
    """The pages beside one fused product.

    ``down`` is ``[pages, in, members · rank]``; ``up`` of a member is ``[pages, rank, out]``. All
    ``up`` lie in one table with rows of ``width``, the greatest width that divides every member's
    outputs, so that one call sums rows for all members.
    """

    def __init__(self, fused: Fused, pages: int, dtype: torch.dtype, device: Any) -> None:
        import torch

        self.fused = fused
        self.used: set[int] = set()
        members = len(fused.outputs)
        self.width = math.gcd(*fused.outputs)
        self.down = torch.empty(
            pages, fused.inputs, members * PAGE_RANK, dtype=dtype, device=device
        )
        table = torch.empty(pages * PAGE_RANK * sum(fused.outputs), dtype=dtype, device=device)
        self.table = table.view(-1, self.width)
        self.up: list[torch.Tensor] = []
        self.firsts: list[int] = []
        at = 0
        for outputs in fused.outputs:
            size = pages * PAGE_RANK * outputs
            self.up.append(table[at : at + size].view(pages, PAGE_RANK, outputs))
            self.firsts.append(at // self.width)
            at += size
        self.pieces = [outputs // self.width for outputs in fused.outputs]
        member_of = [index for index, pieces in enumerate(self.pieces) for _ in range(pieces)]
        self.member_of = torch.tensor(member_of, device=device)
        self.even = len(set(self.pieces)) == 1 and self.pieces[0] == 1
        self.bounds = [sum(fused.outputs[:index]) for index in range(members + 1)]
        self.clear(0, used=False)

    def clear(self, page: int, *, used: bool) -> None:
        """Empty a page; ``used`` says whether something will be written into it."""
        self.down[page].zero_()
        for up in self.up:
            up[page].zero_()
        (self.used.add if used else self.used.discard)(page)

    def write(self, page: int, member: int, down: torch.Tensor, up: torch.Tensor) -> None:
        """``down [rank, in]``, ``up [out, rank]``, rank at most :data:`PAGE_RANK`."""
        rank = down.shape[0]
        first = member * PAGE_RANK
        self.down[page, :, first : first + rank].copy_(down.T)
        self.up[member][page, :rank].copy_(up.T)

    def add(self, routing: Routing, x: torch.Tensor, y: torch.Tensor) -> None:
        """``y [tokens, out] += B (A x)``, each token by its own pages."""
        if routing.rows:
            rows = len(routing.rows)
            if x.device.type == "cpu":
                self._add_rows(routing, x[:rows], y[:rows])
            else:
                self._add_gathered(routing, x[:rows], y[:rows])
        for span in routing.spans:
            self._add_span(span, x[span.start : span.stop], y[span.start : span.stop])

    def _add_span(self, span: Span, x: torch.Tensor, y: torch.Tensor) -> None:
        for page in span.pages:
            if page not in self.used:
                continue
            hidden = x.to(self.down.dtype) @ self.down[page]
            for member, up in enumerate(self.up):
                ranks = hidden[:, member * PAGE_RANK : (member + 1) * PAGE_RANK]
                columns = y[:, self.bounds[member] : self.bounds[member + 1]]
                if y.dtype == up.dtype:
                    columns.addmm_(ranks, up[page])
                else:
                    columns.add_(ranks @ up[page])

    def _add_rows(self, routing: Routing, x: torch.Tensor, y: torch.Tensor) -> None:
        from torch.nn.functional import embedding_bag

        depth, rows = routing.depth, len(routing.rows)
        x = x.to(self.down.dtype)
        weights = x if depth == 1 else x.repeat_interleave(depth, 0)
        hidden = embedding_bag(
            self._down_rows(routing),
            self.down.view(-1, self.down.shape[2]),
            mode="sum",
            per_sample_weights=weights,
        )
        members = len(self.fused.outputs)
        parts = hidden.view(rows, depth, members, PAGE_RANK)
        if depth > 1 or not self.even:
            parts = parts.transpose(1, 2)
        if not self.even:
            parts = parts.index_select(1, self.member_of)
        update = embedding_bag(
            self._up_rows(routing),
            self.table,
            mode="sum",
            per_sample_weights=parts.reshape(-1, depth * PAGE_RANK),
        )
        y.add_(update.view(rows, -1).to(y.dtype))

    def _down_rows(self, routing: Routing) -> torch.Tensor:
        """Rows of ``down`` to sum, ``[rows · depth, in]``; the same for all layers of one width."""
        import torch

        key = self.fused.inputs
        if (found := routing.indices.get(key)) is None:
            pages = self._pages(routing).view(-1, 1)
            found = (pages * key + torch.arange(key, device=pages.device)).to(torch.int32)
            routing.indices[key] = found
        return found

    def _up_rows(self, routing: Routing) -> torch.Tensor:
        """Rows of the table to sum, ``[rows · pieces, depth · rank]``."""
        import torch

        key = (tuple(self.pieces), tuple(self.firsts))
        if (found := routing.indices.get(key)) is None:
            pages = self._pages(routing)
            ranks = torch.arange(PAGE_RANK, device=pages.device)
            line = (pages[:, :, None] * PAGE_RANK + ranks).view(len(routing.rows), -1)
            listed = [
                line * pieces + (first + piece)
                for first, pieces in zip(self.firsts, self.pieces, strict=True)
                for piece in range(pieces)
            ]
            found = torch.stack(listed, 1).view(-1, line.shape[1]).to(torch.int32)
            routing.indices[key] = found
        return found

    def _add_gathered(self, routing: Routing, x: torch.Tensor, y: torch.Tensor) -> None:
        """The rows' form where gathering is cheap: two batched products a page."""
        import torch

        pages = self._pages(routing)
        for depth in range(routing.depth):
            chosen = pages[:, depth]
            hidden = torch.bmm(x.unsqueeze(1).to(self.down.dtype), self.down[chosen])
            for member, up in enumerate(self.up):
                ranks = hidden[..., member * PAGE_RANK : (member + 1) * PAGE_RANK]
                part = torch.bmm(ranks, up[chosen]).squeeze(1)
                y[:, self.bounds[member] : self.bounds[member + 1]].add_(part)

    def _pages(self, routing: Routing) -> torch.Tensor:
        """``[rows, depth]``, padded with the empty page."""
        import torch

        if (found := routing.indices.get("pages")) is None:
            padded = [
                (*pages, *(0,) * (routing.depth - len(pages))) for pages in routing.rows
            ]
            found = torch.tensor(padded, dtype=torch.int64, device=self.down.device)
            routing.indices["pages"] = found
        return found

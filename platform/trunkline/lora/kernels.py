"""LoRA kernels: ``y += B (A x)`` for batches in which each token has its own adapter.

There are three forms (``benchmarks/bench_pool.py`` measures rows and spans, and
``benchmarks/bench_images.py`` the third):

- *rows*, for single tokens (decode): both products are weighted sums of rows of a table, which
  torch's ``embedding_bag`` reads in place; nothing is gathered or copied. Reading each row's own
  adapter in one kernel is the idea of Punica (Chen et al. 2023, "Punica: Multi-Tenant LoRA
  Serving").
- *spans*, for many tokens of one adapter (prefill): two matrix products for each span, or two
  batched ones for spans of one length (SGMV in the same paper). Many short spans are computed as
  rows.
- *merged weights*, for pictures with many positions in a narrow layer: ``(W + B A) x`` with a
  weight for each picture, where that takes less time than adding to every position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from trunkline.lora.routing import PAGE_RANK, Routing

if TYPE_CHECKING:
    import torch

    from trunkline.bases.linear import FusedLinear

SHORT = 32
"""Several spans of unequal length that are shorter than this on average are computed as rows."""

LONG = 64
"""A span of at least this many tokens uses oneDNN, which has more overhead than MKL."""

LONGEST_BATCHED = 200
"""Spans of one length are batched up to this many tokens each; longer ones are separate."""

MERGED_FROM = 3.0
"""Positions of a picture for each half harmonic mean of a layer's inputs and outputs, and for each
page, from which weights are merged."""

RowSums = tuple["torch.Tensor", "torch.Tensor"]
"""Indices of table rows to sum, and the offset of each sum: input and offsets of embedding_bag."""

Scale = tuple["torch.Tensor", "torch.Tensor"]
"""Factor and shift ``[columns]`` of a block's outputs."""

Blocks = Sequence["torch.Tensor"]
"""Outputs of a fused linear layer, ``[tokens, columns]`` each (``bases/linear.py``)."""


class PagedLoraLayer:
    """The pages of one fused linear layer, whose members (such as q, k and v) share their input.

    ``down`` is ``[pages, in, members · rank]``. With a single member, ``across`` contains the same
    as ``[pages, rank, in]``, which products of few columns read twice as fast. ``up`` of a block is
    ``[pages, members · rank, columns]``, zero outside each member's own rows and columns, so that
    all members are one product. All ``up`` are parts of one table with rows of ``width``, the
    greatest width that divides every member's columns, so one call sums the nonzero parts of all
    members. ``gains`` has an entry for the first page of each DoRA adapter; the base's outputs are
    scaled by it before B (A x) is added.
    """

    def __init__(
        self,
        fused: FusedLinear,
        pages: int,
        dtype: torch.dtype,
        device: Any,
        row_indices: dict[Any, torch.Tensor],
    ) -> None:
        import torch

        self.fused = fused
        self.row_indices = row_indices
        self.used: set[int] = set()
        self.gains: dict[int, list[Scale]] = {}
        members = len(fused.outputs)
        self.columns = [block.columns for block in fused.blocks]
        self.ranks = [block.layers * PAGE_RANK for block in fused.blocks]
        self.width = math.gcd(
            *self.columns, *(fused.outputs if len(self.columns) < members else ())
        )
        self.down = torch.empty(
            pages, fused.inputs, members * PAGE_RANK, dtype=dtype, device=device
        )
        self.down_rows = self.down.view(-1, members * PAGE_RANK)
        self.across = (
            torch.empty(pages, PAGE_RANK, fused.inputs, dtype=dtype, device=device)
            if members == 1
            else None
        )
        self.packs = (
            self.down.device.type == "cpu"
            and dtype == torch.float32
            and torch.backends.mkldnn.is_available()
        )
        sizes = [pages * block.layers * PAGE_RANK * block.columns for block in fused.blocks]
        table = torch.empty(sum(sizes), dtype=dtype, device=device)
        self.table = table.view(-1, self.width)
        self.up = [
            part.view(pages, -1, columns)
            for part, columns in zip(table.split(sizes), self.columns, strict=True)
        ]
        self.members = list(_members(fused))
        self.pieces = [member.columns // self.width for member in self.members]
        member_of = [index for index, pieces in enumerate(self.pieces) for _ in range(pieces)]
        self.member_of = torch.tensor(member_of, device=device)
        self.even = len(set(self.pieces)) == 1 and self.pieces[0] == 1
        self.clear(0, used=False)

    def clear(self, page: int, *, used: bool) -> None:
        """Clear a page; ``used`` says whether it will be written."""
        self.down[page].zero_()
        if self.across is not None:
            self.across[page].zero_()
        for up in self.up:
            up[page].zero_()
        (self.used.add if used else self.used.discard)(page)
        self.gains.pop(page, None)

    def write(self, page: int, member: int, down: torch.Tensor, up: torch.Tensor) -> None:
        """Write a member's ``down [rank, in]`` and ``up [out, rank]``; rank ≤ :data:`PAGE_RANK`."""
        rank = down.shape[0]
        first = member * PAGE_RANK
        self.down[page, :, first : first + rank].copy_(down.T)
        if self.across is not None:
            self.across[page, :rank].copy_(down)
        block, row, column, _ = self.members[member]
        self.up[block][page, row : row + rank, column : column + len(up)].copy_(up.T)

    def member_outputs(self, member: int, x: torch.Tensor) -> torch.Tensor:
        """The base's outputs ``[rows, out]`` of one member for ``x [rows, in]``, in float32."""
        block, _, column, _ = self.members[member]
        outputs = self.fused.product(x)[block][:, column : column + self.fused.outputs[member]]
        return outputs.float()

    def set_gain(self, page: int, member: int, gain: torch.Tensor, bias: torch.Tensor) -> None:
        """Scale the outputs of a member, without their bias, for tokens whose first page this is.

        Args:
            gain, bias: ``[out]``.
        """
        import torch

        block, _, column, _ = self.members[member]
        device = self.down.device
        scales = self.gains.get(page) or [
            (torch.ones(columns, device=device), torch.zeros(columns, device=device))
            for columns in self.columns
        ]
        factor, shift = scales[block]
        own = slice(column, column + len(gain))
        factor[own] = gain.to(device)
        shift[own] = (1 - factor[own]) * bias.to(device)
        self.gains[page] = scales

    def scale(self, routing: Routing, blocks: Blocks) -> None:
        """Compute ``y = g y + (1 - g) bias`` for the tokens of DoRA adapters."""
        import torch

        for page in routing.pages:
            if (scales := self.gains.get(page)) is None:
                continue
            for tokens in _tokens_of(routing, page, self.down.device):
                for (factor, shift), y in zip(scales, blocks, strict=True):
                    y[tokens] = torch.addcmul(shift, y[tokens].float(), factor).to(y.dtype)

    def add(self, routing: Routing, x: torch.Tensor, blocks: Blocks) -> None:
        """Compute ``y [tokens, out] += B (A x)`` with each token's own pages; ``blocks`` are y."""
        if rows := len(routing.rows):
            add = self.add_rows if x.device.type == "cpu" else self.add_gathered
            if rows == len(x):
                add(routing, x, blocks)
                return
            add(routing, x[:rows], _part(blocks, slice(rows)))
        if routing.even and not (self.packs and routing.even >= LONGEST_BATCHED):
            self.add_even(routing, *_spanned(routing, x, blocks))
            return
        if routing.mean_span < SHORT and x.device.type == "cpu":
            self.add_rows(routing.token_by_token, *_spanned(routing, x, blocks))
            return
        for span in routing.spans:
            tokens = slice(span.start, span.stop)
            for page in span.pages:
                if page in self.used:
                    self._add_page(page, x[tokens], _part(blocks, tokens))

    @property
    def merges(self) -> bool:
        """Whether the layer's weight can be merged with those of adapters."""
        return self.packs and self.fused.plain is not None

    def merged(self, routing: Routing, x: torch.Tensor) -> Blocks | None:
        """``(W + B A) x`` with a weight for each picture; None where adding takes less time.

        Args:
            routing: of a batch of pictures.
            x: ``[pictures · positions, in]``.
        """
        import torch

        assert self.fused.plain is not None
        assert self.across is not None
        images, depth = routing.images, routing.depth
        weight, bias = self.fused.plain
        columns, inputs = weight.shape
        positions = len(x) // len(images)
        if positions * depth * (columns + inputs) < MERGED_FROM * columns * inputs:
            return None
        if x.dtype != weight.dtype or self.used.isdisjoint(routing.pages):
            return None
        if len(set(images)) == 1:
            images = images[:1]
        if (index := routing.indices.get("merged")) is None:
            padded = [page for pages in images for page in (*pages, *(0,) * (depth - len(pages)))]
            index = routing.indices["merged"] = torch.tensor(padded, device=x.device)
        count, ranks = len(images), depth * PAGE_RANK
        down = self.across.index_select(0, index).view(count, ranks, inputs)
        up = self.up[0].index_select(0, index).view(count, ranks, columns)
        weights = torch.baddbmm(
            weight.T.expand(count, inputs, columns), down.transpose(1, 2), up
        )  # [pictures, in, columns]
        x = x.view(count, -1, inputs)
        if bias is None:
            return [torch.bmm(x, weights).view(-1, columns)]
        return [torch.baddbmm(bias.expand(count, 1, columns), x, weights).view(-1, columns)]

    def _uses_onednn(self, x: torch.Tensor) -> bool:
        """Whether the tokens are many, and of the type that oneDNN multiplies."""
        return self.packs and len(x) >= LONG and x.dtype == self.down.dtype

    def _hidden(self, page: int, x: torch.Tensor) -> torch.Tensor:
        """``A x`` of one page, ``[tokens, members · rank]``."""
        import torch

        if self._uses_onednn(x):
            ops: Any = torch.ops.mkldnn
            hidden: torch.Tensor = ops._linear_pointwise(x, self.down[page].T, None, "none", [], "")
            return hidden
        if self.across is not None:
            return torch.nn.functional.linear(x.to(self.across.dtype), self.across[page])
        return x.to(self.down.dtype) @ self.down[page]

    def _add_page(self, page: int, x: torch.Tensor, blocks: Blocks) -> None:
        hidden = self._hidden(page, x)
        for ranks, up, y in zip(hidden.split(self.ranks, -1), self.up, blocks, strict=True):
            if y.dtype == up.dtype:
                y.addmm_(ranks, up[page])
            else:
                y.add_(ranks @ up[page])

    def add_even(self, routing: Routing, x: torch.Tensor, blocks: Blocks) -> None:
        """Add spans of one length by batched products, ``[spans, tokens, …]``."""
        import torch

        count, tokens = len(routing.spans), routing.even
        x = x.view(count, tokens, -1).to(self.down.dtype)
        pick = self._page_selector(routing)
        if self.across is not None:
            hidden = torch.bmm(pick(self.across), x.transpose(1, 2)).transpose(1, 2)
        else:
            hidden = torch.bmm(x, pick(self.down))
        for ranks, up, block in zip(hidden.split(self.ranks, -1), self.up, blocks, strict=True):
            y = block.view(count, tokens, -1)
            if y.dtype == up.dtype:
                y.baddbmm_(ranks, pick(up))
            else:
                y.add_(torch.bmm(ranks, pick(up)))

    def _page_selector(self, routing: Routing) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function that selects the spans' pages from a table; a view if evenly spaced."""
        import torch

        if (selector := routing.indices.get("spans")) is None:
            pages = [span.pages[0] for span in routing.spans]
            steps = {other - one for one, other in pairwise(pages)}
            if len(steps) == 1 and (step := steps.pop()) > 0:
                selector = itemgetter(slice(pages[0], pages[-1] + 1, step))
            else:
                index = torch.tensor(pages, dtype=torch.int64, device=self.down.device)
                selector = partial(torch.index_select, dim=0, index=index)
            routing.indices["spans"] = selector
        return selector

    def add_rows(self, routing: Routing, x: torch.Tensor, blocks: Blocks) -> None:
        """Add each row's adapter as weighted sums of table rows; ``x [rows, in]``."""
        depth, rows = routing.depth, len(routing.rows)
        if x.dtype != self.down.dtype:
            x = x.to(self.down.dtype)
        weights = x if depth == 1 else x.repeat_interleave(depth, 0)
        hidden = _sum_rows(self.down_rows, self._down_rows(routing), weights)
        members = len(self.fused.outputs)
        parts = hidden.view(rows, depth, members, PAGE_RANK)
        if depth > 1 or not self.even:
            parts = parts.transpose(1, 2)
        if not self.even:
            parts = parts.index_select(1, self.member_of)
        sums = _sum_rows(self.table, self._up_rows(routing), parts).view(rows, -1)
        for y, added in zip(blocks, sums.split(self.columns, 1), strict=True):
            y.add_(added)

    def index_rows(self, routing: Routing) -> None:
        """Compute the index tensors of a routing's rows, which later steps reuse."""
        self._down_rows(routing)
        self._up_rows(routing)

    def _down_rows(self, routing: Routing) -> RowSums:
        """Rows of ``down`` to sum, ``[rows · depth, in]``; shared by all layers of one width."""
        import torch

        key = self.fused.inputs
        if (sums := routing.indices.get(key)) is None:
            if (indices := self.row_indices.get(key)) is None:
                every = torch.arange(len(self.down) * key, dtype=torch.int32)
                indices = self.row_indices[key] = every.view(-1, key)
            sums = _as_row_sums(indices.index_select(0, self._pages(routing).view(-1)))
            routing.indices[key] = sums
        return sums

    def _up_rows(self, routing: Routing) -> RowSums:
        """Rows of the table to sum, ``[rows · pieces, depth · rank]``."""
        key = (self.fused.blocks, tuple(self.pieces))
        if (sums := routing.indices.get(key)) is None:
            if (indices := self.row_indices.get(key)) is None:
                indices = self.row_indices[key] = self._up_indices()
            rows, depth = len(routing.rows), routing.depth
            chosen = indices.index_select(0, self._pages(routing).view(-1))
            if depth > 1:
                chosen = chosen.view(rows, depth, -1, PAGE_RANK).transpose(1, 2)
            sums = _as_row_sums(chosen.reshape(-1, depth * PAGE_RANK))
            routing.indices[key] = sums
        return sums

    def _up_indices(self) -> torch.Tensor:
        """Table rows of each page, ``[pages, pieces, rank]`` int32."""
        import torch

        every = torch.arange(len(self.table), dtype=torch.int32).split(
            [up.numel() // self.width for up in self.up]
        )
        indices = [
            each.view(*up.shape[:2], -1) for each, up in zip(every, self.up, strict=True)
        ]  # [pages, members · rank, columns / width]
        members = []
        for block, row, column, columns in self.members:
            pieces = slice(column // self.width, (column + columns) // self.width)
            members.append(indices[block][:, row : row + PAGE_RANK, pieces].transpose(1, 2))
        return torch.cat(members, 1)

    def add_gathered(self, routing: Routing, x: torch.Tensor, blocks: Blocks) -> None:
        """Add each row's adapter by gathering its pages, where that is cheap: ``x [rows, in]``."""
        import torch

        pages = self._pages(routing)
        for depth in range(routing.depth):
            chosen = pages[:, depth]
            hidden = torch.bmm(x.unsqueeze(1).to(self.down.dtype), self.down[chosen])
            for ranks, up, y in zip(hidden.split(self.ranks, -1), self.up, blocks, strict=True):
                y.add_(torch.bmm(ranks, up[chosen]).squeeze(1))

    def _pages(self, routing: Routing) -> torch.Tensor:
        """``[rows, depth]``, padded with the empty page."""
        import torch

        if (pages := routing.indices.get("pages")) is None:
            pages = torch.tensor(routing.padded, dtype=torch.int64, device=self.down.device)
            routing.indices["pages"] = pages
        return pages


def _tokens_of(routing: Routing, page: int, device: torch.device) -> list[Any]:
    """The tokens whose first page this is: an index tensor for rows, and slices for spans."""
    import torch

    key = ("tokens", page)
    if key not in routing.indices:
        rows = [index for index, pages in enumerate(routing.rows) if pages[:1] == (page,)]
        tokens: list[Any] = [torch.tensor(rows, device=device)] if rows else []
        tokens += [slice(span.start, span.stop) for span in routing.spans if span.pages[0] == page]
        routing.indices[key] = tokens
    kept: list[Any] = routing.indices[key]
    return kept


class _Member(NamedTuple):
    """Position of a member's B in a page of its block: its first row and column."""

    block: int
    row: int
    column: int
    columns: int


def _members(fused: FusedLinear) -> Iterator[_Member]:
    outputs = iter(fused.outputs)
    for index, block in enumerate(fused.blocks):
        column = 0
        for member, own in enumerate(islice(outputs, block.layers)):
            columns = own if block.layers > 1 else block.columns
            yield _Member(index, member * PAGE_RANK, column, columns)
            column += columns


def _spanned(routing: Routing, x: torch.Tensor, blocks: Blocks) -> tuple[torch.Tensor, Blocks]:
    """Slice from the first span's start to the last one's end, unless that is everything."""
    start, stop = routing.spans[0].start, routing.spans[-1].stop
    if start == 0 and stop == len(x):
        return x, blocks
    tokens = slice(start, stop)
    return x[tokens], _part(blocks, tokens)


def _part(blocks: Blocks, tokens: slice) -> list[torch.Tensor]:
    return [block[tokens] for block in blocks]


def _as_row_sums(rows: torch.Tensor) -> RowSums:
    """Convert ``[sums, rows]`` int32 to the form of ``embedding_bag``."""
    import torch

    starts = torch.arange(0, rows.numel(), rows.shape[1], dtype=torch.int32)
    return rows.reshape(-1), starts


def _sum_rows(table: torch.Tensor, rows: RowSums, weights: torch.Tensor) -> torch.Tensor:
    """Sum weighted rows of the table, ``[sums, width]``."""
    import torch

    return torch.embedding_bag(table, rows[0], rows[1], False, 0, False, weights.reshape(-1))[0]

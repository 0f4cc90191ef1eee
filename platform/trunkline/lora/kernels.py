"""The pages beside one product of the base, and the arithmetic of a batch that uses several.

Owns: ``y += B (A x)`` with another A and B for each token. Must not know: files, digests, which
adapters deserve a place.

Two forms of one product (the figures are in ``benchmarks/bench_pool.py``):

- *rows*, for single tokens (decode): both products are weighted sums of rows of a table, which
  torch's ``embedding_bag`` reads in place, adapter by adapter; nothing is gathered or copied. The
  idea of a kernel that reads each row's own adapter is Punica's (Chen et al. 2023).
- *spans*, for many tokens of one adapter (prefill): two matrix products a span, or two batched
  ones for spans of one length (SGMV of the same paper). Many short ones are rows.
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
"""Several spans of unequal lengths, shorter than this on average, are computed as rows are."""

LONG = 64
"""A span of so many tokens is multiplied by oneDNN, which has more to set up than MKL."""

LONGEST_BATCHED = 200
"""Spans of one length are batched up to so many tokens each; longer ones go one by one."""

Lines = tuple["torch.Tensor", "torch.Tensor"]
"""Rows of a table to sum, one after the other, and where each sum begins."""

Blocks = Sequence["torch.Tensor"]
"""What a product gave, ``[tokens, columns]`` each (``bases/trunk.py``)."""


class PagedLoraLayer:
    """The pages beside one fused product.

    ``down`` is ``[pages, in, members · rank]``; where there is one member only, ``across`` is the
    same as ``[pages, rank, in]``, which products of so few columns read twice as fast. ``up`` of a
    block is ``[pages, members · rank, columns]``, each member's in its own rows and columns and
    nothing elsewhere, so that all of them are one product. All ``up`` lie in one table with rows of
    ``width``, the greatest width that divides every member's columns, so that one call sums what
    is not empty of them, for all members.
    """

    def __init__(
        self,
        fused: FusedLinear,
        pages: int,
        dtype: torch.dtype,
        device: Any,
        lines: dict[Any, torch.Tensor],
    ) -> None:
        import torch

        self.fused = fused
        self.lines = lines
        self.used: set[int] = set()
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
        """Empty a page; ``used`` says whether something will be written into it."""
        self.down[page].zero_()
        if self.across is not None:
            self.across[page].zero_()
        for up in self.up:
            up[page].zero_()
        (self.used.add if used else self.used.discard)(page)

    def write(self, page: int, member: int, down: torch.Tensor, up: torch.Tensor) -> None:
        """``down [rank, in]``, ``up [out, rank]``, rank at most :data:`PAGE_RANK`."""
        rank = down.shape[0]
        first = member * PAGE_RANK
        self.down[page, :, first : first + rank].copy_(down.T)
        if self.across is not None:
            self.across[page, :rank].copy_(down)
        block, row, column, _ = self.members[member]
        self.up[block][page, row : row + rank, column : column + len(up)].copy_(up.T)

    def add(self, routing: Routing, x: torch.Tensor, blocks: Blocks) -> None:
        """``y [tokens, out] += B (A x)``, each token by its own pages; y is in blocks."""
        if rows := len(routing.rows):
            add = self._add_rows if x.device.type == "cpu" else self._add_gathered
            if rows == len(x):
                add(routing, x, blocks)
                return
            add(routing, x[:rows], _part(blocks, slice(rows)))
        if routing.even and not (self.packs and routing.even >= LONGEST_BATCHED):
            self._add_even(routing, *_spanned(routing, x, blocks))
            return
        if routing.mean_span < SHORT and x.device.type == "cpu":
            self._add_rows(routing.token_by_token, *_spanned(routing, x, blocks))
            return
        for span in routing.spans:
            tokens = slice(span.start, span.stop)
            for page in span.pages:
                if page in self.used:
                    self._add_page(page, x[tokens], _part(blocks, tokens))

    def _by_onednn(self, x: torch.Tensor) -> bool:
        """Whether these tokens are many, and of the one type that is multiplied there."""
        return self.packs and len(x) >= LONG and x.dtype == self.down.dtype

    def _hidden(self, page: int, x: torch.Tensor) -> torch.Tensor:
        """``A x`` of one page, ``[tokens, members · rank]``."""
        import torch

        if self._by_onednn(x):
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

    def _add_even(self, routing: Routing, x: torch.Tensor, blocks: Blocks) -> None:
        """Spans of one length: batched products, ``[spans, tokens, …]``."""
        import torch

        count, tokens = len(routing.spans), routing.even
        x = x.view(count, tokens, -1).to(self.down.dtype)
        pick = self._picked(routing)
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

    def _picked(self, routing: Routing) -> Callable[[torch.Tensor], torch.Tensor]:
        """How the spans' pages are taken out of a table: in place where they lie evenly."""
        import torch

        if (found := routing.indices.get("spans")) is None:
            pages = [span.pages[0] for span in routing.spans]
            steps = {other - one for one, other in pairwise(pages)}
            if len(steps) == 1 and (step := steps.pop()) > 0:
                found = itemgetter(slice(pages[0], pages[-1] + 1, step))
            else:
                chosen = torch.tensor(pages, dtype=torch.int64, device=self.down.device)
                found = partial(torch.index_select, dim=0, index=chosen)
            routing.indices["spans"] = found
        return found

    def _add_rows(self, routing: Routing, x: torch.Tensor, blocks: Blocks) -> None:
        depth, rows = routing.depth, len(routing.rows)
        if x.dtype != self.down.dtype:
            x = x.to(self.down.dtype)
        weights = x if depth == 1 else x.repeat_interleave(depth, 0)
        hidden = _sums(self.down_rows, self._down_rows(routing), weights)
        members = len(self.fused.outputs)
        parts = hidden.view(rows, depth, members, PAGE_RANK)
        if depth > 1 or not self.even:
            parts = parts.transpose(1, 2)
        if not self.even:
            parts = parts.index_select(1, self.member_of)
        sums = _sums(self.table, self._up_rows(routing), parts).view(rows, -1)
        for y, added in zip(blocks, sums.split(self.columns, 1), strict=True):
            y.add_(added)

    def _down_rows(self, routing: Routing) -> Lines:
        """Rows of ``down`` to sum, ``[rows · depth, in]``; the same for all layers of one width."""
        import torch

        key = self.fused.inputs
        if (found := routing.indices.get(key)) is None:
            if (lines := self.lines.get(key)) is None:
                every = torch.arange(len(self.down) * key, dtype=torch.int32)
                lines = self.lines[key] = every.view(-1, key)
            found = _sums_of(lines.index_select(0, self._pages(routing).view(-1)))
            routing.indices[key] = found
        return found

    def _up_rows(self, routing: Routing) -> Lines:
        """Rows of the table to sum, ``[rows · pieces, depth · rank]``."""
        key = (self.fused.blocks, tuple(self.pieces))
        if (found := routing.indices.get(key)) is None:
            if (lines := self.lines.get(key)) is None:
                lines = self.lines[key] = self._up_lines()
            rows, depth = len(routing.rows), routing.depth
            chosen = lines.index_select(0, self._pages(routing).view(-1))
            if depth > 1:
                chosen = chosen.view(rows, depth, -1, PAGE_RANK).transpose(1, 2)
            found = _sums_of(chosen.reshape(-1, depth * PAGE_RANK))
            routing.indices[key] = found
        return found

    def _up_lines(self) -> torch.Tensor:
        """Rows of the table that each page has, ``[pages, pieces, rank]`` int32."""
        import torch

        every = torch.arange(len(self.table), dtype=torch.int32).split(
            [up.numel() // self.width for up in self.up]
        )
        lines = [
            each.view(*up.shape[:2], -1) for each, up in zip(every, self.up, strict=True)
        ]  # [pages, members · rank, columns / width]
        listed = []
        for block, row, column, columns in self.members:
            pieces = slice(column // self.width, (column + columns) // self.width)
            listed.append(lines[block][:, row : row + PAGE_RANK, pieces].transpose(1, 2))
        return torch.cat(listed, 1)

    def _add_gathered(self, routing: Routing, x: torch.Tensor, blocks: Blocks) -> None:
        """The rows' form where gathering is cheap: two batched products a page."""
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

        if (found := routing.indices.get("pages")) is None:
            found = torch.tensor(routing.padded, dtype=torch.int64, device=self.down.device)
            routing.indices["pages"] = found
        return found


class _Member(NamedTuple):
    """Where a member's B stands in a page of its block: from which row and column on."""

    block: int
    row: int
    column: int
    columns: int


def _members(fused: FusedLinear) -> Iterator[_Member]:
    outputs = iter(fused.outputs)
    for index, block in enumerate(fused.blocks):
        column = 0
        for place, own in enumerate(islice(outputs, block.layers)):
            columns = own if block.layers > 1 else block.columns
            yield _Member(index, place * PAGE_RANK, column, columns)
            column += columns


def _spanned(routing: Routing, x: torch.Tensor, blocks: Blocks) -> tuple[torch.Tensor, Blocks]:
    """From the first span's start to the last one's end; not cut where that is everything."""
    start, stop = routing.spans[0].start, routing.spans[-1].stop
    if start == 0 and stop == len(x):
        return x, blocks
    tokens = slice(start, stop)
    return x[tokens], _part(blocks, tokens)


def _part(blocks: Blocks, tokens: slice) -> list[torch.Tensor]:
    return [block[tokens] for block in blocks]


def _sums_of(rows: torch.Tensor) -> Lines:
    """``[sums, rows]`` int32 as ``embedding_bag`` wants it."""
    import torch

    starts = torch.arange(0, rows.numel(), rows.shape[1], dtype=torch.int32)
    return rows.reshape(-1), starts


def _sums(table: torch.Tensor, lines: Lines, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sums of the table's rows, ``[sums, width]``."""
    import torch

    return torch.embedding_bag(table, lines[0], lines[1], False, 0, False, weights.reshape(-1))[0]

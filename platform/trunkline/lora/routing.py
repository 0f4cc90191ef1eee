"""Routing: which adapter pages each token or picture of a step uses; free of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

PAGE_RANK = 8
"""Ranks in one page; an adapter of rank 16 takes two pages."""

Pages = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens ``start`` to ``stop`` use these pages; ``stop`` None: to the end."""

    start: int
    stop: int | None
    pages: Pages


class Routing:
    """Which pages each token of a step uses.

    Args:
        rows: pages of the first tokens, one entry for each token. Later tokens outside every span
            use the bare base.
        spans: of the tokens after the rows, in order.

    Attributes:
        depth: maximum number of pages of a row.
        images: pages of each picture of a batch of pictures, else empty.
        even: tokens of each span if all spans have one length, one page and no gap between them;
            else 0.
        indices: cache of index tensors, filled by the kernels.
    """

    def __init__(self, rows: Sequence[Pages] = (), spans: Sequence[Span] = ()) -> None:
        self.rows = tuple(rows)
        self.spans = tuple(span for span in spans if span.pages)
        self.depth = max((len(pages) for pages in self.rows), default=0)
        if self.depth == 0:
            self.rows = ()
        self.even = _even(self.spans)
        self.images: tuple[Pages, ...] = ()
        used = {page for pages in self.rows for page in pages}
        self.pages = used | {page for span in self.spans for page in span.pages}
        self.indices: dict[Any, Any] = {}

    @cached_property
    def mean_span(self) -> float:
        """Mean tokens of a span; infinite for a single span, or one that reaches the end."""
        if len(self.spans) < 2 or any(span.stop is None for span in self.spans):
            return math.inf
        return sum(span.stop - span.start for span in self.spans if span.stop) / len(self.spans)

    @cached_property
    def token_by_token(self) -> Routing:
        """The tokens from the first span's start to the last one's end, each as a row."""
        rows: list[Pages] = []
        for span in self.spans:
            assert span.stop is not None
            gap = span.start - self.spans[0].start - len(rows)
            rows += [()] * gap + [span.pages] * (span.stop - span.start)
        return Routing(rows)

    def at(self, rows: int) -> Routing:
        """The routing of a layer that computes ``rows`` rows: one for each token."""
        return self

    @property
    def padded(self) -> list[Pages]:
        """Pages of the rows, padded with the empty page to equal length."""
        return [(*pages, *(0,) * (self.depth - len(pages))) for pages in self.rows]

    @property
    def empty(self) -> bool:
        """Whether every token uses the bare base."""
        return not self.pages


def _even(spans: Sequence[Span]) -> int:
    """Tokens of each span if several of one length and page follow without gaps; else 0."""
    lengths = {span.stop - span.start for span in spans if span.stop is not None}
    if len(spans) < 2 or len(lengths) > 1 or any(span.stop is None for span in spans):
        return 0
    adjacent = all(one.stop == other.start for one, other in pairwise(spans))
    return lengths.pop() if adjacent and all(len(span.pages) == 1 for span in spans) else 0


class ImageRouting(Routing):
    """Which pages each picture of a batch uses.

    A layer computes one row for each position of a picture, and layers have different numbers of
    positions; :meth:`at` gives the routing of a layer's rows.

    Args:
        images: pages of each picture, in the order of the batch.
    """

    def __init__(self, images: Sequence[Pages]) -> None:
        self._images = tuple(images)
        self._by_rows: dict[int, Routing] = {}
        super().__init__(spans=self._spans(1))
        self.images = self._images
        self.depth = max(map(len, self._images), default=0)

    def at(self, rows: int) -> Routing:
        positions, rest = divmod(rows, len(self._images))
        if rest:
            raise RuntimeError(f"{rows} rows can't be those of {len(self._images)} pictures.")
        if positions not in self._by_rows:
            self._by_rows[positions] = Routing(spans=self._spans(positions))
        return self._by_rows[positions]

    def _spans(self, positions: int) -> list[Span]:
        """Spans of the rows; pictures with the same adapter that follow each other share one."""
        spans: list[Span] = []
        for index, pages in enumerate(self._images):
            start, stop = index * positions, (index + 1) * positions
            if spans and spans[-1].pages == pages:
                start = spans.pop().start
            spans.append(Span(start, stop, pages))
        return spans

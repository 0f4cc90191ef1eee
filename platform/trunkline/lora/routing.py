"""Which adapter each token of a step goes through.

Owns: the words for it, free of tensors. Must not know: what is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

PAGE_RANK = 8
"""Ranks of one page; an adapter of rank 16 takes two pages."""

Pages = tuple[int, ...]


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
        spans: of tokens that come after them, in their order.
    """

    def __init__(self, rows: Sequence[Pages] = (), spans: Sequence[Span] = ()) -> None:
        self.rows = tuple(rows)
        self.spans = tuple(span for span in spans if span.pages)
        self.depth = max((len(pages) for pages in self.rows), default=0)
        if self.depth == 0:
            self.rows = ()
        self.even = _even(self.spans)
        used = {page for pages in self.rows for page in pages}
        self.pages = used | {page for span in self.spans for page in span.pages}
        self.indices: dict[Any, Any] = {}

    @cached_property
    def mean_span(self) -> float:
        """Tokens of a span on average; without end for one alone, or one that goes to the end."""
        if len(self.spans) < 2 or any(span.stop is None for span in self.spans):
            return math.inf
        return sum(span.stop - span.start for span in self.spans if span.stop) / len(self.spans)

    @cached_property
    def token_by_token(self) -> Routing:
        """Each token from the first span's start to the last one's end as a row of its own."""
        rows: list[Pages] = []
        for span in self.spans:
            assert span.stop is not None
            gap = span.start - self.spans[0].start - len(rows)
            rows += [()] * gap + [span.pages] * (span.stop - span.start)
        return Routing(rows)

    @property
    def padded(self) -> list[Pages]:
        """Pages of the rows, each entry as long as the longest: the empty page fills up."""
        return [(*pages, *(0,) * (self.depth - len(pages))) for pages in self.rows]

    @property
    def empty(self) -> bool:
        """Whether every token is the bare base's."""
        return not self.pages


def _even(spans: Sequence[Span]) -> int:
    """Tokens of each span, if there are several of one length, one after the other, of one page
    each; else 0."""
    lengths = {span.stop - span.start for span in spans if span.stop is not None}
    if len(spans) < 2 or len(lengths) > 1 or any(span.stop is None for span in spans):
        return 0
    together = all(one.stop == other.start for one, other in pairwise(spans))
    return lengths.pop() if together and all(len(span.pages) == 1 for span in spans) else 0

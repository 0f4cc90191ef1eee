"""The next token of each sequence, out of the logits of a batch.

Owns: temperature, top-k, top-p, the random stream of a sequence, log probabilities. Must not know:
requests, tokenizers, batches in time.

What a row draws depends on its own logits, way, seed and step, and on nothing else in the batch:
the stream is counted, not advanced; tokens stand in one order (likeliest first, of equals the
smaller id); and sums run in an order that the vocabulary's size fixes. Drawing is by inverse
transform: the first token in that order at which the running sum exceeds ``uniform * total``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from trunkline.errors import IntegrityError

if TYPE_CHECKING:
    import numpy as np
    import torch

    Floats = np.ndarray[Any, np.dtype[np.float64]]

LIKELIEST = 256
"""So many tokens of a row are ranked first; the rest only if the draw may fall among them."""

_ROWS = 32
"""Rows that are weighed at once, in float64: this bounds the memory."""

_COLDEST = 1e-100
"""The least temperature; what is colder is the same to any float32 logits, and could underflow."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence's next token is drawn.

    Attributes:
        temperature: 0 takes the likeliest token, of equals the one with the smallest id.
        top_p: of what temperature and top-k leave, the smallest set of likeliest tokens whose
            probability reaches this; the token that crosses is in it (nucleus sampling, Holtzman
            et al. 2020, section 3.1).
        top_k: draw among so many likeliest; 0: all.
        seed: of the sequence's stream.
        logprobs: None: none; a number: that of the drawn token, and so many likeliest.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What was drawn, a place a row.

    ``logprobs`` are natural logarithms of the softmax without temperature and cut-offs; ``tops``
    hold (id, log probability), likeliest first.
    """

    ids: list[int]
    logprobs: list[float | None]
    tops: list[tuple[tuple[int, float], ...]]


class BrokenLogits(IntegrityError):
    """Rows of the model's output are no distribution; ``rows`` tells which, the others are good."""

    def __init__(self, rows: tuple[int, ...]) -> None:
        super().__init__(
            "The model's output is not a number.",
            "Weights that are too large do this, most often an adapter's: take another version.",
        )
        self.rows = rows


class Draws:
    """The random stream of one sequence: the number of a step depends on seed and step alone.

    So a sequence that is computed anew draws what it drew before.
    """

    __slots__ = ("_seed",)

    def __init__(self, seed: int) -> None:
        self._seed = seed.to_bytes(16, "little", signed=True)

    def uniform(self, step: int) -> float:
        """The number of a step (0, 1, …), at least 0 and below 1, in steps of 2⁻⁵³."""
        block = blake2b(self._seed + step.to_bytes(8, "little"), digest_size=8).digest()
        return float(int.from_bytes(block, "little") >> 11) * 2.0**-53


def choose(
    logits: torch.Tensor, ways: Sequence[SamplingParams], steps: Sequence[int]
) -> SampledTokens:
    """Draw the next token of each row.

    Rows that are greedy and ask for no log probabilities share one argmax; the others are weighed
    on the logits' device, and what is likely is brought to the host.

    Args:
        logits: ``[rows, vocabulary]`` float32, on any device.
        ways: one a row.
        steps: how many tokens each row has drawn before.

    Raises:
        BrokenLogits: a row holds NaN or +infinity, or nothing but −infinity.
    """
    import torch

    with torch.no_grad():
        if logits.device.type == "mps":  # has no float64
            logits = logits.cpu()
        best = logits.argmax(-1, keepdim=True)
        peaks = logits.gather(-1, best).double()
        told = torch.cat((best.double(), peaks), -1).tolist()
        broken = tuple(row for row, (_, peak) in enumerate(told) if not math.isfinite(peak))
        if broken:
            raise BrokenLogits(broken)
        ids = [int(token) for token, _ in told]
        logprobs: list[float | None] = [None] * len(ids)
        tops: list[tuple[tuple[int, float], ...]] = [()] * len(ids)
        apart = [
            row for row, way in enumerate(ways) if way.temperature > 0 or way.logprobs is not None
        ]
        for start in range(0, len(apart), _ROWS):
            rows = apart[start : start + _ROWS]
            whole = len(rows) == len(ids)
            some = (logits, peaks) if whole else (logits[rows], peaks[rows])
            weighed = _weigh(*some, [ways[row] for row in rows])
            for row, one in zip(rows, weighed, strict=True):
                if ways[row].temperature > 0:
                    uniform = Draws(ways[row].seed).uniform(steps[row])
                    ids[row], logit = one.draw(ways[row], uniform)
                else:
                    logit = 0.0
                if (count := ways[row].logprobs) is not None:
                    logprobs[row] = logit - one.norm
                    tops[row] = tuple((token, at - one.norm) for token, at in one.top(count))
    return SampledTokens(ids, logprobs, tops)


class _Row:
    """One row's tokens, likeliest first: as many as are sure of their rank, and all if need be.

    Logits count from the row's greatest. ``total`` is the sum of the tempered weights of the whole
    vocabulary, ``norm`` the logarithm of that of the plain ones.
    """

    __slots__ = ("_logits", "_weights", "ids", "logits", "norm", "total", "weights")

    def __init__(
        self,
        likeliest: tuple[Floats, Floats, Floats],
        total: float,
        norm: float,
        logits: torch.Tensor,
        weights: torch.Tensor,
    ) -> None:
        """``likeliest``: ids, logits and weights, as ranked; ``logits``, ``weights``: all."""
        import numpy as np

        ids, found, _ = likeliest
        order = np.lexsort((ids, -found))
        if len(ids) < len(logits):
            # Of equals, a partial ranking holds any: whoever is as likely as its last is unsure.
            order = order[: np.count_nonzero(found > found.min())]
        self.ids, self.logits, self.weights = (one[order] for one in likeliest)
        self.total = total
        self.norm = norm
        self._logits = logits
        self._weights = weights

    def draw(self, way: SamplingParams, uniform: float) -> tuple[int, float]:
        """A token's id and logit."""
        place = self._place(way, uniform)
        if place is None:
            self._rank_all()
            place = self._place(way, uniform)
            assert place is not None
        return int(self.ids[place]), float(self.logits[place])

    def top(self, count: int) -> list[tuple[int, float]]:
        """Ids and logits of the likeliest, at most the vocabulary."""
        if count > len(self.ids):
            self._rank_all()
        pairs = zip(self.ids[:count], self.logits[:count], strict=True)
        return [(int(token), float(logit)) for token, logit in pairs]

    def _place(self, way: SamplingParams, uniform: float) -> int | None:
        """The drawn token's rank, or None if it may be beyond those that are ranked."""
        import numpy as np

        sums, total = np.cumsum(self.weights), self.total
        complete = len(sums) == len(self._logits)
        if 0 < way.top_k < len(self._logits):
            if way.top_k > len(sums):
                return None
            sums, complete = sums[: way.top_k], True
            total = float(sums[-1])
        if way.top_p < 1:
            crossing = int(np.searchsorted(sums, way.top_p * total))
            if crossing == len(sums) and not complete:
                return None
            sums, complete = sums[: crossing + 1], True
            total = float(sums[-1])
        place = int(np.searchsorted(sums, uniform * total, side="right"))
        if place < len(sums):
            return place
        # Two ways of summing differ in the last bit: the last token that weighs anything.
        return int(np.searchsorted(sums, sums[-1])) if complete else None

    def _rank_all(self) -> None:
        found, order = self._logits.sort(descending=True, stable=True)
        self.ids = order.double().cpu().numpy()
        self.logits = found.cpu().numpy()
        self.weights = self._weights[order].cpu().numpy()


def _weigh(
    logits: torch.Tensor, peaks: torch.Tensor, ways: Sequence[SamplingParams]
) -> Iterator[_Row]:
    """Rank each row; ``peaks``: ``[rows, 1]`` float64, the greatest logit of each."""
    import torch

    below = logits.double().sub_(peaks)
    heats = [max(way.temperature, _COLDEST) if way.temperature > 0 else 1.0 for way in ways]
    heat = torch.tensor(heats, dtype=torch.float64, device=logits.device)
    weights = (below / heat[:, None]).exp_()
    totals = plain = _sums(weights)
    if any(way.logprobs is not None and one != 1 for way, one in zip(ways, heats, strict=True)):
        plain = _sums(below.exp())
    ids = logits.topk(min(LIKELIEST, logits.shape[-1])).indices
    likeliest = torch.stack((ids.double(), below.gather(-1, ids), weights.gather(-1, ids)), 1)
    ranked = likeliest.cpu().numpy()
    for row, (total, norm) in enumerate(torch.stack((totals, plain.log()), 1).tolist()):
        yield _Row(tuple(ranked[row]), total, norm, below[row], weights[row])


def _sums(weights: torch.Tensor) -> torch.Tensor:
    """Sum of each row of ``[rows, columns]``, by halves.

    A library's own sum may add in another order when the number of rows or of threads is another.
    """
    import torch

    while (columns := weights.shape[-1]) > 1:
        half = columns // 2
        folded = weights[:, :half] + weights[:, half : 2 * half]
        weights = torch.cat((folded, weights[:, -1:]), -1) if columns % 2 else folded
    return weights[:, 0]

"""Sampling: temperature, top-k, top-p, seeded random streams and log probabilities.

What a row samples depends on its own logits, parameters, seed and step, and on nothing else in the
batch: random numbers are a function of seed and step; tokens have one order (likeliest first, ties
by smaller id); and the order of summation depends on the vocabulary's size alone. Sampling is by
inverse transform: the first token in that order at which the running sum exceeds
``uniform * total``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from trunkline.errors import IntegrityError

if TYPE_CHECKING:
    import numpy as np
    import torch

    Floats = np.ndarray[Any, np.dtype[np.float64]]

LIKELIEST = 256
"""How many tokens of a row are ranked at first; all are ranked only if the sample needs them."""

_ROWS = 32
"""Rows that are weighted at once in float64, which bounds the memory."""

_MIN_TEMPERATURE = 1e-100
"""Below it the result is the same for any float32 logits, and the quotient could overflow."""

RawScore = tuple[int, float, tuple[tuple[int, float], ...]]
"""A token's id, its log probability, and (id, log probability) of the likeliest tokens."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token of one sequence is sampled.

    Attributes:
        temperature: 0 takes the likeliest token; ties go to the smallest id.
        top_p: after temperature and top-k, sample from the smallest set of likeliest tokens whose
            probability reaches this; the token that crosses it is included (nucleus sampling,
            Holtzman et al. 2020, section 3.1).
        top_k: sample from this many likeliest tokens; 0: from all.
        seed: of the sequence's random stream.
        logprobs: None: no log probabilities; a number: that of the sampled token, and of this
            many likeliest tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """The sampled tokens, one entry for each row.

    ``logprobs`` are natural logarithms of the softmax before temperature and truncation; ``tops``
    contain (id, log probability), likeliest first.
    """

    ids: list[int]
    logprobs: list[float | None]
    tops: list[tuple[tuple[int, float], ...]]


class InvalidLogits(IntegrityError):
    """Some ``rows`` of the model's output are not a distribution; the others are valid."""

    def __init__(self, rows: tuple[int, ...]) -> None:
        super().__init__(
            "The model's output is not a number.",
            "Too large weights cause this, most often an adapter's: use another version.",
        )
        self.rows = rows


class RandomStream:
    """The random numbers of one sequence, which depend on seed and step alone.

    A sequence that is computed again therefore samples the same tokens.
    """

    __slots__ = ("_seed",)

    def __init__(self, seed: int) -> None:
        self._seed = seed.to_bytes(16, "little", signed=True)

    def uniform(self, step: int) -> float:
        """The number of a step (0, 1, …), in [0, 1), a multiple of 2⁻⁵³."""
        block = blake2b(self._seed + step.to_bytes(8, "little"), digest_size=8).digest()
        return float(int.from_bytes(block, "little") >> 11) * 2.0**-53


def sample(
    logits: torch.Tensor, params: Sequence[SamplingParams], steps: Sequence[int]
) -> SampledTokens:
    """Sample the next token of each row.

    Greedy rows without log probabilities share one argmax; the others are weighted on the logits'
    device, and the likeliest tokens are copied to the host.

    Args:
        logits: ``[rows, vocabulary]`` float32, on any device.
        params: one for each row.
        steps: how many tokens each row has sampled before.

    Raises:
        InvalidLogits: a row contains NaN or +infinity, or nothing but −infinity.
    """
    import torch

    with torch.no_grad():
        if logits.device.type == "mps":  # has no float64
            logits = logits.cpu()
        ids, peaks = _find_peaks(logits)
        logprobs: list[float | None] = [None] * len(ids)
        tops: list[tuple[tuple[int, float], ...]] = [()] * len(ids)
        weighted = [
            row for row, one in enumerate(params) if one.temperature > 0 or one.logprobs is not None
        ]
        for start in range(0, len(weighted), _ROWS):
            rows = weighted[start : start + _ROWS]
            every = len(rows) == len(ids)
            some = (logits, peaks) if every else (logits[rows], peaks[rows])
            ranked = _rank(*some, [params[row] for row in rows])
            for row, one in zip(rows, ranked, strict=True):
                if params[row].temperature > 0:
                    uniform = RandomStream(params[row].seed).uniform(steps[row])
                    ids[row], logit = one.draw(params[row], uniform)
                else:
                    logit = 0.0
                if (count := params[row].logprobs) is not None:
                    logprobs[row] = logit - one.norm
                    tops[row] = tuple((token, at - one.norm) for token, at in one.top(count))
    return SampledTokens(ids, logprobs, tops)


def score(logits: torch.Tensor, ids: Sequence[int], count: int) -> list[RawScore]:
    """Score given tokens, one in each row, as :func:`sample` scores those that it samples.

    Args:
        logits: ``[rows, vocabulary]`` float32, on any device.
        ids: the tokens.
        count: how many likeliest tokens are reported with each.

    Raises:
        InvalidLogits: a row contains NaN or +infinity, or nothing but −infinity.
    """
    import torch

    scores: list[RawScore] = []
    with torch.no_grad():
        if logits.device.type == "mps":  # has no float64
            logits = logits.cpu()
        _, peaks = _find_peaks(logits)
        targets = torch.tensor(ids, device=logits.device)[:, None]
        below = (logits.gather(-1, targets).double() - peaks)[:, 0].tolist()
        params = SamplingParams(logprobs=count)
        for start in range(0, len(ids), _ROWS):
            rows = slice(start, start + _ROWS)
            ranked = _rank(logits[rows], peaks[rows], [params] * len(ids[rows]))
            for token, logit, one in zip(ids[rows], below[rows], ranked, strict=True):
                top = tuple((other, at - one.norm) for other, at in one.top(count))
                scores.append((token, logit - one.norm, top))
    return scores


def _find_peaks(logits: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """The likeliest token of each row, and its logit, ``[rows, 1]`` float64.

    Raises:
        InvalidLogits: a row contains NaN or +infinity, or nothing but −infinity.
    """
    import torch

    best = logits.argmax(-1, keepdim=True)
    peaks = logits.gather(-1, best).double()
    peak_rows = torch.cat((best.double(), peaks), -1).tolist()
    broken = tuple(row for row, (_, peak) in enumerate(peak_rows) if not math.isfinite(peak))
    if broken:
        raise InvalidLogits(broken)
    return [int(token) for token, _ in peak_rows], peaks


Sampler = Callable[["torch.Tensor", Sequence[SamplingParams], Sequence[int]], SampledTokens]
"""A function with the signature of :func:`sample`."""


class RankedTokens:
    """The tokens of one row, likeliest first: those with a certain rank, or all if needed.

    Logits are relative to the row's greatest. ``total`` is the sum of the weights of the complete
    vocabulary after temperature, ``norm`` the logarithm of their sum before temperature.
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
        """``likeliest``: ids, logits and weights of top tokens; ``logits``, ``weights``: of all."""
        import numpy as np

        ids, top_logits, _ = likeliest
        order = np.lexsort((ids, -top_logits))
        if len(ids) < len(logits):
            # A partial ranking contains any of several ties: the rank of the last is uncertain.
            order = order[: np.count_nonzero(top_logits > top_logits.min())]
        self.ids, self.logits, self.weights = (one[order] for one in likeliest)
        self.total = total
        self.norm = norm
        self._logits = logits
        self._weights = weights

    def draw(self, params: SamplingParams, uniform: float) -> tuple[int, float]:
        """Sample a token; returns its id and logit."""
        rank = self._find_rank(params, uniform)
        if rank is None:
            self.rank_all()
            rank = self._find_rank(params, uniform)
            assert rank is not None
        return int(self.ids[rank]), float(self.logits[rank])

    def top(self, count: int) -> list[tuple[int, float]]:
        """Ids and logits of the likeliest tokens, at most the vocabulary."""
        if count > len(self.ids):
            self.rank_all()
        pairs = zip(self.ids[:count], self.logits[:count], strict=True)
        return [(int(token), float(logit)) for token, logit in pairs]

    def _find_rank(self, params: SamplingParams, uniform: float) -> int | None:
        """The rank of the sampled token, or None if it may be beyond those that are ranked."""
        import numpy as np

        sums, total = np.cumsum(self.weights), self.total
        complete = len(sums) == len(self._logits)
        if 0 < params.top_k < len(self._logits):
            if params.top_k > len(sums):
                return None
            sums, complete = sums[: params.top_k], True
            total = float(sums[-1])
        if params.top_p < 1:
            crossing = int(np.searchsorted(sums, params.top_p * total))
            if crossing == len(sums) and not complete:
                return None
            sums, complete = sums[: crossing + 1], True
            total = float(sums[-1])
        rank = int(np.searchsorted(sums, uniform * total, side="right"))
        if rank < len(sums):
            return rank
        # Two orders of summation differ in the last bit: take the last token with a weight.
        return int(np.searchsorted(sums, sums[-1])) if complete else None

    def rank_all(self) -> None:
        """Rank the complete vocabulary."""
        logits, order = self._logits.sort(descending=True, stable=True)
        self.ids = order.double().cpu().numpy()
        self.logits = logits.cpu().numpy()
        self.weights = self._weights[order].cpu().numpy()


def _rank(
    logits: torch.Tensor, peaks: torch.Tensor, params: Sequence[SamplingParams]
) -> Iterator[RankedTokens]:
    """Rank each row; ``peaks``: ``[rows, 1]`` float64, the greatest logit of each."""
    import torch

    below = logits.double().sub_(peaks)
    values = [
        max(one.temperature, _MIN_TEMPERATURE) if one.temperature > 0 else 1.0 for one in params
    ]
    temperatures = torch.tensor(values, dtype=torch.float64, device=logits.device)
    weights = (below / temperatures[:, None]).exp_()
    totals = plain = _sums(weights)
    if any(one.logprobs is not None and v != 1 for one, v in zip(params, values, strict=True)):
        plain = _sums(below.exp())
    ids = logits.topk(min(LIKELIEST, logits.shape[-1])).indices
    likeliest = torch.stack((ids.double(), below.gather(-1, ids), weights.gather(-1, ids)), 1)
    ranked = likeliest.cpu().numpy()
    for row, (total, norm) in enumerate(torch.stack((totals, plain.log()), 1).tolist()):
        yield RankedTokens(tuple(ranked[row]), total, norm, below[row], weights[row])


def _sums(weights: torch.Tensor) -> torch.Tensor:
    """Sum each row of ``[rows, columns]`` by halves.

    A library's own sum may add in an order that depends on the number of rows or threads.
    """
    import torch

    while (columns := weights.shape[-1]) > 1:
        half = columns // 2
        folded = weights[:, :half] + weights[:, half : 2 * half]
        weights = torch.cat((folded, weights[:, -1:]), -1) if columns % 2 else folded
    return weights[:, 0]

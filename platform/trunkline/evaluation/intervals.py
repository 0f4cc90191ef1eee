"""Bootstrap intervals that resample groups.

Owns: the resampling. Must not know: what a metric means.

Rows of one group are near-copies, so rows are not independent, groups are: the percentile
bootstrap (Efron & Tibshirani 1993, chapter 13) draws whole groups with replacement. Differences
are paired: both predictions are scored on the same draw.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trunkline.contracts import MetricSpec, Scored

DRAWS = 1000
LEVEL = 0.95
_SEED = 20_240_229


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def group_draws(groups: Sequence[str], draws: int = DRAWS) -> Iterator[Any]:
    """Row indices of each draw of as many groups as there are; the same for the same groups."""
    import numpy as np

    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    blocks = [np.asarray(members[group]) for group in sorted(members)]
    rng = np.random.default_rng(_SEED)
    for _ in range(draws):
        chosen = rng.integers(0, len(blocks), size=len(blocks))
        yield np.concatenate([blocks[index] for index in chosen])


def estimate(metric: MetricSpec, scored: Scored, groups: Sequence[str]) -> Estimate:
    """The metric on all rows, with its interval."""
    targets, predictions = _arrays(scored)
    values = [
        metric.compute(
            Scored(targets=targets[rows], predictions=predictions[rows], labels=scored.labels)
        )
        for rows in group_draws(groups)
    ]
    return _interval(metric.compute(scored), values)


def paired_difference(
    metric: MetricSpec, scored: Scored, other: Sequence[Any], groups: Sequence[str]
) -> Estimate:
    """Metric of ``scored`` minus that of ``other`` on the same rows and draws."""
    import numpy as np

    targets, predictions = _arrays(scored)
    others = np.asarray(other)

    def difference(rows: Any) -> float:
        ours = Scored(targets=targets[rows], predictions=predictions[rows], labels=scored.labels)
        theirs = Scored(targets=targets[rows], predictions=others[rows], labels=scored.labels)
        return metric.compute(ours) - metric.compute(theirs)

    everything = np.arange(len(targets))
    return _interval(difference(everything), [difference(rows) for rows in group_draws(groups)])


def verdict(metric: MetricSpec, difference: Estimate) -> str:
    """``beats``, ``ties`` or ``loses``: where the interval of the difference lies."""
    low, high = difference.low, difference.high
    if not metric.higher_is_better:
        low, high = -high, -low
    if low > 0:
        return "beats"
    return "loses" if high < 0 else "ties"


def _arrays(scored: Scored) -> tuple[Any, Any]:
    import numpy as np

    return np.asarray(scored.targets), np.asarray(scored.predictions)


def _interval(value: float, values: Sequence[float]) -> Estimate:
    import numpy as np

    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.asarray(values, dtype=float), [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))

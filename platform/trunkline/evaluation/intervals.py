"""Bootstrap intervals that resample groups.

Owns: the resampling. Must not know: what a metric means.

Rows of one group are near-copies, so rows are not independent, groups are: the percentile
bootstrap (Efron & Tibshirani 1993, chapter 13) draws whole groups with replacement. Differences
are paired: both predictions are scored on the same draw.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trunkline.contracts import MetricSpec, Scored
from trunkline.errors import PluginError, TrunklineError

DRAWS = 1000
LEVEL = 0.95
LEAST_GROUPS = 6
"""With fewer groups there is no verdict: even if the adapter wins in every one of n, the two-sided
sign test gives 2 / 2^n, which is above 1 - :data:`LEVEL` up to five."""

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
    """The metric on all rows, with its interval.

    Raises:
        PluginError: the metric raised, or gave something that is no finite number.
    """
    score = _scorer(metric, scored, scored.predictions)
    return _interval(score(_everything(groups)), [score(rows) for rows in group_draws(groups)])


def paired_difference(
    metric: MetricSpec, scored: Scored, other: Sequence[Any], groups: Sequence[str]
) -> Estimate:
    """Metric of ``scored`` minus that of ``other`` on the same rows and draws.

    Raises:
        PluginError: as :func:`estimate`.
    """
    ours = _scorer(metric, scored, scored.predictions)
    theirs = _scorer(metric, scored, other)

    def difference(rows: Any) -> float:
        return ours(rows) - theirs(rows)

    return _interval(
        difference(_everything(groups)), [difference(rows) for rows in group_draws(groups)]
    )


def score_of(metric: MetricSpec, scored: Scored) -> float:
    """The metric's figure.

    Raises:
        PluginError: the metric raised, or gave something that is no finite number.
    """
    try:
        figure = float(metric.compute(scored))
    except TrunklineError:
        raise
    except Exception as error:
        raise PluginError(
            f"The metric {metric.name} failed: {type(error).__name__}: {error}",
            "Metrics take any one or more rows; see the `Scored` contract in docs/hooks.md.",
        ) from error
    if not math.isfinite(figure):
        raise PluginError(
            f"The metric {metric.name} gave {figure} on {len(scored.targets)} rows.",
            "A metric must be finite on any one or more rows; choose another for this recipe.",
        )
    return figure


def verdict(metric: MetricSpec, difference: Estimate, groups: int) -> str:
    """``beats``, ``ties`` or ``loses``: where the interval of the difference lies.

    With fewer than :data:`LEAST_GROUPS` groups it is always ``ties``.
    """
    low, high = difference.low, difference.high
    if not metric.higher_is_better:
        low, high = -high, -low
    if groups < LEAST_GROUPS:
        return "ties"
    if low > 0:
        return "beats"
    return "loses" if high < 0 else "ties"


def _scorer(metric: MetricSpec, scored: Scored, predictions: Sequence[Any]) -> Any:
    """``rows -> float``: the metric on chosen rows.

    Texts are kept as Python's own (object arrays): choosing rows then copies no characters, and
    their hashes are computed once and not in every draw.
    """
    targets, answers = _array(scored.targets), _array(predictions)

    def score(rows: Any) -> float:
        return score_of(
            metric,
            Scored(targets=targets[rows], predictions=answers[rows], labels=scored.labels),
        )

    return score


def _array(values: Sequence[Any]) -> Any:
    import numpy as np

    texts = any(isinstance(value, str) for value in values)
    return np.asarray(values, dtype=object if texts else float)


def _everything(groups: Sequence[str]) -> Any:
    import numpy as np

    return np.arange(len(groups))


def _interval(value: float, values: Sequence[float]) -> Estimate:
    """The percentile interval, widened to the value where a biased metric would leave it out."""
    import numpy as np

    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.asarray(values, dtype=float), [tail, 1 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value))

"""Bootstrap intervals of metrics and of paired differences between two predictors.

Rows of one group are near-duplicates and not independent. The percentile bootstrap (Efron &
Tibshirani 1993, chapter 13) therefore resamples complete groups with replacement. Differences are
paired: both predictors are scored on the same draw.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trunkline.contracts import MetricSpec, Scored, Target
from trunkline.data.targets import parse_prediction, parse_target
from trunkline.errors import DataError, PluginCallError, one_line, plugin_call
from trunkline.registry.records import PredictionRecord

DRAWS = 1000
LEVEL = 0.95
MIN_GROUPS = 6
"""With fewer groups every verdict is a tie: even if the adapter wins in all n groups, the two-sided
sign test gives p = 2 / 2^n, which is above 1 - :data:`LEVEL` for n up to 5."""

MAX_SCORE = 1e300
"""Scores are below it, which leaves room for their differences."""

_SEED = 20_240_229


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two versions on the same rows.

    Attributes:
        rows, groups: how many rows and groups both predicted.
        difference: metric of the first minus that of the second, in the metric's unit.
        verdict: see :func:`verdict`.
    """

    rows: int
    groups: int
    difference: Estimate
    verdict: str


def group_draws(groups: Sequence[str], draws: int = DRAWS) -> Iterator[Any]:
    """Yield the row indices of each draw of ``len(set(groups))`` groups with replacement.

    The draws are deterministic: equal groups give equal draws.
    """
    import numpy as np

    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    blocks = [members[group] for group in sorted(members)]
    rows = np.array([row for block in blocks for row in block], dtype=np.intp)
    sizes = np.array([len(block) for block in blocks], dtype=np.intp)
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(_SEED)
    for _ in range(draws):
        sample = rng.integers(0, len(blocks), size=len(blocks))
        drawn = sizes[sample]
        first = starts[sample] - (np.cumsum(drawn) - drawn)  # less the rows drawn before
        yield rows[np.repeat(first, drawn) + np.arange(drawn.sum())]


def estimate(
    metric: MetricSpec, scored: Scored, groups: Sequence[str], draws: int | None = None
) -> Estimate:
    """The metric on all rows, with its interval of ``draws`` resamples, by default 1,000.

    Raises:
        PluginCallError: the metric raised, or returned no finite number.
    """
    score = _scorer(metric, scored, scored.predictions)
    sample = group_draws(groups) if draws is None else group_draws(groups, draws)
    return _interval(score(_all_rows(groups)), [score(rows) for rows in sample])


def paired_difference(
    metric: MetricSpec, scored: Scored, other: Sequence[Any], groups: Sequence[str]
) -> Estimate:
    """Metric of ``scored`` minus that of ``other`` on the same rows and draws.

    Raises:
        PluginCallError: as :func:`estimate`.
    """
    first = _scorer(metric, scored, scored.predictions)
    second = _scorer(metric, scored, other)

    def difference(rows: Any) -> float:
        return first(rows) - second(rows)

    return _interval(
        difference(_all_rows(groups)), [difference(rows) for rows in group_draws(groups)]
    )


def estimate_statistic(statistic: Callable[[Any], float], groups: Sequence[str]) -> Estimate:
    """A statistic of row indices, on all rows and with its interval.

    Args:
        statistic: called with an array of indices, in which rows repeat.
        groups: of each row.
    """
    draws = [statistic(rows) for rows in group_draws(groups)]
    return _interval(statistic(_all_rows(groups)), draws)


def compare_predictions(
    metric: MetricSpec,
    first: Sequence[PredictionRecord],
    second: Sequence[PredictionRecord],
    labels: tuple[str, ...] = (),
) -> PairedComparison:
    """Compare the stored predictions of two versions; the order of the rows does not matter.

    Args:
        metric: the deciding metric.
        first, second: predictions of the same rows.
        labels: of a classification.

    Raises:
        DataError: there are no rows, or the two sides do not have the same rows and targets.
        PluginCallError: as :func:`estimate`.
    """
    other = paired_records(first, second)
    groups = [record.group for record in first]
    scored = Scored(
        targets=typed_targets(metric, [record.target for record in first]),
        predictions=typed_predictions(metric, [record.prediction for record in first]),
        labels=labels,
    )
    predictions = typed_predictions(metric, [record.prediction for record in other])
    difference = paired_difference(metric, scored, predictions, groups)
    count = len(set(groups))
    return PairedComparison(len(first), count, difference, verdict(metric, difference, count))


def paired_records(
    first: Sequence[PredictionRecord], second: Sequence[PredictionRecord]
) -> list[PredictionRecord]:
    """The second predictions in the order of the first.

    Raises:
        DataError: there are no rows, or the two sides do not have the same rows and targets.
    """
    by_row = {record.row_id: record for record in second}
    if not first or not by_row:
        raise DataError("no predictions are stored", "Evaluate both again with: trunkline eval.")
    same = sum(
        record.row_id in by_row
        and (by_row[record.row_id].target, by_row[record.row_id].group)
        == (record.target, record.group)
        for record in first
    )
    if not len(first) == len(by_row) == same:
        raise DataError(
            f"the rows differ: {len(first)} and {len(by_row)}, of which {same} are the same",
            "Versions can only be compared on the same test rows.",
        )
    return [by_row[record.row_id] for record in first]


def number_of(metric: MetricSpec, scored: Scored, hint: str) -> float:
    """The number that a metric gives, finite or not.

    Raises:
        PluginCallError: the metric raised, or returned no number; with this hint.
    """
    with plugin_call(f"The metric {metric.name}", hint):
        value = metric.compute(scored)
        try:
            if isinstance(value, str | bytes):
                raise TypeError
            return float(value)
        except TypeError as error:
            message = f"The metric {metric.name} gave {value!r:.60}, not a number."
            raise PluginCallError(message, hint) from error


def score_of(metric: MetricSpec, scored: Scored) -> float:
    """Compute a metric.

    Raises:
        PluginCallError: the metric raised, or returned no finite number.
    """
    hint = "A metric must accept one row or more; see the `Scored` contract in docs/hooks.md."
    value = number_of(metric, scored, hint)
    if not abs(value) < MAX_SCORE:
        raise PluginCallError(
            f"The metric {metric.name} gave {value} on {len(scored.targets)} rows.",
            f"A metric must be finite, and below {MAX_SCORE:g}, on one row or more; choose another "
            "for this recipe.",
        )
    return value


def verdict(metric: MetricSpec, difference: Estimate, groups: int) -> str:
    """``beats``, ``ties`` or ``loses``, by whether the difference's interval excludes zero.

    With fewer than :data:`MIN_GROUPS` groups it is always ``ties``.
    """
    low, high = difference.low, difference.high
    if not metric.higher_is_better:
        low, high = -high, -low
    if groups < MIN_GROUPS:
        return "ties"
    if low > 0:
        return "beats"
    return "loses" if high < 0 else "ties"


def typed_targets(metric: MetricSpec, texts: Sequence[str]) -> list[Target]:
    """Stored targets as the metric takes them."""
    return _typed(metric, texts, parse_target)


def typed_predictions(metric: MetricSpec, texts: Sequence[str]) -> list[Target]:
    """Stored predictions as the metric takes them."""
    return _typed(metric, texts, parse_prediction)


def _typed(
    metric: MetricSpec, texts: Sequence[str], parse: Callable[[str, str], Target]
) -> list[Target]:
    try:
        return [parse(text, metric.task) for text in texts]
    except (ValueError, TypeError) as error:
        raise DataError(
            f"a stored prediction does not fit {metric.name}: {one_line(error)}"
        ) from error


def _scorer(metric: MetricSpec, scored: Scored, predictions: Sequence[Any]) -> Any:
    """``rows -> float``: the metric on the given rows.

    Texts stay Python strings (object arrays): selecting rows then copies no characters, and their
    hashes are computed once instead of in every draw.
    """
    targets, outputs = _array(scored.targets), _array(predictions)

    def score(rows: Any) -> float:
        return score_of(
            metric,
            Scored(targets=targets[rows], predictions=outputs[rows], labels=scored.labels),
        )

    return score


def _array(values: Sequence[Any]) -> Any:
    import numpy as np

    if not any(isinstance(value, str | tuple) for value in values):
        return np.asarray(values, dtype=float)
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):  # a list of equal tuples would become a matrix
        array[index] = value
    return array


def _all_rows(groups: Sequence[str]) -> Any:
    import numpy as np

    return np.arange(len(groups))


def _interval(value: float, values: Sequence[float]) -> Estimate:
    """The percentile interval, widened to contain the value if a biased metric would exclude it."""
    import numpy as np

    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.asarray(values, dtype=float), [tail, 1 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value))

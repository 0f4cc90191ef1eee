"""Two predictors on the same rows: paired differences, McNemar's test, the rows that flipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trunkline.contracts import MetricSpec, Scored, Target
from trunkline.data.targets import is_right
from trunkline.evaluation.intervals import Estimate, estimate, paired_difference, verdict


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar's exact test on rows with one right answer; it ignores groups.

    Attributes:
        gained, lost: rows that only the first, or only the second predictor has right.
        p_value: two-sided probability of so uneven a division if both were equally good.
    """

    gained: int
    lost: int
    p_value: float

    @classmethod
    def of(cls, gained: int, lost: int) -> McNemar:
        """Test the two counts with the exact binomial distribution (McNemar 1947)."""
        from scipy.stats import binom

        total = gained + lost
        tail = float(binom.cdf(min(gained, lost), total, 0.5)) if total else 1.0
        return cls(gained, lost, min(1.0, 2 * tail))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A version against another predictor, on the version's test rows.

    Attributes:
        against: the name of the other predictor.
        metric: the deciding metric; the verdict is about it.
        scores, other_scores: every metric of both.
        differences: the first minus the second, paired, with intervals over groups.
        verdict: ``beats``, ``ties`` or ``loses``.
        mcnemar: None for a regression.
        gained, lost: ids of the rows that only the first, or only the second has right.
    """

    against: str
    rows: int
    groups: int
    metric: str
    higher_is_better: bool
    scores: dict[str, Estimate]
    other_scores: dict[str, Estimate]
    differences: dict[str, Estimate]
    verdict: str
    mcnemar: McNemar | None
    gained: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PairedRows:
    """The same rows with the predictions of two predictors, row by row."""

    ids: Sequence[str]
    groups: Sequence[str]
    targets: Sequence[Target]
    first: Sequence[Target]
    second: Sequence[Target]


def compare(
    rows: PairedRows, against: str, metrics: Sequence[MetricSpec], labels: tuple[str, ...] = ()
) -> Comparison:
    """Compare two predictors.

    Args:
        rows: at least one.
        against: the name of the second.
        metrics: the deciding one first; all of one task.
        labels: of a classification.

    Raises:
        PluginCallError: a metric raised, or returned no finite number.
    """
    deciding = metrics[0]
    first = Scored(targets=rows.targets, predictions=rows.first, labels=labels)
    second = Scored(targets=rows.targets, predictions=rows.second, labels=labels)
    differences = {
        metric.name: paired_difference(metric, first, rows.second, rows.groups)
        for metric in metrics
    }
    gained: list[str] = []
    lost: list[str] = []
    if deciding.task != "regression":
        for row, target, one, other in zip(
            rows.ids, rows.targets, rows.first, rows.second, strict=True
        ):
            right = is_right(target, one, deciding.task)
            if right != is_right(target, other, deciding.task):
                (gained if right else lost).append(row)
    groups = len(set(rows.groups))
    return Comparison(
        against=against,
        rows=len(rows.ids),
        groups=groups,
        metric=deciding.name,
        higher_is_better=deciding.higher_is_better,
        scores={one.name: estimate(one, first, rows.groups) for one in metrics},
        other_scores={one.name: estimate(one, second, rows.groups) for one in metrics},
        differences=differences,
        verdict=verdict(deciding, differences[deciding.name], groups),
        mcnemar=(None if deciding.task == "regression" else McNemar.of(len(gained), len(lost))),
        gained=tuple(gained),
        lost=tuple(lost),
    )

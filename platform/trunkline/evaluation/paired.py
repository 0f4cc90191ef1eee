"""Two versions on the same rows.

Owns: bringing two sets of kept predictions together, and the figure of their difference.
Must not know: which versions they are, or what is decided by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trunkline.contracts import MetricSpec, Scored, Target
from trunkline.errors import DataError
from trunkline.evaluation.intervals import Estimate, paired_difference, verdict
from trunkline.registry.records import PredictionRecord


@dataclass(frozen=True, slots=True)
class Comparison:
    """One version against another.

    Attributes:
        rows, groups: that both were asked.
        difference: the metric of the one minus that of the other, paired, in the metric's unit;
            the interval resamples groups.
        verdict: ``beats``, ``ties`` or ``loses``, by where the interval lies.
    """

    rows: int
    groups: int
    difference: Estimate
    verdict: str


def compare(
    metric: MetricSpec,
    ours: Sequence[PredictionRecord],
    theirs: Sequence[PredictionRecord],
    labels: tuple[str, ...] = (),
) -> Comparison:
    """Score both on every row; the order of the rows does not matter.

    Args:
        metric: the figure that decides.
        ours, theirs: predictions of the same rows.
        labels: of a classification.

    Raises:
        DataError: there are no rows, or not the same ones with the same targets on both sides.
        PluginError: the metric raised, or gave something that is no finite number.
    """
    others = {one.row_id: one for one in theirs}
    if not ours or not others:
        raise DataError("no predictions are kept", "Evaluate both again with: trunkline eval.")
    alike = sum(
        one.row_id in others
        and (others[one.row_id].target, others[one.row_id].group) == (one.target, one.group)
        for one in ours
    )
    if not len(ours) == len(others) == alike:
        raise DataError(
            f"the rows differ: {len(ours)} and {len(others)}, of which {alike} are the same",
            "Versions can be compared on the same test rows only.",
        )
    groups = [one.group for one in ours]
    scored = Scored(
        targets=_values(metric, [one.target for one in ours]),
        predictions=_values(metric, [one.prediction for one in ours]),
        labels=labels,
    )
    said = _values(metric, [others[one.row_id].prediction for one in ours])
    difference = paired_difference(metric, scored, said, groups)
    count = len(set(groups))
    return Comparison(len(ours), count, difference, verdict(metric, difference, count))


def _values(metric: MetricSpec, texts: Sequence[str]) -> list[Target]:
    """Kept predictions as the metric takes them: numbers in their unit, or texts."""
    if metric.task != "regression":
        return list(texts)
    try:
        return [float(text) for text in texts]
    except ValueError as error:
        raise DataError(f"a kept prediction is no number: {error}") from error

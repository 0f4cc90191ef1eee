"""The verdict on predictions: scores with intervals, baselines beside them, slices, the difference.

Owns: what is said about an adapter. Must not know: how predictions were made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trunkline.contracts import MetricSpec, Row, Scored, Target
from trunkline.errors import DataError
from trunkline.evaluation.baselines import Baseline
from trunkline.evaluation.intervals import (
    Estimate,
    estimate,
    paired_difference,
    score_of,
    verdict,
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One test row with what was said about it, and what the best baseline said."""

    row_id: str
    group: str
    target: Target
    prediction: Target
    confidence: float | None = None
    baseline_prediction: Target | None = None


@dataclass(frozen=True, slots=True)
class SliceScore:
    """The deciding metric on the rows of one slice."""

    slice: str
    value: str
    rows: int
    score: float


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Everything that is said about predictions on one set of held-out rows.

    ``difference`` is the deciding metric of the adapter minus that of the best baseline;
    ``verdict``
    is ``beats``, ``ties`` or ``loses``, by where its interval lies (see
    :func:`~trunkline.evaluation.intervals.verdict`). The best baseline is the one that is best on
    these very rows, which is the strictest choice.
    """

    metric: str
    higher_is_better: bool
    rows: int
    groups: int
    scores: dict[str, Estimate]
    baselines: dict[str, dict[str, Estimate]]
    baseline_details: dict[str, str]
    best_baseline: str
    difference: Estimate
    verdict: str
    slices: tuple[SliceScore, ...]

    @property
    def score(self) -> Estimate:
        """The deciding metric."""
        return self.scores[self.metric]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EvaluationReport:
        fields = dict(data)
        fields["scores"] = {name: Estimate(**value) for name, value in data["scores"].items()}
        fields["baselines"] = {
            baseline: {name: Estimate(**value) for name, value in scores.items()}
            for baseline, scores in data["baselines"].items()
        }
        fields["difference"] = Estimate(**data["difference"])
        fields["slices"] = tuple(SliceScore(**value) for value in data["slices"])
        return cls(**fields)


def evaluate(
    rows: Sequence[Row],
    predictions: Sequence[Target],
    baselines: Sequence[Baseline],
    metrics: Sequence[MetricSpec],
    labels: tuple[str, ...],
    confidences: Sequence[float | None] | None = None,
) -> tuple[EvaluationReport, list[Prediction]]:
    """Score predictions and baselines on the same rows.

    Args:
        rows: the held-out rows.
        predictions: of the adapter, in the rows' order.
        baselines: each with predictions in the rows' order; at least one.
        metrics: the deciding one first.
        labels: of a classification.
        confidences: probability of each predicted label.

    Raises:
        DataError: there are no rows.
        PluginError: a metric raised or gave something that is no finite number.
    """
    if not rows:
        raise DataError("There are no rows to evaluate on.", "The dataset needs a test part.")
    deciding = metrics[0]
    groups = [row.group for row in rows]
    targets = [row.target for row in rows]
    ours = Scored(targets=targets, predictions=list(predictions), labels=labels)
    scores = {metric.name: estimate(metric, ours, groups) for metric in metrics}
    baseline_scores = {
        baseline.name: {
            metric.name: estimate(
                metric,
                Scored(targets=targets, predictions=baseline.predictions, labels=labels),
                groups,
            )
            for metric in metrics
        }
        for baseline in baselines
    }
    sign = 1 if deciding.higher_is_better else -1
    best = max(
        baselines, key=lambda baseline: sign * baseline_scores[baseline.name][deciding.name].value
    )
    difference = paired_difference(deciding, ours, best.predictions, groups)
    evaluation_report = EvaluationReport(
        metric=deciding.name,
        higher_is_better=deciding.higher_is_better,
        rows=len(rows),
        groups=len(set(groups)),
        scores=scores,
        baselines=baseline_scores,
        baseline_details={baseline.name: baseline.detail for baseline in baselines},
        best_baseline=best.name,
        difference=difference,
        verdict=verdict(deciding, difference, len(set(groups))),
        slices=_slices(rows, predictions, deciding, labels),
    )
    kept = [
        Prediction(row.id, row.group, row.target, said, confidence, baseline_said)
        for row, said, confidence, baseline_said in zip(
            rows,
            predictions,
            confidences or [None] * len(rows),
            best.predictions,
            strict=True,
        )
    ]
    return evaluation_report, kept


def _slices(
    rows: Sequence[Row],
    predictions: Sequence[Target],
    metric: MetricSpec,
    labels: tuple[str, ...],
) -> tuple[SliceScore, ...]:
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        for name, value in row.slices.items():
            members[name, value].append(index)
    return tuple(
        SliceScore(
            name,
            value,
            len(chosen),
            score_of(
                metric,
                Scored(
                    targets=[rows[index].target for index in chosen],
                    predictions=[predictions[index] for index in chosen],
                    labels=labels,
                ),
            ),
        )
        for (name, value), chosen in sorted(members.items())
    )

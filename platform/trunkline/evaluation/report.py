"""Evaluation reports: predict held-out rows, score them with intervals, compare with baselines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trunkline.contracts import MetricSpec, Row, Scored, Target
from trunkline.data.encode import request_messages
from trunkline.errors import DataError
from trunkline.evaluation.baselines import Baseline
from trunkline.evaluation.calibration import (
    Abstention,
    CalibrationReport,
    calibration_report,
)
from trunkline.evaluation.intervals import (
    Estimate,
    estimate,
    paired_difference,
    score_of,
    verdict,
)

if TYPE_CHECKING:
    from trunkline.adapters.artifact import Artifact
    from trunkline.inference.image_engine import AnyEngine
    from trunkline.inference.request import Answer, Request


@dataclass(frozen=True, slots=True)
class RowPredictions:
    """An adapter's predictions, in the order of the rows."""

    values: list[Target]
    confidences: list[float | None]
    probabilities: list[list[float]]
    """Of all labels, for each row; empty where the task has none."""

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> RowPredictions:
        """The predictions in the answers to the rows."""
        return cls(
            [answer.output for answer in answers],
            [answer.confidence for answer in answers],
            [list((answer.probabilities or {}).values()) for answer in answers],
        )


def _answer(
    engine: AnyEngine,
    artifact: Artifact,
    name: str,
    requests: Sequence[Request],
    on_done: Callable[[int], None] | None,
) -> list[Answer]:
    from trunkline.inference.request import ResolvedRequest

    resolved = [ResolvedRequest(request, artifact, name) for request in requests]
    return engine.run(resolved, on_done=on_done)


def predict_rows(
    engine: AnyEngine,
    artifact: Artifact,
    name: str,
    rows: Sequence[Row],
    on_done: Callable[[int], None] | None = None,
) -> RowPredictions:
    """Predict held-out rows; their targets are not used. Arguments as :func:`answer_rows`."""
    if artifact.manifest.task["kind"] == "ranking":
        return _rank_rows(engine, artifact, name, rows, on_done)
    return RowPredictions.of(answer_rows(engine, artifact, name, rows, on_done))


def answer_rows(
    engine: AnyEngine,
    artifact: Artifact,
    name: str,
    rows: Sequence[Row],
    on_done: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answer the texts, conversations or pictures of rows, exactly as a server would.

    Args:
        engine: holds the base.
        artifact: the adapter.
        name: of the adapter, for the requests.
        rows: texts before the template.
        on_done: called with the number of rows done so far.
    """
    from trunkline.inference.request import Request

    requests = [
        Request(name, row.text, messages=request_messages(row))
        if row.image is None
        else Request(name, image=row.picture)
        for row in rows
    ]
    return _answer(engine, artifact, name, requests, on_done)


def _rank_rows(
    engine: AnyEngine,
    artifact: Artifact,
    name: str,
    rows: Sequence[Row],
    on_done: Callable[[int], None] | None,
) -> RowPredictions:
    """The candidates of each row, the best first, and the probability of that one."""
    from trunkline.inference.engine import Engine
    from trunkline.inference.ranking import rank_candidates

    assert isinstance(engine, Engine)

    ranked = rank_candidates(
        engine, artifact, name, [(row.text, row.candidates) for row in rows], on_done
    )
    return RowPredictions(
        [one.candidates for one in ranked], [one.probabilities[0] for one in ranked], []
    )


@dataclass(frozen=True, slots=True)
class Prediction:
    """The adapter's and the best baseline's prediction for one test row."""

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
    """The result of evaluating predictions on one set of held-out rows.

    Attributes:
        metric: the deciding metric, with its direction in ``higher_is_better``.
        rows, groups: how many were evaluated.
        scores: every metric of the adapter, by name.
        baselines: every metric of each baseline, by the baseline's name.
        baseline_details: what was fitted, by the baseline's name.
        best_baseline: the one that is best on these same rows, which is the strictest choice.
        difference: deciding metric of the adapter minus that of the best baseline, paired.
        verdict: ``beats``, ``ties`` or ``loses``; see
            :func:`~trunkline.evaluation.intervals.verdict`.
        slices: the deciding metric for each value of each slice.
        calibration: of a calibrated classification.
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
    calibration: CalibrationReport | None = None

    @property
    def score(self) -> Estimate:
        """The adapter's deciding metric."""
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
        if (calibration := data.get("calibration")) is not None:
            abstention = tuple(Abstention(**one) for one in calibration["abstention"])
            fields["calibration"] = CalibrationReport(**{**calibration, "abstention": abstention})
        return cls(**fields)


def evaluate_calibration(
    artifact: Artifact, rows: Sequence[Row], predicted: RowPredictions
) -> CalibrationReport | None:
    """Measure an artifact's calibration on held-out rows; None if it has none."""
    fitted = artifact.manifest.task.get("calibration")
    if fitted is None:
        return None
    right = [row.target == value for row, value in zip(rows, predicted.values, strict=True)]
    return calibration_report(
        fitted["temperature"], fitted["thresholds"], predicted.probabilities, right
    )


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

    Returns:
        The report, and one prediction for each row to be stored.

    Raises:
        DataError: there are no rows.
        PluginCallError: a metric raised, or returned no finite number.
    """
    if not rows:
        raise DataError("There are no rows to evaluate on.", "The dataset needs a test part.")
    deciding = metrics[0]
    groups = [row.group for row in rows]
    targets = [row.target for row in rows]
    scored = Scored(targets=targets, predictions=list(predictions), labels=labels)
    scores = {metric.name: estimate(metric, scored, groups) for metric in metrics}
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
    difference = paired_difference(deciding, scored, best.predictions, groups)
    report = EvaluationReport(
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
    records = [
        Prediction(row.id, row.group, row.target, value, confidence, baseline_value)
        for row, value, confidence, baseline_value in zip(
            rows,
            predictions,
            confidences or [None] * len(rows),
            best.predictions,
            strict=True,
        )
    ]
    return report, records


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
            len(indices),
            score_of(
                metric,
                Scored(
                    targets=[rows[index].target for index in indices],
                    predictions=[predictions[index] for index in indices],
                    labels=labels,
                ),
            ),
        )
        for (name, value), indices in sorted(members.items())
    )

"""What the pages show of an evaluation's predictions; an evaluation never changes."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trunkline.console import charts
from trunkline.console.view import View
from trunkline.data.targets import is_right, number, parse_prediction, parse_target
from trunkline.registry.records import EvaluationRecord, PredictionRecord

WORST_ROWS = 25
MAX_ROWS = 20_000
"""Predictions that are read for the charts."""

MAX_KEPT = 64


@dataclass(frozen=True, slots=True)
class Figures:
    """The charts of an evaluation; those that its task does not have are empty."""

    reliability: tuple[charts.ReliabilityBin, ...] = ()
    confusion: charts.Confusion | None = None
    labels: tuple[charts.LabelScore, ...] = ()
    worst: tuple[dict[str, Any], ...] = ()


class _Kept:
    """The figures of the evaluations that were looked at last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], Figures] = OrderedDict()

    def get(self, view: View, task: str, evaluation: EvaluationRecord) -> Figures:
        key = view.platform.workspace.registry_url, evaluation.id
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return kept
        predictions = view.registry.evaluations.predictions(evaluation.id, limit=MAX_ROWS)
        made = _figures(task, predictions)
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return made


_kept = _Kept()


def figures_of(view: View, task: str, evaluation: EvaluationRecord | None) -> Figures:
    """The figures of an evaluation; empty ones without it."""
    return Figures() if evaluation is None else _kept.get(view, task, evaluation)


def _figures(task: str, predictions: Sequence[PredictionRecord]) -> Figures:
    classifies = task == "classification"
    labeled = task in ("multilabel", "tagging")
    return Figures(
        charts.reliability(predictions) if classifies else (),
        charts.confusion(predictions) if classifies else None,
        charts.label_scores(task, predictions) if labeled else (),
        tuple(worst_rows(task, predictions)),
    )


def worst_rows(task: str, predictions: Sequence[PredictionRecord]) -> list[dict[str, Any]]:
    """The wrong predictions, the surest first; of a regression, the largest errors."""
    rows: list[tuple[float, PredictionRecord]] = []
    for one in predictions:
        try:
            target = parse_target(one.target, task)
            prediction = parse_prediction(one.prediction, task)
        except (TypeError, ValueError):
            continue
        if task == "regression":
            rows.append((abs(number(prediction) - number(target)), one))
        elif not is_right(target, prediction, task):
            rows.append((one.confidence or 0.0, one))
    rows = [row for row in rows if math.isfinite(row[0])]
    rows.sort(key=lambda row: (-row[0], row[1].row_id))
    return [
        {
            "row": one.row_id,
            "target": one.target,
            "prediction": one.prediction,
            "baseline": one.baseline_prediction,
            "confidence": one.confidence,
            "error": weight if task == "regression" else None,
        }
        for weight, one in rows[:WORST_ROWS]
    ]

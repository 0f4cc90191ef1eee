"""The geometry of the charts that are drawn as SVG in a page: bars, reliability, confusion.

Positions are in percent of the width. A chart has no information that the table beside it lacks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trunkline.contracts import Span, Target
from trunkline.data.targets import parse_prediction, parse_target
from trunkline.registry.records import PredictionRecord, ScoreSummary

RELIABILITY_BINS = 10
MAX_CONFUSION_LABELS = 25


@dataclass(frozen=True, slots=True)
class IntervalBar:
    """A value with its interval on an axis, and a baseline; None where it is unknown."""

    axis_low: float
    axis_high: float
    value: float
    low: float
    high: float
    baseline: float | None


Axis = tuple[float, float]
"""The lowest and the highest number of an axis."""


def axis_of(numbers: Sequence[float]) -> Axis:
    """0 to 1 for shares; otherwise from 0, or the lowest number, to behind the highest."""
    start, end = min(0.0, *numbers), max(numbers)
    if start >= 0 and end <= 1:
        return 0.0, 1.0
    return start, end + (end - start) * 0.1


def shared_axis(scores: Sequence[ScoreSummary]) -> Axis | None:
    """One axis for scores of one metric; None if there are none, or of several metrics."""
    if len({one.metric for one in scores}) != 1:
        return None
    numbers = [
        number
        for one in scores
        for number in (one.value, one.low, one.high, one.baseline_value)
        if number is not None and math.isfinite(number)
    ]
    return axis_of(numbers) if numbers else None


def interval_bar(
    value: float,
    low: float,
    high: float,
    baseline: float | None = None,
    axis: Axis | None = None,
) -> IntervalBar | None:
    """Where a bar's parts are, on an axis of its own if none is given.

    None if the value is not finite.
    """
    if not math.isfinite(value):
        return None
    low = low if math.isfinite(low) else value
    high = high if math.isfinite(high) else value
    base = baseline if baseline is not None and math.isfinite(baseline) else None
    start, end = axis or axis_of([value, low, high, *([] if base is None else [base])])
    span = (end - start) or 1.0

    def place(number: float) -> float:
        return round(100 * (number - start) / span, 2)

    return IntervalBar(
        start, end, place(value), place(low), place(high), None if base is None else place(base)
    )


def share(part: float, total: float) -> float:
    """The length of a bar in percent."""
    return round(100 * part / total, 2) if total else 0.0


def parts_of(counts: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    """The rows of each part of a split, from the counts that were recorded with a dataset."""
    parts = counts.get("parts", counts)
    if not isinstance(parts, Mapping):
        return {}
    return {name: parts[name] for name in names if isinstance(parts.get(name), int)}


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Predictions whose confidence lies in one tenth: how many, how sure, and how often right."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


def reliability(predictions: Sequence[PredictionRecord]) -> tuple[ReliabilityBin, ...]:
    """The reliability diagram of predictions with confidences, without its empty bins."""
    members: dict[int, list[PredictionRecord]] = {}
    for one in predictions:
        if one.confidence is not None and 0 <= one.confidence <= 1:
            index = min(RELIABILITY_BINS - 1, int(one.confidence * RELIABILITY_BINS))
            members.setdefault(index, []).append(one)
    return tuple(
        ReliabilityBin(
            low=index / RELIABILITY_BINS,
            high=(index + 1) / RELIABILITY_BINS,
            rows=len(rows),
            confidence=sum(one.confidence or 0.0 for one in rows) / len(rows),
            accuracy=sum(one.target == one.prediction for one in rows) / len(rows),
        )
        for index, rows in sorted(members.items())
    )


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often each true label got each predicted one: ``counts[truth][prediction]``.

    Attributes:
        labels: the most frequent true labels.
        others: how many labels are left out.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    others: int

    def shade(self, truth: int, prediction: int) -> int:
        """From 0 to 9, the share of the row; the color of a cell."""
        total = sum(self.counts[truth]) or 1
        return min(9, math.ceil(9 * self.counts[truth][prediction] / total))


def confusion(predictions: Sequence[PredictionRecord]) -> Confusion | None:
    """The confusion matrix of a classification; None without two labels."""
    frequencies = Counter(one.target for one in predictions)
    every = list(frequencies)
    every += [one.prediction for one in predictions if one.prediction not in frequencies]
    names = list(dict.fromkeys(every))
    if len(names) < 2:
        return None
    names.sort(key=lambda name: (-frequencies[name], name))
    labels = tuple(sorted(names[:MAX_CONFUSION_LABELS]))
    pairs = Counter((one.target, one.prediction) for one in predictions)
    counts = tuple(tuple(pairs[truth, guess] for guess in labels) for truth in labels)
    return Confusion(labels, counts, len(names) - len(labels))


@dataclass(frozen=True, slots=True)
class LabelScore:
    """How well one label is found, in texts or as spans.

    Attributes:
        true, predicted, hits: how often it is in the targets, in the predictions, and in both.
    """

    label: str
    true: int
    predicted: int
    hits: int

    @property
    def precision(self) -> float | None:
        """The share of its predictions that are right; None without any."""
        return self.hits / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """The share of its occurrences that are found; None without any."""
        return self.hits / self.true if self.true else None

    @property
    def f1(self) -> float:
        """The harmonic mean of both."""
        return 2 * self.hits / ((self.true + self.predicted) or 1)


def label_scores(task: str, predictions: Sequence[PredictionRecord]) -> tuple[LabelScore, ...]:
    """Each label of a multilabel or tagging task, the most frequent first.

    A span is found if its start, its end and its label are right.
    """
    true: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for one in predictions:
        try:
            target = set(_parts(parse_target(one.target, task)))
            guess = set(_parts(parse_prediction(one.prediction, task)))
        except (TypeError, ValueError):
            continue
        true.update(_label(part) for part in target)
        predicted.update(_label(part) for part in guess)
        hits.update(_label(part) for part in target & guess)
    names = sorted(true | predicted, key=lambda name: (-true[name], name))
    return tuple(LabelScore(name, true[name], predicted[name], hits[name]) for name in names)


def _parts(value: Target) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else ()


def _label(part: Any) -> str:
    return str(part.label if isinstance(part, Span) else part)

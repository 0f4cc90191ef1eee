"""The core's metrics: functions of :class:`~trunkline.contracts.Scored` that return a float.

They use numpy alone and avoid sorting, because a bootstrap interval calls each one 1,000 times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from trunkline.contracts import MetricSpec, Scored, Task


def accuracy(scored: Scored) -> float:
    """Share of rows whose prediction is the target."""
    import numpy as np

    return float(np.mean(np.asarray(scored.targets) == np.asarray(scored.predictions)))


def macro_f1(scored: Scored) -> float:
    """Mean of 2·TP / (2·TP + FP + FN) over the labels that occur."""
    import numpy as np

    targets, predictions = _codes(scored)
    size = int(max(targets.max(), predictions.max())) + 1
    hits = np.bincount(targets[targets == predictions], minlength=size)
    total = np.bincount(targets, minlength=size) + np.bincount(predictions, minlength=size)
    seen = total > 0
    return float(np.mean(2 * hits[seen] / total[seen]))


def balanced_accuracy(scored: Scored) -> float:
    """Mean recall over the labels that occur in the targets."""
    import numpy as np

    targets, predictions = _codes(scored)
    size = int(max(targets.max(), predictions.max())) + 1
    hits = np.bincount(targets[targets == predictions], minlength=size)
    counts = np.bincount(targets, minlength=size)
    seen = counts > 0
    return float(np.mean(hits[seen] / counts[seen]))


def exact_match(scored: Scored) -> float:
    """Share of answers equal to the target, ignoring case and repeated white space."""
    pairs = zip(scored.targets, scored.predictions, strict=True)
    return sum(_same(str(one), str(other)) for one, other in pairs) / len(scored.targets)


def mean_absolute_error(scored: Scored) -> float:
    """Mean of |prediction - target|, in the dataset's unit."""
    import numpy as np

    return float(np.mean(np.abs(_floats(scored.predictions) - _floats(scored.targets))))


def median_ape(scored: Scored) -> float:
    """Median absolute percentage error: of |prediction - target| / |target|, as a fraction.

    For a target of 0 the error is 0 if the prediction is 0 too, else infinite.
    """
    import numpy as np

    targets = _floats(scored.targets)
    errors = np.abs(_floats(scored.predictions) - targets)
    sizes = np.abs(targets)
    shares = np.where(errors > 0, np.inf, 0.0)
    np.divide(errors, sizes, out=shares, where=sizes > 0)
    return float(np.median(shares))


def r_squared(scored: Scored) -> float:
    """1 - residual / total sum of squares; 0 if all targets are equal."""
    targets = _floats(scored.targets)
    total = float(((targets - targets.mean()) ** 2).sum())
    residual = float(((targets - _floats(scored.predictions)) ** 2).sum())
    return 1 - residual / total if total > 0 else 0.0


def micro_f1(scored: Scored) -> float:
    """2·TP / (2·TP + FP + FN) over all labels of all rows; 1 if there are none at all."""
    return _f1(*_overlaps(scored))


def multilabel_macro_f1(scored: Scored) -> float:
    """Mean F1 over the labels that occur in targets or predictions."""
    hits: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for target, prediction in zip(scored.targets, scored.predictions, strict=True):
        hits.update(set(target) & set(prediction))
        total.update([*target, *prediction])
    return sum(2 * hits[label] / count for label, count in total.items()) / max(1, len(total))


def subset_accuracy(scored: Scored) -> float:
    """Share of rows with exactly the target's labels."""
    pairs = zip(scored.targets, scored.predictions, strict=True)
    return sum(bool(one == other) for one, other in pairs) / len(scored.targets)


def entity_f1(scored: Scored) -> float:
    """F1 over spans with the right start, end and label (Tjong Kim Sang & De Meulder 2003)."""
    return _f1(*_overlaps(scored))


def entity_precision(scored: Scored) -> float:
    """Share of the predicted spans that are right; 0 if none is predicted."""
    hits, _, predicted = _overlaps(scored)
    return hits / predicted if predicted else 0.0


def entity_recall(scored: Scored) -> float:
    """Share of the true spans that are predicted; 0 if there are none."""
    hits, true, _ = _overlaps(scored)
    return hits / true if true else 0.0


def mrr(scored: Scored) -> float:
    """Mean reciprocal rank of the relevant candidate (Voorhees 1999); 0 where it is not ranked."""
    return sum(1 / rank if (rank := _rank(*pair)) else 0.0 for pair in _pairs(scored)) / len(
        scored.targets
    )


def recall_at_1(scored: Scored) -> float:
    """Share of rows whose best candidate is the relevant one."""
    return _recall(scored, 1)


def recall_at_5(scored: Scored) -> float:
    """Share of rows with the relevant candidate among the best five."""
    return _recall(scored, 5)


def _spec(name: str, task: Task, compute: Any, higher: bool = True) -> MetricSpec:
    description = (compute.__doc__ or "").split("\n")[0].rstrip(".")
    return MetricSpec(
        name=name, description=description, task=task, compute=compute, higher_is_better=higher
    )


METRICS: dict[str, MetricSpec] = {
    spec.name: spec
    for spec in (
        _spec("accuracy", "classification", accuracy),
        _spec("macro_f1", "classification", macro_f1),
        _spec("balanced_accuracy", "classification", balanced_accuracy),
        _spec("micro_f1", "multilabel", micro_f1),
        _spec("multilabel_macro_f1", "multilabel", multilabel_macro_f1),
        _spec("subset_accuracy", "multilabel", subset_accuracy),
        _spec("exact_match", "generation", exact_match),
        _spec("mae", "regression", mean_absolute_error, higher=False),
        _spec("median_ape", "regression", median_ape, higher=False),
        _spec("r_squared", "regression", r_squared),
        _spec("entity_f1", "tagging", entity_f1),
        _spec("entity_precision", "tagging", entity_precision),
        _spec("entity_recall", "tagging", entity_recall),
        _spec("mrr", "ranking", mrr),
        _spec("recall_at_1", "ranking", recall_at_1),
        _spec("recall_at_5", "ranking", recall_at_5),
    )
}
"""Registered by the plugin ``core``; by name, in the order of listings."""


def _codes(scored: Scored) -> tuple[Any, Any]:
    """Targets and predictions as small integers, in the labels' alphabetical order.

    A dict instead of ``numpy.unique``, which would sort every row of every draw.
    """
    import numpy as np

    targets, predictions = list(scored.targets), list(scored.predictions)
    code = {label: index for index, label in enumerate(sorted({*targets, *predictions}))}
    return (
        np.fromiter((code[label] for label in targets), dtype=np.intp, count=len(targets)),
        np.fromiter((code[label] for label in predictions), dtype=np.intp, count=len(predictions)),
    )


def _pairs(scored: Scored) -> Iterator[tuple[Any, Any]]:
    return zip(scored.targets, scored.predictions, strict=True)


def _overlaps(scored: Scored) -> tuple[int, int, int]:
    """Labels or spans that are in target and prediction, in the target, in the prediction."""
    hits = true = predicted = 0
    for target, prediction in _pairs(scored):
        hits += _shared(target, prediction)
        true += len(target)
        predicted += len(prediction)
    return hits, true, predicted


def _f1(hits: int, true: int, predicted: int) -> float:
    return 2 * hits / (true + predicted) if true + predicted else 1.0


def _recall(scored: Scored, count: int) -> float:
    return sum(0 < _rank(*pair) <= count for pair in _pairs(scored)) / len(scored.targets)


@lru_cache(maxsize=65_536)
def _shared(one: tuple[Any, ...], other: tuple[Any, ...]) -> int:
    """How many labels or spans two rows share; cached like :func:`_same`."""
    return len(set(one) & set(other))


@lru_cache(maxsize=65_536)
def _rank(target: str, candidates: tuple[str, ...]) -> int:
    """The place of the target among the candidates, from 1; 0 if it is not there."""
    return candidates.index(target) + 1 if target in candidates else 0


def _floats(values: Any) -> Any:
    import numpy as np

    return np.asarray(values, dtype=float)


@lru_cache(maxsize=65_536)
def _same(one: str, other: str) -> bool:
    """Cached, because an interval compares the same pairs 1,000 times."""
    return " ".join(one.lower().split()) == " ".join(other.lower().split())

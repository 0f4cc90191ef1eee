"""Calibration of a classifier's probabilities, and the thresholds below which it abstains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BINS = 15
MIN_ROWS = 50
"""With fewer validation rows neither a temperature nor a threshold is fitted."""

MIN_ANSWERED = 20
"""A threshold that leaves fewer validation rows says nothing about a precision."""

_PERCENT = range(50, 100)
_SHOWN = (0.9, 0.95, 0.99)
_TEMPERATURES = (0.2, 10.0)


@dataclass(frozen=True, slots=True)
class Abstention:
    """What a threshold gives on test rows.

    Attributes:
        wanted: the precision that the threshold was chosen for, on validation rows.
        threshold: the lowest probability of an answer.
        answered: share of the test rows that are answered.
        precision: share of right labels among them; None if none is answered.
    """

    wanted: float
    threshold: float
    answered: float
    precision: float | None


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """How far probabilities can be believed, on test rows.

    Attributes:
        temperature: what the logits were divided by; fitted on validation rows.
        error, error_before: expected calibration error with and without it.
        abstention: for some wanted precisions that the validation rows reach.
    """

    temperature: float
    error: float
    error_before: float
    abstention: tuple[Abstention, ...]


def fit_temperature(logits: Any, targets: Any) -> float:
    """The temperature of least negative log likelihood (Guo et al. 2017, section 4.2).

    Args:
        logits: ``[rows, labels]``.
        targets: ``[rows]`` label indices.

    Returns:
        A number from 0.2 to 10.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logits, targets = np.asarray(logits, dtype=float), np.asarray(targets)
    rows = np.arange(len(targets))

    def loss(exponent: float) -> float:
        return -float(log_softmax(logits / np.exp(exponent), axis=-1)[rows, targets].mean())

    low, high = np.log(_TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


def expected_calibration_error(confidences: Any, right: Any) -> float:
    """Mean of |accuracy - confidence| over 15 bins of equal width (Guo et al. 2017, equation 3).

    Args:
        confidences: ``[rows]``, the probability of each predicted label.
        right: ``[rows]``, whether it is right.
    """
    import numpy as np

    values, hits = np.asarray(confidences, dtype=float), np.asarray(right, dtype=float)
    bins = np.clip(np.ceil(values * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    gaps = np.bincount(bins, hits - values, BINS)
    return float(np.abs(gaps[counts > 0]).sum() / len(values))


def abstention_thresholds(confidences: Any, right: Any) -> dict[str, float]:
    """Wanted precision in percent → the lowest confidence at which the rows above it reach it.

    Percentages that no threshold with :data:`MIN_ANSWERED` rows reaches are left out.
    """
    import numpy as np

    values, hits = np.asarray(confidences, dtype=float), np.asarray(right, dtype=float)
    order = np.argsort(-values, kind="stable")
    values, hits = values[order], hits[order]
    precision = np.cumsum(hits) / np.arange(1, len(values) + 1)
    # Rows of equal confidence are answered together
    usable = np.append(values[1:] < values[:-1], True)
    usable &= np.arange(1, len(values) + 1) >= MIN_ANSWERED
    thresholds: dict[str, float] = {}
    for percent in _PERCENT:
        reached = np.flatnonzero(usable & (precision >= percent / 100))
        if len(reached):
            thresholds[str(percent)] = float(values[reached[-1]])
    return thresholds


def calibration_report(
    temperature: float,
    thresholds: Mapping[str, float],
    probabilities: Sequence[Sequence[float]],
    right: Sequence[bool],
) -> CalibrationReport:
    """Measure on test rows.

    Args:
        temperature: that the probabilities were made with.
        thresholds: wanted precision in percent → lowest confidence of an answer.
        probabilities: ``[rows, labels]``.
        right: whether the likeliest label of each row is right.
    """
    import numpy as np

    table, hits = np.asarray(probabilities, dtype=float), np.asarray(right, dtype=bool)
    confidences = table.max(-1)
    powers = np.maximum(table, 1e-300) ** temperature  # softmax(z) from softmax(z / T)
    before = powers.max(-1) / powers.sum(-1)
    abstention = []
    for wanted in _SHOWN:
        threshold = thresholds.get(str(round(100 * wanted)))
        if threshold is None:
            continue
        answered = confidences >= threshold
        precision = float(hits[answered].mean()) if answered.any() else None
        abstention.append(Abstention(wanted, threshold, float(answered.mean()), precision))
    return CalibrationReport(
        temperature,
        expected_calibration_error(confidences, hits),
        expected_calibration_error(before, hits),
        tuple(abstention),
    )

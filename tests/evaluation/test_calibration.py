"""Temperatures, calibration errors and abstention thresholds against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from trunkline.evaluation.calibration import (
    MIN_ANSWERED,
    abstention_thresholds,
    calibration_report,
    expected_calibration_error,
    fit_temperature,
)

quick = settings(max_examples=60, deadline=None)
rows = st.lists(st.tuples(st.floats(0.01, 1.0), st.booleans()), min_size=1, max_size=120)


def drawn(temperature: float, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that follow their probabilities at a temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(count, 5)) * 3
    odds = softmax(logits / temperature, axis=-1)
    return logits, np.array([rng.choice(5, p=row) for row in odds])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_drew_the_labels_is_recovered(temperature: float) -> None:
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.1)


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_a_large_one() -> None:
    logits, targets = drawn(2.5)
    right = logits.argmax(-1) == targets
    before = expected_calibration_error(softmax(logits, -1).max(-1), right)
    after = expected_calibration_error(softmax(logits / 2.5, -1).max(-1), right)
    assert after < 0.03 < 0.1 < before


@quick
@given(rows)
def test_the_error_is_the_weighted_gap_of_fifteen_bins(values: list[tuple[float, bool]]) -> None:
    expected = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = [(c, hit) for c, hit in values if low < c <= high]
        if inside:
            gap = sum(hit for _, hit in inside) - sum(c for c, _ in inside)
            expected += abs(gap) / len(values)
    confidences, right = zip(*values, strict=True)
    assert expected_calibration_error(confidences, right) == pytest.approx(expected, abs=1e-9)


@quick
@given(rows)
def test_a_threshold_is_the_lowest_that_reaches_the_precision(
    values: list[tuple[float, bool]],
) -> None:
    confidences, right = (list(column) for column in zip(*values, strict=True))
    thresholds = abstention_thresholds(confidences, right)

    def precision(threshold: float) -> float | None:
        hits = [hit for c, hit in values if c >= threshold]
        return sum(hits) / len(hits) if len(hits) >= MIN_ANSWERED else None

    for percent in range(50, 100):
        reached = [c for c in confidences if (precision(c) or 0) >= percent / 100]
        assert thresholds.get(str(percent)) == (min(reached) if reached else None)


def test_the_report_measures_both_errors_and_the_abstention() -> None:
    logits, targets = drawn(2.0, 1000)
    table = softmax(logits / 2.0, -1)
    right = table.argmax(-1) == targets
    thresholds = abstention_thresholds(table.max(-1), right)
    report = calibration_report(2.0, thresholds, table.tolist(), right.tolist())
    assert report.error == pytest.approx(expected_calibration_error(table.max(-1), right))
    plain = softmax(logits, -1).max(-1)
    assert report.error_before == pytest.approx(expected_calibration_error(plain, right))
    assert [one.wanted for one in report.abstention] == [0.9, 0.95, 0.99]
    for one in report.abstention:
        assert one.precision is not None
        assert one.precision >= one.wanted
        assert one.answered == pytest.approx((table.max(-1) >= one.threshold).mean())

"""The share of predictions within the tolerance, computed by hand."""

from __future__ import annotations

import pytest

from trunkline.contracts import Scored
from trunkline_retail.metrics import within_25_percent


def test_share_by_hand() -> None:
    scored = Scored(targets=[4.0, 4.0, 1.0, 10.0], predictions=[4.9, 5.1, 0.5, 8.0])
    assert within_25_percent(scored) == 0.5


@pytest.mark.parametrize("prediction", [3.0, 5.0])
def test_an_error_of_exactly_25_percent_counts(prediction: float) -> None:
    assert within_25_percent(Scored(targets=[4.0], predictions=[prediction])) == 1.0


def test_the_tolerance_is_a_share_of_the_true_price() -> None:
    assert within_25_percent(Scored(targets=[4.0], predictions=[5.2])) == 0.0


def test_nan_is_never_within_the_tolerance() -> None:
    assert within_25_percent(Scored(targets=[4.0], predictions=[float("nan")])) == 0.0

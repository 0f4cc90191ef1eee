"""The share of prices that are near enough, by hand."""

from __future__ import annotations

import pytest

from trunkline.contracts import Scored
from trunkline_retail.metrics import within_25_percent


def test_share_by_hand() -> None:
    scored = Scored(targets=[4.0, 4.0, 1.0, 10.0], predictions=[4.9, 5.1, 0.5, 8.0])
    assert within_25_percent(scored) == 0.5


@pytest.mark.parametrize("prediction", [3.0, 5.0])
def test_exactly_25_percent_off_counts_as_near(prediction: float) -> None:
    assert within_25_percent(Scored(targets=[4.0], predictions=[prediction])) == 1.0


def test_the_share_is_of_the_true_price_not_of_the_prediction() -> None:
    assert within_25_percent(Scored(targets=[4.0], predictions=[5.2])) == 0.0


def test_no_number_is_never_near() -> None:
    assert within_25_percent(Scored(targets=[4.0], predictions=[float("nan")])) == 0.0

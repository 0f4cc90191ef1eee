"""Comparing the stored predictions of two versions on the same rows."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from trunkline.errors import DataError
from trunkline.evaluation.intervals import MIN_GROUPS, compare_predictions
from trunkline.evaluation.metrics import METRICS
from trunkline.registry.records import PredictionRecord

ACCURACY, MAE = METRICS["accuracy"], METRICS["mae"]


def predicted(right: int, rows: int = 40, groups: int = 20) -> list[PredictionRecord]:
    """Predictions of which the first ``right`` are right."""
    return [
        PredictionRecord(
            row_id=f"r{index:03}",
            group=f"g{index % groups}",
            target="bird",
            prediction="bird" if index < right else "fish",
        )
        for index in range(rows)
    ]


def test_difference_is_that_of_the_scores() -> None:
    comparison = compare_predictions(ACCURACY, predicted(30), predicted(20))
    assert (comparison.rows, comparison.groups) == (40, 20)
    assert comparison.difference.value == pytest.approx(0.25)
    assert comparison.difference.low <= 0.25 <= comparison.difference.high


@pytest.mark.parametrize(
    ("first", "second", "verdict"), [(40, 0, "beats"), (20, 20, "ties"), (0, 40, "loses")]
)
def test_verdict_says_where_the_interval_lies(first: int, second: int, verdict: str) -> None:
    assert compare_predictions(ACCURACY, predicted(first), predicted(second)).verdict == verdict


def test_few_groups_give_no_verdict() -> None:
    few = MIN_GROUPS - 1
    first, second = predicted(40, groups=few), predicted(0, groups=few)
    assert compare_predictions(ACCURACY, first, second).verdict == "ties"


def test_order_of_the_rows_does_not_matter() -> None:
    shuffled = predicted(20)
    random.Random(1).shuffle(shuffled)
    assert compare_predictions(ACCURACY, predicted(30), shuffled) == compare_predictions(
        ACCURACY, predicted(30), predicted(20)
    )


def test_numbers_are_compared_as_numbers() -> None:
    first = [replace(row, target="10.0", prediction="9") for row in predicted(0)]
    second = [replace(row, target="10.0", prediction="1e1") for row in predicted(0)]
    assert compare_predictions(MAE, first, second).difference.value == 1.0


def test_other_rows_are_refused() -> None:
    second = [replace(row, row_id=f"x{row.row_id}") for row in predicted(20)]
    with pytest.raises(DataError, match="the rows differ: 40 and 40, of which 0 are the same"):
        compare_predictions(ACCURACY, predicted(20), second)


def test_fewer_rows_are_refused() -> None:
    with pytest.raises(DataError, match="40 and 39"):
        compare_predictions(ACCURACY, predicted(20), predicted(20)[:-1])


@pytest.mark.parametrize("change", [{"target": "fish"}, {"group": "g99"}])
def test_another_target_or_group_is_refused(change: dict[str, str]) -> None:
    second = predicted(20)
    second[3] = replace(second[3], **change)
    with pytest.raises(DataError, match="of which 39 are the same"):
        compare_predictions(ACCURACY, predicted(20), second)


def test_missing_predictions_are_refused() -> None:
    with pytest.raises(DataError, match="no predictions are stored"):
        compare_predictions(ACCURACY, predicted(20), [])

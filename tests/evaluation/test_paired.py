"""Two versions' kept predictions on the same rows."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from trunkline.errors import DataError
from trunkline.evaluation.intervals import LEAST_GROUPS
from trunkline.evaluation.metrics import METRICS
from trunkline.evaluation.paired import compare
from trunkline.registry.records import PredictionRecord

ACCURACY, MAE = METRICS["accuracy"], METRICS["mae"]


def said(right: int, rows: int = 40, groups: int = 20) -> list[PredictionRecord]:
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
    found = compare(ACCURACY, said(30), said(20))
    assert (found.rows, found.groups) == (40, 20)
    assert found.difference.value == pytest.approx(0.25)
    assert found.difference.low <= 0.25 <= found.difference.high


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"), [(40, 0, "beats"), (20, 20, "ties"), (0, 40, "loses")]
)
def test_verdict_says_where_the_interval_lies(ours: int, theirs: int, verdict: str) -> None:
    assert compare(ACCURACY, said(ours), said(theirs)).verdict == verdict


def test_few_groups_give_no_verdict() -> None:
    few = LEAST_GROUPS - 1
    assert compare(ACCURACY, said(40, groups=few), said(0, groups=few)).verdict == "ties"


def test_order_of_the_rows_does_not_matter() -> None:
    shuffled = said(20)
    random.Random(1).shuffle(shuffled)
    assert compare(ACCURACY, said(30), shuffled) == compare(ACCURACY, said(30), said(20))


def test_numbers_are_compared_as_numbers() -> None:
    ours = [replace(row, target="10.0", prediction="9") for row in said(0)]
    theirs = [replace(row, target="10.0", prediction="1e1") for row in said(0)]
    assert compare(MAE, ours, theirs).difference.value == 1.0


def test_other_rows_are_refused() -> None:
    theirs = [replace(row, row_id=f"x{row.row_id}") for row in said(20)]
    with pytest.raises(DataError, match="the rows differ: 40 and 40, of which 0 are the same"):
        compare(ACCURACY, said(20), theirs)


def test_fewer_rows_are_refused() -> None:
    with pytest.raises(DataError, match="40 and 39"):
        compare(ACCURACY, said(20), said(20)[:-1])


@pytest.mark.parametrize("change", [{"target": "fish"}, {"group": "g99"}])
def test_another_target_or_group_is_refused(change: dict[str, str]) -> None:
    theirs = said(20)
    theirs[3] = replace(theirs[3], **change)
    with pytest.raises(DataError, match="of which 39 are the same"):
        compare(ACCURACY, said(20), theirs)


def test_predictions_that_were_not_kept_are_told() -> None:
    with pytest.raises(DataError, match="no predictions are kept"):
        compare(ACCURACY, said(20), [])

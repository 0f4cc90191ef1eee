"""Two predictors on the same rows: differences, McNemar's test, rows that flipped."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from trunkline.evaluation.comparison import McNemar, PairedRows, compare
from trunkline.evaluation.metrics import METRICS

quick = settings(max_examples=60, deadline=None)
ACCURACY, MACRO, MAE = METRICS["accuracy"], METRICS["macro_f1"], METRICS["mae"]


@quick
@given(st.integers(0, 60), st.integers(0, 60))
def test_the_p_value_is_that_of_the_exact_binomial_test(gained: int, lost: int) -> None:
    test = McNemar.of(gained, lost)
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert test.p_value == pytest.approx(expected, rel=1e-9)


def test_thousands_of_rows_do_not_overflow() -> None:
    assert McNemar.of(40_000, 40_000).p_value == 1.0
    assert 0.0 <= McNemar.of(30_000, 20_000).p_value < 1e-300


def test_flipped_rows_are_named_both_ways() -> None:
    rows = PairedRows(
        ids=[f"r{number}" for number in range(8)],
        groups=[f"g{number}" for number in range(8)],
        targets=list("aabbaabb"),
        first=list("aabbbabb"),
        second=list("bbbbaabb"),
    )
    result = compare(rows, "other@1", [ACCURACY, MACRO], ("a", "b"))
    assert (result.gained, result.lost) == (("r0", "r1"), ("r4",))
    assert result.mcnemar == McNemar.of(2, 1)
    assert list(result.differences) == ["accuracy", "macro_f1"]
    difference = result.differences["accuracy"]
    assert difference.value == pytest.approx(1 / 8)
    assert difference.low <= 0 <= difference.high
    assert (result.verdict, result.groups) == ("ties", 8)


def test_a_regression_has_no_rows_that_are_right() -> None:
    rows = PairedRows(
        ids=[f"r{number}" for number in range(8)],
        groups=[f"g{number}" for number in range(8)],
        targets=[float(number) for number in range(8)],
        first=[number + 0.1 for number in range(8)],
        second=[number + 2.0 for number in range(8)],
    )
    result = compare(rows, "linear", [MAE])
    assert (result.mcnemar, result.gained, result.lost) == (None, (), ())
    assert result.verdict == "beats"
    assert result.differences["mae"].value == pytest.approx(-1.9)

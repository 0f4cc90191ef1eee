"""The gate's conditions, each with its figures."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trunkline.contracts import Gate
from trunkline.errors import UsageError
from trunkline.evaluation.gates import (
    MIN_SLICE_ROWS,
    GateCheck,
    check_champion,
    check_gate,
    pass_without_champion,
    tighten,
)
from trunkline.evaluation.intervals import Estimate, PairedComparison
from trunkline.evaluation.report import EvaluationReport, SliceScore
from trunkline.workspace import GateSettings


def evaluation_report(
    verdict: str = "beats", score: float = 0.8, **fields: Any
) -> EvaluationReport:
    given: dict[str, Any] = {
        "metric": "accuracy",
        "higher_is_better": True,
        "rows": 100,
        "groups": 50,
        "scores": {"accuracy": Estimate(score, score - 0.1, score + 0.1)},
        "baselines": {"tfidf": {"accuracy": Estimate(0.7, 0.6, 0.8)}},
        "baseline_details": {"tfidf": ""},
        "best_baseline": "tfidf",
        "difference": Estimate(0.1, 0.02, 0.18),
        "verdict": verdict,
        "slices": (),
    }
    return EvaluationReport(**(given | fields))


@pytest.mark.parametrize(
    ("verdict", "passed"), [("beats", True), ("ties", False), ("loses", False)]
)
def test_baseline_must_be_beaten(verdict: str, passed: bool) -> None:
    (check,) = check_gate(Gate(metric="accuracy"), evaluation_report(verdict))

    assert (check.name, check.passed) == ("beats the baseline", passed)


def test_figures_are_reported() -> None:
    (check,) = check_gate(Gate(metric="accuracy"), evaluation_report())

    assert check.figures == "accuracy minus that of tfidf: +0.100 [+0.020, +0.180]"


def test_too_few_groups_are_reported() -> None:
    (check,) = check_gate(Gate(metric="accuracy"), evaluation_report("ties", groups=3))

    assert check.figures.endswith("3 groups where 6 are needed")


@pytest.mark.parametrize(("bound", "passed"), [(0.79, True), (0.8, True), (0.81, False)])
def test_score_must_reach_the_bound(bound: float, passed: bool) -> None:
    gate = Gate(metric="accuracy", beats_baseline=False, at_least=bound)
    (check,) = check_gate(gate, evaluation_report("loses"))

    assert (check.name, check.passed) == (f"at least {bound:g}", passed)
    assert check.figures == "accuracy: 0.800"


@pytest.mark.parametrize(("bound", "passed"), [(0.81, True), (0.8, True), (0.79, False)])
def test_error_must_stay_below_the_bound(bound: float, passed: bool) -> None:
    gate = Gate(metric="accuracy", beats_baseline=False, at_least=bound)
    (check,) = check_gate(gate, evaluation_report(higher_is_better=False))

    assert (check.name, check.passed) == (f"at most {bound:g}", passed)


def test_both_conditions_are_reported_separately() -> None:
    checks = check_gate(Gate(metric="accuracy", at_least=0.9), evaluation_report())

    assert [check.passed for check in checks] == [True, False]


def test_gate_without_conditions_is_always_met() -> None:
    assert (
        check_gate(Gate(metric="accuracy", beats_baseline=False), evaluation_report("loses")) == ()
    )


# -------------------------------------------------------------------------------------- slices


def sliced(*rows_and_scores: tuple[int, float], **fields: Any) -> EvaluationReport:
    slices = tuple(
        SliceScore("country", f"c{index}", rows, score)
        for index, (rows, score) in enumerate(rows_and_scores)
    )
    return evaluation_report(slices=slices, **fields)


def slice_check(bound: float, evaluated: EvaluationReport) -> GateCheck:
    gate = Gate(metric="accuracy", beats_baseline=False, slices_at_least=bound)
    (check,) = check_gate(gate, evaluated)
    return check


@pytest.mark.parametrize(("bound", "passed"), [(0.3, True), (0.4, True), (0.41, False)])
def test_worst_slice_must_reach_the_bound(bound: float, passed: bool) -> None:
    check = slice_check(bound, sliced((50, 0.9), (31, 0.4), (20, 0.6)))

    assert (check.name, check.passed) == (f"every slice at least {bound:g}", passed)
    assert check.figures == "worst of 3: country=c1 accuracy 0.400 on 31 rows"


def test_worst_slice_of_an_error_is_the_largest() -> None:
    check = slice_check(0.5, sliced((50, 0.9), (31, 0.4), higher_is_better=False))

    assert (check.name, check.passed) == ("every slice at most 0.5", False)
    assert "country=c0 accuracy 0.900" in check.figures


def test_number_of_failing_slices_is_reported() -> None:
    assert "; 2 fail" in slice_check(0.8, sliced((50, 0.9), (31, 0.4), (30, 0.5))).figures


def test_small_slice_is_named_but_does_not_decide() -> None:
    check = slice_check(0.5, sliced((50, 0.9), (MIN_SLICE_ROWS - 1, 0.0), (1, 1.0)))

    assert check.passed
    assert check.figures.endswith(
        "too small to decide: country=c1 accuracy 0.000 on 19 rows, "
        "country=c2 accuracy 1.000 on 1 row"
    )


def test_no_slice_large_enough_is_reported() -> None:
    check = slice_check(0.5, sliced((3, 0.0)))

    assert check.passed
    assert check.figures.startswith(f"no slice has {MIN_SLICE_ROWS} rows; too small")


def test_dataset_without_slices_is_reported() -> None:
    assert slice_check(0.5, evaluation_report()) == GateCheck(
        "every slice at least 0.5", True, "the dataset has no slices"
    )


# ------------------------------------------------------------------------------------ champion


BEATS = Gate(metric="accuracy", beats_baseline=False, beats_champion=True)


def within(margin: float) -> Gate:
    return Gate(metric="accuracy", beats_baseline=False, champion_margin=margin)


def beside(verdict: str, low: float, high: float, groups: int = 50) -> PairedComparison:
    return PairedComparison(100, groups, Estimate((low + high) / 2, low, high), verdict)


@pytest.mark.parametrize(
    ("expected", "passed"),
    [
        (beside("beats", 0.01, 0.1), True),
        (beside("ties", -0.01, 0.1), False),
        (beside("loses", -0.2, -0.1), False),
    ],
)
def test_champion_must_be_beaten(expected: PairedComparison, passed: bool) -> None:
    (check,) = check_champion(BEATS, evaluation_report(), "a/b@1", expected)

    assert (check.name, check.passed) == ("beats the champion", passed)


def test_figures_of_the_comparison_with_the_champion_are_reported() -> None:
    (check,) = check_champion(BEATS, evaluation_report(), "a/b@1", beside("beats", 0.01, 0.09))

    assert check.figures == "accuracy minus that of a/b@1: +0.050 [+0.010, +0.090] on 100 rows"


@pytest.mark.parametrize(("low", "passed"), [(-0.01, True), (-0.02, True), (-0.021, False)])
def test_interval_must_stay_above_the_margin(low: float, passed: bool) -> None:
    (check,) = check_champion(within(0.02), evaluation_report(), "a/b@1", beside("ties", low, 0.1))

    assert (check.name, check.passed) == (
        "no worse than the champion by more than 0.02",
        passed,
    )


@pytest.mark.parametrize(("high", "passed"), [(2.0, True), (3.5, False)])
def test_error_may_grow_by_the_margin(high: float, passed: bool) -> None:
    errors = evaluation_report(higher_is_better=False)
    (check,) = check_champion(within(3), errors, "a/b@1", beside("ties", -9.0, high))

    assert check.passed is passed


def test_few_groups_do_not_show_that_it_is_no_worse() -> None:
    few = beside("ties", 0.0, 0.1, groups=5)
    (check,) = check_champion(within(0.5), evaluation_report(), "a/b@1", few)

    assert not check.passed
    assert check.figures.endswith("5 groups where 6 are needed")


def test_what_cannot_be_compared_fails_and_says_why() -> None:
    both = Gate(metric="accuracy", beats_champion=True, champion_margin=0.1)
    checks = check_champion(both, evaluation_report(), "a/b@1", "the rows differ")

    assert [(check.passed, check.figures) for check in checks] == [
        (False, "a/b@1: the rows differ")
    ] * 2


def test_without_a_champion_its_conditions_are_met() -> None:
    assert pass_without_champion(BEATS, "there is no champion") == (
        GateCheck("beats the champion", True, "there is no champion"),
    )


# --------------------------------------------------------------------------------- tightening


@pytest.mark.parametrize("name", ["beats_baseline", "beats_champion", "two_persons"])
@pytest.mark.parametrize(("recipe", "workspace"), [(True, False), (False, True), (True, True)])
def test_either_side_may_demand_it(name: str, recipe: bool, workspace: bool) -> None:
    gate = Gate(**{"metric": "accuracy", "beats_baseline": False, name: recipe})

    assert getattr(tighten(gate, GateSettings(**{name: workspace})), name) is True


def test_nothing_demanded_changes_nothing() -> None:
    gate = Gate(metric="accuracy", beats_baseline=False, at_least=0.5, slices_at_least=0.1)

    assert tighten(gate, GateSettings()) == gate


@pytest.mark.parametrize(
    ("recipe", "workspace", "expected"), [(None, 0.1, 0.1), (0.2, 0.1, 0.1), (0.05, 0.1, 0.05)]
)
def test_smaller_margin_counts(recipe: float | None, workspace: float, expected: float) -> None:
    gate = Gate(metric="accuracy", champion_margin=recipe)

    assert tighten(gate, GateSettings(champion_margin=workspace)).champion_margin == expected


@pytest.mark.parametrize(("higher", "expected"), [(True, 0.4), (False, 0.3)])
def test_stricter_bound_on_slices_counts(higher: bool, expected: float) -> None:
    gate = Gate(metric="accuracy", slices_at_least=0.3)
    demanded = GateSettings(slices_at_least=0.4)

    assert tighten(gate, demanded, higher_is_better=higher).slices_at_least == expected


@pytest.mark.parametrize(
    "demanded",
    [{"champion_margin": -0.1}, {"champion_margin": math.nan}, {"slices_at_least": math.inf}],
)
def test_impossible_setting_is_refused(demanded: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(demanded))):
        tighten(Gate(metric="accuracy", champion_margin=0.0), GateSettings(**demanded))

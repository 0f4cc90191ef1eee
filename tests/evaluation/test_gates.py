"""The gate's conditions, each with its figures."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline.contracts import Gate
from trunkline.evaluation.gates import check_gate
from trunkline.evaluation.intervals import Estimate
from trunkline.evaluation.judgement import Judgement


def judgement(verdict: str = "beats", score: float = 0.8, **fields: Any) -> Judgement:
    given: dict[str, Any] = {
        "metric": "accuracy",
        "higher_is_better": True,
        "rows": 100,
        "groups": 50,
        "scores": {"accuracy": Estimate(score, score - 0.1, score + 0.1)},
        "floors": {"tfidf": {"accuracy": Estimate(0.7, 0.6, 0.8)}},
        "floor_details": {"tfidf": ""},
        "best_floor": "tfidf",
        "difference": Estimate(0.1, 0.02, 0.18),
        "verdict": verdict,
        "slices": (),
    }
    return Judgement(**(given | fields))


@pytest.mark.parametrize(
    ("verdict", "passed"), [("beats", True), ("ties", False), ("loses", False)]
)
def test_floor_must_be_beaten(verdict: str, passed: bool) -> None:
    (check,) = check_gate(Gate(metric="accuracy"), judgement(verdict))

    assert (check.name, check.passed) == ("beats the floor", passed)


def test_figures_are_told() -> None:
    (check,) = check_gate(Gate(metric="accuracy"), judgement())

    assert check.figures == "accuracy minus that of tfidf: +0.100 [+0.020, +0.180]"


def test_too_few_groups_are_told() -> None:
    (check,) = check_gate(Gate(metric="accuracy"), judgement("ties", groups=3))

    assert check.figures.endswith("3 groups where 6 are needed")


@pytest.mark.parametrize(("bound", "passed"), [(0.79, True), (0.8, True), (0.81, False)])
def test_score_must_reach_the_bound(bound: float, passed: bool) -> None:
    gate = Gate(metric="accuracy", beats_floor=False, at_least=bound)
    (check,) = check_gate(gate, judgement("loses"))

    assert (check.name, check.passed) == (f"at least {bound:g}", passed)
    assert check.figures == "accuracy: 0.800"


@pytest.mark.parametrize(("bound", "passed"), [(0.81, True), (0.8, True), (0.79, False)])
def test_error_must_stay_below_the_bound(bound: float, passed: bool) -> None:
    gate = Gate(metric="accuracy", beats_floor=False, at_least=bound)
    (check,) = check_gate(gate, judgement(higher_is_better=False))

    assert (check.name, check.passed) == (f"at most {bound:g}", passed)


def test_both_conditions_are_told_each_by_itself() -> None:
    checks = check_gate(Gate(metric="accuracy", at_least=0.9), judgement())

    assert [check.passed for check in checks] == [True, False]


def test_gate_without_conditions_is_always_met() -> None:
    assert check_gate(Gate(metric="accuracy", beats_floor=False), judgement("loses")) == ()

"""Intervals that resample groups, paired differences, and the verdict on them."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.contracts import MetricSpec, Scored
from trunkline.errors import PluginError
from trunkline.evaluation.intervals import (
    MIN_GROUPS,
    Estimate,
    estimate,
    group_draws,
    paired_difference,
    verdict,
)
from trunkline.evaluation.metrics import METRICS

few = settings(max_examples=8, deadline=None)
ACCURACY, MAE = METRICS["accuracy"], METRICS["mae"]

seeds = st.integers(0, 10**6)


def made_scored(seed: int, rows: int = 60, right: float = 0.7) -> Scored:
    """Random targets of three labels, and predictions that are often right."""
    rng = random.Random(seed)
    targets = [rng.choice("abc") for _ in range(rows)]
    predictions = [one if rng.random() < right else rng.choice("abc") for one in targets]
    return Scored(targets=targets, predictions=predictions, labels=("a", "b", "c"))


def alone(scored: Scored) -> list[str]:
    """Every row in a group of its own."""
    return [f"g{index:05}" for index in range(len(scored.targets))]


def metric_giving(compute: Any) -> MetricSpec:
    return MetricSpec(name="toy/odd", description="", task="classification", compute=compute)


# ----------------------------------------------------------------------------------- intervals


@few
@given(seed=seeds, rows=st.integers(1, 40), groups=st.integers(1, 12))
@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "balanced_accuracy", "exact_match"])
def test_interval_contains_the_value(name: str, seed: int, rows: int, groups: int) -> None:
    scored = made_scored(seed, rows)
    interval = estimate(METRICS[name], scored, [f"g{n % groups}" for n in range(rows)])

    assert interval.low <= interval.value <= interval.high
    assert interval.value == METRICS[name].compute(scored)


def test_interval_of_a_biased_metric_still_contains_its_value() -> None:
    """Draws repeat rows, so none has 50 different ones."""
    variety = metric_giving(lambda scored: len(set(scored.targets)))
    scored = Scored(targets=[str(n) for n in range(50)], predictions=["a"] * 50)
    interval = estimate(variety, scored, alone(scored))

    assert interval.low < 40
    assert interval.value == interval.high == 50


def test_interval_of_a_hundred_coin_tosses_is_about_two_tenths_wide() -> None:
    scored = Scored(targets=["a"] * 100, predictions=["a", "b"] * 50)
    interval = estimate(ACCURACY, scored, alone(scored))

    assert interval.value == 0.5
    assert interval.low == pytest.approx(0.40, abs=0.02)
    assert interval.high == pytest.approx(0.60, abs=0.02)


def test_copies_within_a_group_make_no_interval_narrower() -> None:
    scored = made_scored(1)
    groups = alone(scored)
    single = estimate(ACCURACY, scored, groups)
    copied = Scored(
        targets=[one for one in scored.targets for _ in range(5)],
        predictions=[one for one in scored.predictions for _ in range(5)],
    )
    fivefold = estimate(ACCURACY, copied, [group for group in groups for _ in range(5)])

    assert (fivefold.low, fivefold.high) == pytest.approx((single.low, single.high))


def test_rows_that_stand_alone_give_a_narrower_interval_than_rows_in_groups() -> None:
    right = [n // 10 % 2 == 0 for n in range(200)]
    scored = Scored(targets=["a"] * 200, predictions=["a" if one else "b" for one in right])
    grouped = estimate(ACCURACY, scored, [f"g{n // 10:03}" for n in range(200)])
    single = estimate(ACCURACY, scored, alone(scored))

    assert grouped.high - grouped.low > 2 * (single.high - single.low)


@few
@given(seed=seeds)
def test_interval_does_not_depend_on_the_order_of_rows(seed: int) -> None:
    scored = made_scored(seed)
    groups = [f"g{n % 20}" for n in range(60)]
    order = list(range(60))
    random.Random(seed).shuffle(order)
    other = Scored(
        targets=[scored.targets[n] for n in order],
        predictions=[scored.predictions[n] for n in order],
    )
    one = estimate(ACCURACY, scored, groups)
    two = estimate(ACCURACY, other, [groups[n] for n in order])

    assert (one.low, one.high) == pytest.approx((two.low, two.high))


def test_draw_takes_complete_groups_and_as_many_as_there_are() -> None:
    groups = ["a", "b", "a", "c", "b", "a"]
    members = {"a": {0, 2, 5}, "b": {1, 4}, "c": {3}}
    for rows in group_draws(groups, draws=50):
        counts = {one: [list(rows).count(row) for row in them] for one, them in members.items()}
        assert all(len(set(times)) == 1 for times in counts.values())
        assert sum(times[0] for times in counts.values()) == 3


def test_plugins_metric_is_given_texts_of_python() -> None:
    kinds = set()

    def compute(scored: Scored) -> float:
        kinds.update(type(one) for one in [*scored.targets, *scored.predictions])
        return 1.0

    estimate(metric_giving(compute), made_scored(0, 8), alone(made_scored(0, 8)))
    assert kinds == {str}


def test_labels_that_end_in_a_zero_byte_are_distinguished() -> None:
    scored = Scored(targets=["a", "b"], predictions=["a\0", "b"])

    assert estimate(ACCURACY, scored, ["x", "y"]).value == 0.5


# ------------------------------------------------------------------------------- metrics' faults


def test_metric_that_raises_is_named() -> None:
    def compute(scored: Scored) -> float:
        raise KeyError("chapter")

    with pytest.raises(PluginError, match=r"toy/odd failed: KeyError: 'chapter'") as caught:
        estimate(metric_giving(compute), made_scored(0, 8), alone(made_scored(0, 8)))
    assert caught.value.hint


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_metric_that_gives_no_finite_number_is_refused(wrong: float) -> None:
    with pytest.raises(PluginError, match=r"toy/odd gave (nan|inf|-inf) on 8 rows"):
        estimate(metric_giving(lambda scored: wrong), made_scored(0, 8), alone(made_scored(0, 8)))


def test_metric_that_gives_no_number_is_refused() -> None:
    with pytest.raises(PluginError, match="toy/odd gave None, not a number"):
        estimate(metric_giving(lambda scored: None), made_scored(0, 8), alone(made_scored(0, 8)))


# ---------------------------------------------------------------------------------- differences


@few
@given(seed=seeds)
@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "balanced_accuracy"])
def test_difference_of_equal_predictions_is_exactly_nothing(name: str, seed: int) -> None:
    scored, metric = made_scored(seed), METRICS[name]
    interval = paired_difference(metric, scored, list(scored.predictions), alone(scored))

    assert interval == Estimate(0.0, 0.0, 0.0)
    assert verdict(metric, interval, 60) == "ties"


@few
@given(seed=seeds)
def test_difference_turns_round_when_the_two_change_places(seed: int) -> None:
    scored, other = made_scored(seed), made_scored(seed + 1).predictions
    turned = Scored(targets=scored.targets, predictions=other)
    one = paired_difference(ACCURACY, scored, other, alone(scored))
    two = paired_difference(ACCURACY, turned, scored.predictions, alone(scored))

    assert (one.value, one.low, one.high) == pytest.approx((-two.value, -two.high, -two.low))


def test_difference_is_paired() -> None:
    """Both fail on the same half; beside each score's own interval the difference's is narrow."""
    predictions = ["a", "b"] * 100
    scored = Scored(targets=["a"] * 200, predictions=predictions)
    other = ["b", "b", *predictions[2:]]
    difference = paired_difference(ACCURACY, scored, other, alone(scored))
    score = estimate(ACCURACY, scored, alone(scored))

    assert difference.value == pytest.approx(1 / 200)
    assert difference.high - difference.low < (score.high - score.low) / 4


# -------------------------------------------------------------------------------------- verdict


@pytest.mark.parametrize(
    ("low", "high", "higher", "lower"),
    [
        (0.1, 0.3, "beats", "loses"),
        (-0.3, -0.1, "loses", "beats"),
        (-0.1, 0.1, "ties", "ties"),
        (0.0, 0.3, "ties", "ties"),
        (-0.3, 0.0, "ties", "ties"),
        (0.0, 0.0, "ties", "ties"),
    ],
)
def test_verdict_follows_the_interval_and_the_metrics_direction(
    low: float, high: float, higher: str, lower: str
) -> None:
    difference = Estimate((low + high) / 2, low, high)

    assert verdict(ACCURACY, difference, 100) == higher
    assert verdict(MAE, difference, 100) == lower


def test_smaller_error_beats() -> None:
    scored = Scored(targets=[1.0] * 30, predictions=[1.1] * 30)
    difference = paired_difference(MAE, scored, [2.0] * 30, alone(scored))

    assert difference.high < 0
    assert verdict(MAE, difference, 30) == "beats"


@pytest.mark.parametrize("groups", [1, MIN_GROUPS - 1])
def test_few_groups_prove_nothing(groups: int) -> None:
    scored = Scored(targets=["a"] * 30, predictions=["a"] * 30)
    names = [f"g{n % groups}" for n in range(30)]
    difference = paired_difference(ACCURACY, scored, ["b"] * 30, names)

    assert difference == Estimate(1.0, 1.0, 1.0)
    assert verdict(ACCURACY, difference, groups) == "ties"
    assert verdict(ACCURACY, difference, MIN_GROUPS) == "beats"

"""The core's figures against scikit-learn's, and where the two must differ."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.contracts import TASKS, Scored
from trunkline.evaluation.metrics import METRICS

quick = settings(max_examples=40, deadline=None)

labels = st.sampled_from(["a", "b", "c", "a much longer label", "ü"])
label_pairs = st.lists(st.tuples(labels, labels), min_size=1, max_size=40)
number = st.floats(-1e6, 1e6)
number_pairs = st.lists(st.tuples(number, number), min_size=2, max_size=40)


def figure(name: str, pairs: list[tuple[Any, Any]]) -> float:
    """The metric on (target, prediction) pairs."""
    targets, predictions = zip(*pairs, strict=True)
    return METRICS[name].compute(Scored(targets=targets, predictions=predictions))


@quick
@given(pairs=label_pairs)
@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "balanced_accuracy"])
@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_classification_figure_is_that_of_scikit_learn(
    name: str, pairs: list[tuple[str, str]]
) -> None:
    from sklearn import metrics

    targets, predictions = zip(*pairs, strict=True)
    wanted = {
        "accuracy": metrics.accuracy_score,
        "macro_f1": lambda one, two: metrics.f1_score(one, two, average="macro"),
        "balanced_accuracy": metrics.balanced_accuracy_score,
    }[name](targets, predictions)

    assert figure(name, pairs) == pytest.approx(wanted)


@quick
@given(pairs=number_pairs)
@pytest.mark.parametrize("name", ["mae", "r_squared"])
def test_regression_figure_is_that_of_scikit_learn(
    name: str, pairs: list[tuple[float, float]]
) -> None:
    from sklearn import metrics

    targets, predictions = zip(*pairs, strict=True)
    wanted = {"mae": metrics.mean_absolute_error, "r_squared": metrics.r2_score}[name]

    if name == "mae" or max(targets) - min(targets) > 1e-3:
        assert figure(name, pairs) == pytest.approx(wanted(targets, predictions), rel=1e-6)


def test_r_squared_of_equal_targets_is_zero() -> None:
    assert figure("r_squared", [(2.0, 2.0), (2.0, 2.0)]) == 0


def test_median_ape_is_a_share_and_not_per_cent() -> None:
    assert figure("median_ape", [(10.0, 11.0), (-10.0, -12.0), (10.0, 100.0)]) == pytest.approx(0.2)


def test_median_ape_of_a_zero_target_is_zero_or_infinite_without_a_warning() -> None:
    assert figure("median_ape", [(0.0, 0.0)]) == 0
    assert figure("median_ape", [(0.0, 1.0)]) == math.inf
    assert figure("median_ape", [(0.0, 1.0), (1.0, 1.5), (1.0, 1.5)]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("target", "answer", "same"),
    [
        ("Cholera", "cholera", True),
        ("Other  disease", " other disease\n", True),
        ("Cholera", "Cholera.", False),
        ("Cholera", "", False),
        ("a b", "ab", False),
    ],
)
def test_exact_match_forgives_case_and_white_space_alone(
    target: str, answer: str, same: bool
) -> None:
    assert figure("exact_match", [(target, answer)]) == float(same)


@quick
@given(pairs=label_pairs)
def test_figures_do_not_depend_on_what_labels_are_called(pairs: list[tuple[str, str]]) -> None:
    renamed = [(f"~{one}"[::-1], f"~{two}"[::-1]) for one, two in pairs]
    for name in ("accuracy", "macro_f1", "balanced_accuracy", "exact_match"):
        assert figure(name, renamed) == pytest.approx(figure(name, pairs))


@pytest.mark.parametrize("name", METRICS)
def test_perfect_predictions_get_the_best_score(name: str) -> None:
    metric = METRICS[name]
    one, two = (1.0, 2.0) if metric.task == "regression" else ("a", "b")
    best = figure(name, [(one, one), (two, two)])
    worse = figure(name, [(one, two), (two, one)])

    assert best == (1.0 if metric.higher_is_better else 0.0)
    assert (best > worse) == metric.higher_is_better


@pytest.mark.parametrize("name", METRICS)
def test_metric_is_described(name: str) -> None:
    metric = METRICS[name]

    assert metric.name == name
    assert metric.task in TASKS
    assert metric.description

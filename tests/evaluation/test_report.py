"""Evaluation reports: scores, baselines, the difference, slices, predictions and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_rows import make_row
from trunkline.contracts import MetricSpec, Row, Scored
from trunkline.errors import DataError, PluginError
from trunkline.evaluation.baselines import Baseline
from trunkline.evaluation.metrics import METRICS
from trunkline.evaluation.report import EvaluationReport, Prediction, evaluate

ACCURACY, MACRO_F1, MAE = (METRICS[name] for name in ("accuracy", "macro_f1", "mae"))

ROWS = [
    make_row(n, target="ab"[n % 2], slices={"country": ("DE", "FR", "DE", "IT")[n % 4]})
    for n in range(40)
]
RIGHT = [row.target for row in ROWS]
HALF = ["a"] * 40
WRONG = ["ba"[n % 2] for n in range(40)]


def evaluated(
    predictions: Sequence[Any] = RIGHT,
    baselines: Sequence[Baseline] | None = None,
    metrics: Sequence[MetricSpec] = (ACCURACY, MACRO_F1),
    rows: Sequence[Row] = ROWS,
    **more: Any,
) -> tuple[EvaluationReport, list[Prediction]]:
    """Evaluate with two baselines, of which ``half`` is the better."""
    given = (
        [Baseline("wrong", WRONG), Baseline("half", HALF, "always 'a'")]
        if baselines is None
        else baselines
    )
    return evaluate(rows, predictions, given, metrics, ("a", "b"), **more)


def test_every_metric_is_scored_for_the_adapter_and_every_baseline() -> None:
    report, _ = evaluated()

    assert report.scores.keys() == {"accuracy", "macro_f1"}
    assert report.baselines.keys() == {"wrong", "half"}
    assert all(scores.keys() == report.scores.keys() for scores in report.baselines.values())
    assert report.score == report.scores["accuracy"]
    assert (report.rows, report.groups) == (40, 40)
    assert report.baseline_details == {"wrong": "", "half": "always 'a'"}


def test_difference_is_to_the_best_baseline() -> None:
    report, _ = evaluated()

    assert report.best_baseline == "half"
    assert report.difference.value == 0.5


def test_best_baseline_is_the_lowest_where_lower_is_better() -> None:
    rows = [make_row(n, target=float(n)) for n in range(20)]
    far, near = [100.0] * 20, [float(n) + 1 for n in range(20)]
    report, _ = evaluate(
        rows,
        [float(n) for n in range(20)],
        [Baseline("far", far), Baseline("near", near)],
        [MAE],
        (),
    )

    assert report.best_baseline == "near"
    assert report.difference.value == -1
    assert (report.higher_is_better, report.verdict) == (False, "beats")


@pytest.mark.parametrize(
    ("predictions", "verdict"), [(RIGHT, "beats"), (HALF, "ties"), (WRONG, "loses")]
)
def test_verdict_is_plain(predictions: list[str], verdict: str) -> None:
    assert evaluated(predictions)[0].verdict == verdict


def test_few_groups_are_no_proof() -> None:
    rows = [make_row(n, target="ab"[n % 2], group=f"g{n % 3}") for n in range(40)]

    assert evaluated(rows=rows)[0].verdict == "ties"


def test_every_slice_is_scored_with_its_count() -> None:
    report, _ = evaluated(HALF)

    assert [(one.slice, one.value, one.rows, one.score) for one in report.slices] == [
        ("country", "DE", 20, 1.0),
        ("country", "FR", 10, 0.0),
        ("country", "IT", 10, 0.0),
    ]


def test_every_row_keeps_its_prediction_and_that_of_the_best_baseline() -> None:
    chances = [n / 40 for n in range(40)]
    _, kept = evaluated(WRONG, confidences=chances)

    assert kept[3] == Prediction("r3", "g3", "b", "a", 3 / 40, "a")
    assert [one.row_id for one in kept] == [row.id for row in ROWS]
    assert [one.prediction for one in kept] == WRONG
    assert [one.baseline_prediction for one in kept] == HALF


def test_row_without_a_confidence_keeps_none() -> None:
    assert {one.confidence for one in evaluated()[1]} == {None}


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no rows to evaluate") as caught:
        evaluated([], [Baseline("half", [])], rows=[])
    assert caught.value.hint


def test_metric_that_fails_on_a_slice_is_named() -> None:
    def compute(scored: Scored) -> float:
        return 1 / (len(scored.targets) - 10)

    odd = MetricSpec(name="toy/odd", description="", task="classification", compute=compute)
    with pytest.raises(PluginError, match="toy/odd failed: ZeroDivisionError"):
        evaluated(metrics=[odd])


def test_evaluating_twice_gives_the_same() -> None:
    assert evaluated() == evaluated()


@settings(max_examples=5, deadline=None)
@given(predictions=st.lists(st.sampled_from("ab"), min_size=40, max_size=40))
def test_evaluation_report_comes_back_from_json(predictions: list[str]) -> None:
    report, _ = evaluated(predictions)

    assert (
        EvaluationReport.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False)))
        == report
    )

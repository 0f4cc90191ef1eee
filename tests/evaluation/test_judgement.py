"""What is said about predictions: scores, floors, the difference, slices, rows; and its JSON."""

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
from trunkline.evaluation.floors import Floor
from trunkline.evaluation.judgement import Judgement, Prediction, judge
from trunkline.evaluation.metrics import CORE_METRICS

ACCURACY, MACRO_F1, MAE = (CORE_METRICS[name] for name in ("accuracy", "macro_f1", "mae"))

ROWS = [
    make_row(n, target="ab"[n % 2], slices={"country": ("DE", "FR", "DE", "IT")[n % 4]})
    for n in range(40)
]
RIGHT = [row.target for row in ROWS]
HALF = ["a"] * 40
WRONG = ["ba"[n % 2] for n in range(40)]


def judged(
    predictions: Sequence[Any] = RIGHT,
    floors: Sequence[Floor] | None = None,
    metrics: Sequence[MetricSpec] = (ACCURACY, MACRO_F1),
    rows: Sequence[Row] = ROWS,
    **more: Any,
) -> tuple[Judgement, list[Prediction]]:
    """Judge with two floors, of which ``half`` is the better."""
    given = [Floor("wrong", WRONG), Floor("half", HALF, "always 'a'")] if floors is None else floors
    return judge(rows, predictions, given, metrics, ("a", "b"), **more)


def test_every_metric_is_scored_for_the_adapter_and_every_floor() -> None:
    found, _ = judged()

    assert found.scores.keys() == {"accuracy", "macro_f1"}
    assert found.floors.keys() == {"wrong", "half"}
    assert all(scores.keys() == found.scores.keys() for scores in found.floors.values())
    assert found.score == found.scores["accuracy"]
    assert (found.rows, found.groups) == (40, 40)
    assert found.floor_details == {"wrong": "", "half": "always 'a'"}


def test_difference_is_to_the_best_floor() -> None:
    found, _ = judged()

    assert found.best_floor == "half"
    assert found.difference.value == 0.5


def test_best_floor_is_the_lowest_where_lower_is_better() -> None:
    rows = [make_row(n, target=float(n)) for n in range(20)]
    far, near = [100.0] * 20, [float(n) + 1 for n in range(20)]
    found, _ = judge(
        rows, [float(n) for n in range(20)], [Floor("far", far), Floor("near", near)], [MAE], ()
    )

    assert found.best_floor == "near"
    assert found.difference.value == -1
    assert (found.higher_is_better, found.verdict) == (False, "beats")


@pytest.mark.parametrize(
    ("predictions", "verdict"), [(RIGHT, "beats"), (HALF, "ties"), (WRONG, "loses")]
)
def test_verdict_is_plain(predictions: list[str], verdict: str) -> None:
    assert judged(predictions)[0].verdict == verdict


def test_few_groups_are_no_proof() -> None:
    rows = [make_row(n, target="ab"[n % 2], group=f"g{n % 3}") for n in range(40)]

    assert judged(rows=rows)[0].verdict == "ties"


def test_every_slice_is_scored_with_its_count() -> None:
    found, _ = judged(HALF)

    assert [(one.slice, one.value, one.rows, one.score) for one in found.slices] == [
        ("country", "DE", 20, 1.0),
        ("country", "FR", 10, 0.0),
        ("country", "IT", 10, 0.0),
    ]


def test_every_row_keeps_its_prediction_and_that_of_the_best_floor() -> None:
    chances = [n / 40 for n in range(40)]
    _, kept = judged(WRONG, confidences=chances)

    assert kept[3] == Prediction("r3", "g3", "b", "a", 3 / 40, "a")
    assert [one.row_id for one in kept] == [row.id for row in ROWS]
    assert [one.prediction for one in kept] == WRONG
    assert [one.floor_prediction for one in kept] == HALF


def test_row_without_a_confidence_keeps_none() -> None:
    assert {one.confidence for one in judged()[1]} == {None}


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no rows to judge") as caught:
        judged([], [Floor("half", [])], rows=[])
    assert caught.value.hint


def test_metric_that_fails_on_a_slice_is_named() -> None:
    def compute(scored: Scored) -> float:
        return 1 / (len(scored.targets) - 10)

    odd = MetricSpec(name="toy/odd", description="", task="classification", compute=compute)
    with pytest.raises(PluginError, match="toy/odd failed: ZeroDivisionError"):
        judged(metrics=[odd])


def test_judging_twice_gives_the_same() -> None:
    assert judged() == judged()


@settings(max_examples=5, deadline=None)
@given(said=st.lists(st.sampled_from("ab"), min_size=40, max_size=40))
def test_judgement_comes_back_from_json(said: list[str]) -> None:
    found, _ = judged(said)

    assert Judgement.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found

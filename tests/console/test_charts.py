"""The figures behind the charts: curves, labels and worst rows."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from console_site import Browser, Site
from trunkline.console.charts import label_scores
from trunkline.console.curves import axes_of, curves_of
from trunkline.console.evaluated import worst_rows
from trunkline.console.formats import answer
from trunkline.registry.records import MetricRecord, PredictionRecord, RunRecord

JSON = {"accept": "application/json"}


def predicted(row: str, target: str, prediction: str, confidence: float = 0.5) -> PredictionRecord:
    return PredictionRecord(
        row_id=row, group=row, target=target, prediction=prediction, confidence=confidence
    )


@pytest.fixture
def run(site: Site) -> RunRecord:
    return site.platform.registry.runs.get(1)


# -------------------------------------------------------------------------------------- curves


def metric(
    run: RunRecord, step: int, name: str, value: float, seconds: float | None
) -> MetricRecord:
    at = None if seconds is None else run.started + timedelta(seconds=seconds)
    return MetricRecord(step=step, name=name, value=value, at=at)


def test_curve_is_drawn_over_what_the_run_stores(run: RunRecord) -> None:
    timed = [metric(run, step, "loss", 1 / step, 2.0 * step) for step in (1, 2, 3)]
    (curve,) = curves_of(run, timed, lambda _: None)
    assert (curve.seconds, curve.tokens) == ((2.0, 4.0, 6.0), None)
    assert axes_of([curve]) == ["step", "time"]
    counted = [metric(run, step, "tokens", 100.0 * step, None) for step in (1, 2, 3)]
    (curve,) = curves_of(run, [*timed, *counted], lambda _: None)
    assert curve.tokens == (100.0, 200.0, 300.0)
    assert axes_of([curve]) == ["step", "tokens", "time"]


def test_curve_of_an_earlier_release_has_steps_only(run: RunRecord) -> None:
    old = [metric(run, 1, "loss", 1.0, None), metric(run, 2, "loss", 0.5, 9.0)]
    assert axes_of(curves_of(run, old, lambda _: None)) == ["step"]


def test_best_value_depends_on_the_metric(run: RunRecord) -> None:
    names = ("loss", "validation.loss", "validation.accuracy", "validation.error", "learning_rate")
    metrics = [metric(run, step, name, step, None) for name in names for step in (1, 2)]
    known = {"accuracy": True, "error": False}
    best = {one.name: one.best for one in curves_of(run, metrics, known.get)}
    assert best == {
        "loss": "lowest", "validation.loss": "lowest", "validation.accuracy": "highest",
        "validation.error": "lowest", "learning_rate": None,
    }  # fmt: skip


def test_long_curve_is_thinned_and_keeps_its_last_point(run: RunRecord) -> None:
    metrics = [metric(run, step, "loss", float(step), None) for step in range(5000)]
    (curve,) = curves_of(run, metrics, lambda _: None)
    assert len(curve.steps) <= 301
    assert (curve.steps[-1], curve.total, curve.highest) == (4999, 5000, 4999.0)


def test_run_page_offers_time_and_says_which_value_is_best(admin: Browser) -> None:
    page = admin.get("/runs/1").text
    assert '<option value="time">' in page
    assert '<span class="tag live">best</span>' in page


# --------------------------------------------------------------------------- labels and rows


def test_labels_of_several_per_text_are_scored_one_by_one() -> None:
    rows = [
        predicted("1", json.dumps(["a", "b"]), json.dumps(["a"])),
        predicted("2", json.dumps(["a"]), json.dumps(["a", "c"])),
    ]
    scores = {one.label: one for one in label_scores("multilabel", rows)}
    assert (scores["a"].f1, scores["b"].f1, scores["c"].f1) == (1.0, 0.0, 0.0)
    assert (scores["b"].precision, scores["c"].recall) == (None, None)


def test_span_counts_if_its_place_and_label_are_right() -> None:
    rows = [predicted("1", '[[0, 3, "x"], [4, 6, "y"]]', '[[0, 3, "x"], [4, 7, "y"]]')]
    scores = {
        one.label: (one.true, one.predicted, one.hits) for one in label_scores("tagging", rows)
    }
    assert scores == {"x": (1, 1, 1), "y": (1, 1, 0)}


def test_worst_rows_are_the_most_confident_errors() -> None:
    rows = [
        predicted("sure", "a", "b", 0.9), predicted("unsure", "a", "b", 0.4),
        predicted("right", "a", "a", 1.0),
    ]  # fmt: skip
    assert [one["row"] for one in worst_rows("classification", rows)] == ["sure", "unsure"]
    ranked = [predicted("first", "a", '["a", "b"]'), predicted("second", "a", '["b", "a"]')]
    assert [one["row"] for one in worst_rows("ranking", ranked)] == ["second"]
    priced = [predicted("near", "1.0", "1.5"), predicted("far", "1.0", "9.0")]
    assert [one["row"] for one in worst_rows("regression", priced)] == ["far", "near"]


def test_answers_are_shown_without_their_json() -> None:
    assert answer('["a", "b"]', "multilabel") == "a, b"
    assert answer("[]", "multilabel") == "–"
    assert answer('[[0, 3, "x"]]', "tagging") == "x 0–3"
    assert answer('["best", "worse"]', "ranking") == "best"
    assert answer("truth", "ranking") == "truth"
    assert answer('["a"]', "generation") == '["a"]'


def test_texts_of_rows_are_read_on_request(admin: Browser) -> None:
    path = "/adapters/toy/prices/1"
    before = admin.get(path, headers=JSON).json()["worst"]
    assert before
    assert {one["text"] for one in before} == {None}
    assert "Show the texts of these rows" in admin.get(path).text
    after = admin.get(f"{path}?texts=yes", headers=JSON).json()["worst"]
    assert all(one["text"] for one in after)
    assert after[0]["text"] in admin.get(f"{path}?texts=yes").text


def test_moments_are_those_of_the_metrics(site: Site) -> None:
    registry = site.platform.registry
    logged = registry.runs.metrics(1)
    assert all(one.at is not None for one in logged)
    started = registry.runs.get(1).started
    assert all(started <= one.at <= datetime.now(UTC) for one in logged if one.at)

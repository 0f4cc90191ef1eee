"""Metrics and baselines of the tasks with labels, spans and candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from made_rows import make_recipe, make_row
from trunkline.contracts import MetricSpec, Row, Scored, Span
from trunkline.data.split import Split
from trunkline.data.targets import default_template
from trunkline.evaluation.baselines import BASELINES, Baseline, fit_baselines
from trunkline.evaluation.intervals import estimate, paired_difference
from trunkline.evaluation.metrics import METRICS
from trunkline.evaluation.structured_baselines import STRUCTURED

BY_NAME = {spec.name: spec for spec in (*BASELINES, *STRUCTURED)}
LABELS = ("a", "b", "c")
label_sets = st.lists(st.sampled_from(LABELS), unique=True).map(lambda one: tuple(sorted(one)))
pairs = st.lists(st.tuples(label_sets, label_sets), min_size=1, max_size=20)


def score(name: str, targets: list[Any], predictions: list[Any]) -> float:
    return METRICS[name].compute(Scored(targets=targets, predictions=predictions, labels=LABELS))


@given(pairs)
def test_f1_of_label_sets_is_scikit_learns(rows: list[tuple[tuple[str, ...], ...]]) -> None:
    targets, predictions = [list(one) for one in zip(*rows, strict=True)]
    binary = MultiLabelBinarizer(classes=LABELS).fit([LABELS])
    truth, answers = binary.transform(targets), binary.transform(predictions)
    if truth.any() or answers.any():
        expected = f1_score(truth, answers, average="micro", zero_division=0)
        assert score("micro_f1", targets, predictions) == pytest.approx(expected)
        seen = [index for index in range(3) if truth[:, index].any() or answers[:, index].any()]
        each = [f1_score(truth[:, one], answers[:, one], zero_division=0) for one in seen]
        macro = float(np.mean(each))
        assert score("multilabel_macro_f1", targets, predictions) == pytest.approx(macro)
    exact = float(np.mean((truth == answers).all(axis=1)))
    assert score("subset_accuracy", targets, predictions) == pytest.approx(exact)


def test_spans_count_only_with_the_right_ends_and_label() -> None:
    targets = [(Span(0, 3, "A"), Span(5, 8, "B")), (Span(0, 2, "A"),), ()]
    predictions = [(Span(0, 3, "A"), Span(5, 7, "B")), (Span(0, 2, "B"),), (Span(0, 1, "A"),)]
    assert score("entity_precision", targets, predictions) == pytest.approx(1 / 4)
    assert score("entity_recall", targets, predictions) == pytest.approx(1 / 3)
    assert score("entity_f1", targets, predictions) == pytest.approx(2 / 7)
    assert score("entity_f1", [()], [()]) == 1
    assert score("entity_precision", [()], [()]) == 0


def test_reciprocal_rank_and_recall() -> None:
    targets = ["a", "b", "c"]
    predictions = [("a", "b", "c"), ("c", "a", "b"), ("a", "c", "b")]
    assert score("mrr", targets, predictions) == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert score("recall_at_1", targets, predictions) == pytest.approx(1 / 3)
    assert score("recall_at_5", targets, predictions) == 1
    assert score("mrr", ["z"], [("a", "b")]) == 0


@pytest.mark.parametrize(
    ("name", "targets", "predictions"),
    [
        ("micro_f1", [("a",), ("a", "b")] * 10, [("a",), ("b",)] * 10),
        ("entity_f1", [(Span(0, 1, "a"),)] * 20, [(Span(0, 1, "a"),), ()] * 10),
        ("mrr", ["a", "b"] * 10, [("a", "b"), ("a", "b")] * 10),
    ],
)
def test_intervals_resample_rows_of_equal_length(
    name: str, targets: list[Any], predictions: list[Any]
) -> None:
    metric: MetricSpec = METRICS[name]
    groups = [str(index) for index in range(20)]
    scored = Scored(targets=targets, predictions=predictions, labels=LABELS)
    result = estimate(metric, scored, groups)
    assert result.low < result.value < result.high
    assert paired_difference(metric, scored, predictions, groups).value == 0


# -------------------------------------------------------------------------------------- baselines


def fitted(name: str, task: Any, rows: list[Row]) -> Baseline:
    third = len(rows) // 3
    split = Split(tuple(rows[: 2 * third]), tuple(rows[2 * third :]), tuple(rows[2 * third :]), "x")
    recipe = make_recipe(task, template=default_template(task))
    return fit_baselines([BY_NAME[name]], recipe, split, None)[0]


def colored(number: int) -> Row:
    colors = tuple(sorted({("red", "green", "blue")[number % 3], ("red", "blue")[number % 2]}))
    return make_row(number, text=f"shirt {number} {' '.join(colors)}", target=colors)


def test_one_versus_rest_learns_labels_that_the_text_names() -> None:
    rows = [colored(number) for number in range(60)]
    baseline = fitted("one-versus-rest", "multilabel", rows)
    targets = [row.target for row in rows[40:]]
    assert score("micro_f1", targets, baseline.predictions) > 0.95
    assert "characters 2-5" in baseline.detail


def test_labels_of_all_or_no_rows_are_constant() -> None:
    rows = [make_row(number, target=("all",)) for number in range(9)]
    assert set(fitted("one-versus-rest", "multilabel", rows).predictions) == {("all",)}
    rows = [make_row(number, target=()) for number in range(9)]
    assert set(fitted("one-versus-rest", "multilabel", rows).predictions) == {()}
    constant = fitted("majority", "multilabel", rows)
    assert (set(constant.predictions), constant.detail) == ({()}, "always no label")


def test_dictionary_takes_the_longest_text_and_leaves_ambiguous_ones() -> None:
    texts = [
        ("took aspirin forte", (Span(5, 18, "DRUG"),)),
        ("took aspirin", (Span(5, 12, "DRUG"),)),
        ("may help", (Span(0, 3, "MONTH"),)),
        ("it may rain", ()),
        ("it may pour", ()),
        ("none", ()),
    ]
    rows = [make_row(n, text=text, target=spans) for n, (text, spans) in enumerate(texts)]
    rows += [
        make_row(7, text="ASPIRIN forte, aspirins", target=()),
        make_row(8, text="in may", target=()),
        make_row(9, text="x", target=()),
    ]
    baseline = fitted("dictionary", "tagging", rows)
    assert baseline.predictions == [(Span(0, 13, "DRUG"),), (), ()]


def test_popular_and_similar_candidates_come_first() -> None:
    rows = [
        make_row(n, text=f"tea number {n}", target="rice", candidates=("milk", "rice", "teapot"))
        for n in range(9)
    ]
    assert fitted("popularity", "ranking", rows).predictions[0] == ("rice", "milk", "teapot")
    assert fitted("similarity", "ranking", rows).predictions[0][0] == "teapot"

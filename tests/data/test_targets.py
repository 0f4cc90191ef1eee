"""Targets with labels, spans and candidates: their normal form, refusals, and form as text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from made_rows import make_dataset, make_recipe, make_row
from trunkline.contracts import Span, Target, Task, Template
from trunkline.data.augment import TRANSFORMS
from trunkline.data.prepare import fingerprint, prepare
from trunkline.data.targets import (
    check_template,
    default_template,
    is_right,
    normalized,
    parse_prediction,
    parse_target,
    target_text,
)
from trunkline.errors import UsageError

texts = st.text(st.characters(codec="utf-8"), min_size=1)
spans = st.builds(Span, st.integers(0, 99), st.integers(0, 99), texts)
predictions: dict[Task, st.SearchStrategy[Any]] = {
    "classification": texts,
    "generation": st.text(st.characters(codec="utf-8")),
    "regression": st.floats(allow_nan=False, allow_infinity=False),
    "multilabel": st.lists(texts).map(tuple),
    "tagging": st.lists(spans).map(tuple),
    "ranking": st.lists(texts).map(tuple),
}


@given(data=st.data(), task=st.sampled_from(list(predictions)))
def test_prediction_comes_back_from_its_text(data: st.DataObject, task: Task) -> None:
    value: Target = data.draw(predictions[task])
    back = parse_prediction(target_text(value), task)
    assert back == value
    assert type(back) is type(value)


def test_target_of_a_ranking_is_a_text() -> None:
    assert parse_target("[a]", "ranking") == "[a]"
    assert is_right("b", ("b", "a"), "ranking")
    assert not is_right("b", ("a", "b"), "ranking")


def test_labels_are_clean_sorted_and_different() -> None:
    row = make_row(1, target=["red ", "blue", "red"])
    assert normalized(row, "multilabel").target == ("blue", "red")
    assert normalized(replace(row, target=set()), "multilabel").target == ()


def test_spans_are_sorted_and_may_be_given_as_lists() -> None:
    row = make_row(1, text="aspirin 10 mg", target=[[8, 13, "DOSE"], (0, 7, " DRUG")])
    assert normalized(row, "tagging").target == (Span(0, 7, "DRUG"), Span(8, 13, "DOSE"))


UNUSABLE: dict[str, tuple[Task, dict[str, Any], str]] = {
    "labels as a text": ("multilabel", {"target": "red"}, "not a tuple of labels"),
    "an empty label": ("multilabel", {"target": ("red", " ")}, "not a text"),
    "a label that is a number": ("multilabel", {"target": (1,)}, "not a text"),
    "no labels": ("multilabel", {"target": None}, "not a tuple of labels"),
    "spans as a text": ("tagging", {"target": "DRUG"}, "not a tuple of spans"),
    "a span of two": ("tagging", {"target": [(0, 1)]}, "not a span"),
    "a span outside": ("tagging", {"target": [(0, 99, "A")]}, "outside of its text of 5"),
    "a reversed span": ("tagging", {"target": [(3, 1, "A")]}, "outside"),
    "an empty span": ("tagging", {"target": [(1, 1, "A")]}, "outside"),
    "a span of true": ("tagging", {"target": [(True, 2, "A")]}, "outside"),
    "overlapping spans": ("tagging", {"target": [(0, 3, "A"), (2, 4, "B")]}, "overlap"),
    "one candidate": ("ranking", {"target": "a", "candidates": ("a",)}, "1 candidates"),
    "a candidate twice": ("ranking", {"target": "a", "candidates": ("a", "a")}, "twice"),
    "an empty candidate": ("ranking", {"target": "a", "candidates": ("a", " ")}, "not a text"),
    "another target": ("ranking", {"target": "c", "candidates": ("a", "b")}, "none of its"),
    "candidates elsewhere": (
        "classification", {"target": "a", "candidates": ("a", "b")}, "only a ranking",
    ),
}  # fmt: skip


@pytest.mark.parametrize("problem", UNUSABLE)
def test_unusable_target_is_refused(problem: str) -> None:
    task, fields, reason = UNUSABLE[problem]
    row = make_row(1, text="texts", **fields)
    with pytest.raises(ValueError, match=reason):
        normalized(row, task)


def test_fingerprint_covers_labels_spans_and_candidates() -> None:
    rows = [
        make_row(1, target="a"),
        make_row(1, target=("a",)),
        make_row(1, target=(Span(0, 1, "a"),)),
        make_row(1, target="a", candidates=("a", "b")),
        make_row(1, target="a", candidates=("a", "c")),
    ]
    assert len({fingerprint([row]) for row in rows}) == len(rows)


@pytest.mark.parametrize("task", predictions)
def test_default_template_fits_its_task(task: Task) -> None:
    check_template(default_template(task), task)


@pytest.mark.parametrize(
    ("task", "template"),
    [
        ("ranking", Template()),
        ("classification", Template(prompt="{text} {candidate}")),
        ("tagging", Template()),
        ("tagging", Template(clean=(), chat=True)),
    ],
)
def test_template_of_another_task_is_refused(task: Task, template: Template) -> None:
    with pytest.raises(UsageError):
        check_template(template, task)


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_candidate_and_text_are_filled_in_as_they_are(text: str, candidate: str) -> None:
    template = Template(prompt="{{Q}}: {text}\nA: {candidate}!", clean=())
    filled = template.with_candidate(candidate).filled(text)
    assert filled == f"{{Q}}: {text}\nA: {candidate}!"


def test_transform_that_does_not_move_spans_is_refused() -> None:
    rows = [make_row(n, text=f"aspirin {n}", target=(Span(0, 7, "DRUG"),)) for n in range(9)]
    recipe = make_recipe("tagging", template=default_template("tagging"))
    dataset = make_dataset(rows, "tagging")
    prepare(dataset, recipe, ())
    with pytest.raises(UsageError, match="random-deletion changes the text"):
        prepare(dataset, recipe, [one for one in TRANSFORMS if one.name == "random-deletion"])

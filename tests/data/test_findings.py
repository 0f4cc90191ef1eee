"""Suspicious data is found before training, with counts and advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from made_rows import make_dataset, make_recipe, make_row
from tiny_base import make_tokenizer
from trunkline.contracts import Row, Settings, Template
from trunkline.data.findings import Examiner
from trunkline.plugins import Finding

NAMES = ("amber", "bronze", "coral", "dusk", "ember", "fjord", "grove", "haze", "iris", "jade")


@cache
def tokenizer() -> Any:
    return make_tokenizer()


def things() -> list[Row]:
    """Rows whose texts have little in common, in groups of their own."""
    return [
        make_row(10 * one + other, text=f"{name} {rest} {7919 * (10 * one + other + 1)}")
        for one, name in enumerate(NAMES)
        for other, rest in enumerate(NAMES[:3])
    ]


def examined(rows: Sequence[Row], task: Any = "classification", **recipe: Any) -> list[Finding]:
    examiner = Examiner(lambda: (tokenizer(), 256))
    return list(examiner(make_dataset(rows, task), rows, make_recipe(task, **recipe), ()))


def warning(rows: Sequence[Row], **recipe: Any) -> str:
    (finding,) = examined(rows, **recipe)
    assert finding.level == "warning"
    return finding.message


def test_sound_rows_give_no_finding() -> None:
    assert examined(things()) == []


def test_label_conflicts_are_reported_with_their_count() -> None:
    rows = things()
    rows.append(make_row(900, text=rows[0].text, target="odd", group=rows[0].group))
    assert "2 rows have the text of a row with another target; correct" in warning(rows)


def test_near_duplicates_across_the_split_are_reported() -> None:
    text = "the very same long sentence about goats in the mountains of the north"
    rows = [make_row(n, text=f"{text} {n}") for n in range(30)]
    assert "test rows have a near-duplicate in train" in warning(rows)


def test_duplicates_are_reported() -> None:
    rows = things()
    rows.append(replace(rows[0], id="again"))
    assert "1 rows have the text and target of another row" in warning(rows)


def test_dropped_rows_are_reported_with_their_reasons() -> None:
    assert "1 of 31 rows are dropped (empty text 1)" in warning(
        [*things(), make_row(900, text=" ")]
    )


def test_labels_with_white_space_at_the_ends_are_reported() -> None:
    rows = [replace(row, target=f"{row.target} ") if n < 5 else row
            for n, row in enumerate(things())]  # fmt: skip
    assert "5 rows have a label with white space" in warning(rows)


def test_declared_labels_without_a_row_are_reported() -> None:
    dataset = make_dataset(things(), labels=("even", "odd", "neither ", "both"))
    (finding,) = Examiner()(dataset, things(), make_recipe("classification"), ())
    assert "2 of its declared labels have no row, such as 'neither', so no" in finding.message


def test_labels_that_differ_in_case_are_reported() -> None:
    rows = [replace(row, target=row.target.upper()) if n < 12 else row
            for n, row in enumerate(things())]  # fmt: skip
    message = warning(rows)
    assert "2 set(s) of labels differ only in case" in message
    assert "'EVEN' and 'even'" in message


def test_texts_that_are_cut_are_reported_with_share_and_lengths() -> None:
    rows = things()
    rows[0] = replace(rows[0], text="goat " * 60)
    message = warning(rows, settings=Settings(max_length=100))
    assert "1 of 30 texts (3.3%) are too long" in message
    assert "longest 299 tokens" in message
    assert "cut to 100" in message


def test_texts_beyond_the_context_are_reported_too() -> None:
    rows = things()
    rows[0] = replace(rows[0], text="goat " * 60)
    assert "cut to 256" in warning(rows, settings=Settings(max_length=100_000))


def test_limit_of_a_generation_leaves_room_for_the_answer() -> None:
    rows = [replace(row, target="x") for row in things()]
    rows[0] = replace(rows[0], text="goat " * 15)
    (finding,) = examined(rows, "generation", settings=Settings(max_length=100), max_new_tokens=50)
    assert "cut to 50" in finding.message


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"target": "rare"}, "The class 'rare' of toy/things has one row"),
        ({"split": "test"}, "has the split None"),
    ],
)
def test_data_that_training_would_refuse_is_an_error(change: Any, problem: str) -> None:
    rows = things()
    rows[0] = replace(rows[0], **change)
    (finding,) = examined(rows)
    assert finding.level == "error"
    assert problem in finding.message


def test_answers_beyond_max_new_tokens_are_an_error() -> None:
    rows = [replace(row, target="a very long answer") for row in things()]
    (finding,) = examined(rows, "generation", max_new_tokens=5)
    assert finding.level == "error"
    assert "max_new_tokens = 5 would cut it off" in finding.message


def test_template_without_room_for_the_text_is_an_error() -> None:
    template = Template(prompt="A very long instruction: {text}")
    (finding,) = examined(things(), template=template, settings=Settings(max_length=10))
    assert (finding.level, "no room for the text" in finding.message) == ("error", True)


def test_without_a_tokenizer_lengths_are_not_counted() -> None:
    rows = things()
    rows[0] = replace(rows[0], text="goat " * 60)
    assert list(Examiner()(make_dataset(rows), rows, None, ())) == []


def test_chat_template_that_the_base_lacks_is_an_error() -> None:
    bare = make_tokenizer()
    bare.chat_template = None
    rows = things()
    examiner = Examiner(lambda: (bare, 256))
    recipe = make_recipe(template=Template(chat=True))
    (finding,) = examiner(make_dataset(rows), rows, recipe, ())
    assert (finding.level, "no chat template" in finding.message) == ("error", True)

"""Encoding of rows: truncated prompts are counted, truncated answers refused."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from made_rows import make_recipe, make_row, make_split
from tiny_base import make_tokenizer
from trunkline.contracts import Settings, Template
from trunkline.data.encode import encode_answer, encode_prompt
from trunkline.errors import DataError
from trunkline.tasks import ClassificationTask, GenerationTask, RegressionTask
from trunkline.training.job import EncodedRows, check_answers_fit, encode_rows

LABELS = ClassificationTask(("even", "odd"))
NUMBERS = RegressionTask("linear", 0.0, 1.0, "USD")
ANSWERS = GenerationTask(8)
ROWS = [make_row(n, text="milk " * (n + 1)) for n in range(6)]


@cache
def tokenizer() -> Any:
    return make_tokenizer()


def encoded(
    task: Any = LABELS, rows: Any = ROWS, max_length: int = 128, **recipe: Any
) -> EncodedRows:
    given = make_recipe(task.kind, settings=Settings(max_length=max_length), **recipe)
    return encode_rows(rows, given, task, tokenizer())


def test_examples_keep_the_rows_order_and_use_the_template() -> None:
    template = Template(prompt="Product: {text}")
    result = encoded(template=template)

    assert [one["input_ids"] for one in result.examples] == [
        encode_prompt(row.text, template, tokenizer()) for row in ROWS
    ]
    assert [one["target"] for one in result.examples] == [0, 1, 0, 1, 0, 1]


def test_tokens_are_counted() -> None:
    result = encoded()
    lengths = [len(one["input_ids"]) for one in result.examples]

    assert (result.tokens, result.longest, result.truncated) == (sum(lengths), max(lengths), 0)


@pytest.mark.parametrize("task", [LABELS, NUMBERS], ids=lambda task: task.kind)
def test_long_prompt_is_truncated_and_counted(task: Any) -> None:
    rows = ROWS if task is LABELS else [make_row(n, text=row.text, target=1.0)
                                        for n, row in enumerate(ROWS)]  # fmt: skip
    full, cut = encoded(task, rows), encoded(task, rows, max_length=4)

    lengths = [len(one["input_ids"]) for one in full.examples]
    assert cut.truncated == sum(length > 4 for length in lengths) > 0
    assert cut.longest == 4
    assert cut.tokens == sum(min(length, 4) for length in lengths)
    for one, other in zip(full.examples, cut.examples, strict=True):
        assert other["input_ids"] == one["input_ids"][:4]


def test_prompt_at_the_limit_is_not_truncated() -> None:
    longest = encoded().longest

    assert encoded(max_length=longest).truncated == 0
    assert encoded(max_length=longest - 1).truncated == 1


def test_generation_that_would_be_cut_is_refused_with_row_and_length() -> None:
    longest = encoded(ANSWERS).longest
    with pytest.raises(DataError, match=rf"Row 'r5' takes {longest} tokens") as caught:
        encoded(ANSWERS, max_length=longest - 1)

    assert caught.value.hint == f"Use --set max_length={longest} or more."
    assert encoded(ANSWERS, max_length=longest).truncated == 0


def test_generation_keeps_every_token_of_the_answer() -> None:
    for row, example in zip(ROWS, encoded(ANSWERS).examples, strict=True):
        answer = encode_answer(str(row.target), tokenizer())
        assert example["input_ids"][-example["answer"] :] == answer


def test_no_rows_give_no_examples() -> None:
    assert encoded(rows=[]) == EncodedRows([], 0, 0, 0)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_answer_longer_than_max_new_tokens_is_refused(part: str) -> None:
    rows = [make_row(1, target="milk"), make_row(2, target="a very long answer indeed")]
    parts: dict[str, list[Any]] = {"train": [], "validation": [], "test": [], part: rows}
    prepared = SimpleNamespace(split=make_split(**parts), augmented=())
    length = len(encode_answer("a very long answer indeed", tokenizer()))
    recipe = make_recipe("generation", max_new_tokens=length - 1)
    with pytest.raises(DataError, match=rf"row 'r2' has {length} tokens") as caught:
        check_answers_fit(prepared, recipe, tokenizer())  # type: ignore[arg-type]

    assert caught.value.hint
    longer = make_recipe("generation", max_new_tokens=length)
    check_answers_fit(prepared, longer, tokenizer())  # type: ignore[arg-type]

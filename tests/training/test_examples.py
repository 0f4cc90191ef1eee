"""Encoding of rows: long texts are cut and counted, truncated answers refused."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from made_rows import make_recipe, make_row, make_split
from tiny_base import make_tokenizer
from trunkline.contracts import Template
from trunkline.data.encode import encode_answer, encode_prompt
from trunkline.data.lengths import LengthReport, check_answers_fit, lengths_text
from trunkline.errors import DataError
from trunkline.tasks import ClassificationTask, GenerationTask, RegressionTask
from trunkline.training.job import EncodedRows, encode_rows, prompt_of

LABELS = ClassificationTask(("even", "odd"))
NUMBERS = RegressionTask("linear", 0.0, 1.0, "USD")
ANSWERS = GenerationTask(8)
PLAIN = Template()
ROWS = [make_row(n, text="milk " * (n + 1)) for n in range(6)]


@cache
def tokenizer() -> Any:
    return make_tokenizer()


def encoded(
    task: Any = LABELS, rows: Any = ROWS, max_length: int = 128, template: Template = PLAIN
) -> EncodedRows:
    return encode_rows(rows, template, task, tokenizer(), max_length)


def test_examples_keep_the_rows_order_and_use_the_template() -> None:
    template = Template(prompt="Product: {text}")
    result = encoded(template=template)

    assert [one["input_ids"] for one in result.examples] == [
        encode_prompt(row.text, template, tokenizer()).ids for row in ROWS
    ]
    assert [one["target"] for one in result.examples] == [0, 1, 0, 1, 0, 1]


def test_tokens_are_counted() -> None:
    result = encoded()
    lengths = [len(one["input_ids"]) for one in result.examples]

    assert (result.tokens, result.longest, result.truncated) == (sum(lengths), max(lengths), 0)
    assert result.lengths == lengths


@pytest.mark.parametrize("task", [LABELS, NUMBERS, ANSWERS], ids=lambda task: task.kind)
def test_long_prompt_is_cut_before_the_instruction_at_its_end_and_counted(task: Any) -> None:
    template = Template(prompt="Product: {text}\nLabel:")
    rows = [replace(row, target=1.0) for row in ROWS] if task is NUMBERS else ROWS
    limit = len(encode_prompt(ROWS[2].text, template, tokenizer()).ids)
    cut = encoded(task, rows, limit + (8 if task is ANSWERS else 0), template)

    assert cut.truncated == 3
    assert max(cut.lengths) > limit
    for row, example in zip(rows, cut.examples, strict=True):
        prompt = encode_prompt(row.text, template, tokenizer(), limit)
        assert prompt_of(example) == prompt.ids
        assert len(prompt.ids) <= limit
        assert tokenizer().decode(prompt.ids).endswith("\nLabel:")


def test_prompt_at_the_limit_is_not_truncated() -> None:
    longest = encoded().longest

    assert encoded(max_length=longest).truncated == 0
    assert encoded(max_length=longest - 1).truncated == 1


def test_template_without_room_for_a_text_is_refused_with_the_row() -> None:
    template = Template(prompt="A very long instruction: {text}")
    with pytest.raises(DataError, match=r"Row 'r0': .* no room for the text") as caught:
        encoded(max_length=10, template=template)
    assert "--set max_length=10" in (caught.value.hint or "")


def test_generation_keeps_every_token_of_the_answer() -> None:
    for row, example in zip(ROWS, encoded(ANSWERS).examples, strict=True):
        answer = encode_answer(str(row.target), tokenizer())
        assert example["input_ids"][-example["answer"] :] == answer


def test_no_rows_give_no_examples() -> None:
    result = encoded(rows=[])
    assert (result.examples, result.tokens, result.longest) == ([], 0, 0)


def test_quantiles_of_lengths_are_lengths_of_rows() -> None:
    report = LengthReport.of([*range(1, 101)], 96)

    assert (report.median, report.p95, report.longest) == (50, 96, 100)
    assert (report.truncated, report.rows, report.share) == (4, 100, 0.04)
    assert lengths_text(report.to_json()).endswith("longest 100 tokens; cut to 96: 4 of 100 (4.0%)")
    assert LengthReport.of([7], 7) == LengthReport(7, 1, 0, 7, 7, 7)
    assert LengthReport.of([], 7).share == 0


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

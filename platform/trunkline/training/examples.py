"""Rows → token examples, with a count of what was cut. Must not know: the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trunkline.contracts import RecipeSpec, Row
from trunkline.data.encode import encode_answer, encode_prompt
from trunkline.errors import DataError
from trunkline.tasks import AnyTask, GenerationTask


@dataclass(frozen=True, slots=True)
class Encoded:
    """Examples of one part; ``truncated`` prompts lost their end to ``max_length``."""

    examples: list[dict[str, Any]]
    truncated: int
    tokens: int
    longest: int


def encode_rows(rows: Sequence[Row], recipe: RecipeSpec, task: AnyTask, tokenizer: Any) -> Encoded:
    """Encode by the recipe's template.

    Raises:
        DataError: an answer would be cut off: a model trained on halves of answers learns halves.
    """
    limit = recipe.settings.max_length
    examples: list[dict[str, Any]] = []
    truncated = tokens = longest = 0
    for row in rows:
        prompt = encode_prompt(row.text, recipe.template, tokenizer)
        if len(prompt) > limit and not isinstance(task, GenerationTask):
            prompt = prompt[:limit]
            truncated += 1
        example = task.example(prompt, row, tokenizer)
        length = len(example["input_ids"])
        if length > limit:
            raise DataError(
                f"Row {row.id!r} takes {length} tokens with its answer; max_length = {limit} would "
                "cut the answer off.",
                f"Use --set max_length={length} or more.",
            )
        examples.append(example)
        tokens += length
        longest = max(longest, length)
    return Encoded(examples, truncated, tokens, longest)


def check_answers_fit(rows: Sequence[Row], recipe: RecipeSpec, tokenizer: Any) -> None:
    """Raise :class:`DataError` if a wanted answer is longer than the recipe may generate."""
    for row in rows:
        length = len(encode_answer(str(row.target), tokenizer))
        if length > recipe.max_new_tokens:
            raise DataError(
                f"The answer of row {row.id!r} has {length} tokens; max_new_tokens = "
                f"{recipe.max_new_tokens} would cut it off.",
                "Raise max_new_tokens in the recipe.",
            )

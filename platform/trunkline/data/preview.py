"""Rows as the model reads them: the prompt with its template, and the tokens that carry loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trunkline.contracts import DatasetSpec, RecipeSpec, Row, TransformSpec
from trunkline.data.encode import encode_answer, encode_row
from trunkline.data.lengths import longest_prompt
from trunkline.data.prepare import prepare
from trunkline.data.targets import spans_of


@dataclass(frozen=True, slots=True)
class RowPreview:
    """One training row.

    Attributes:
        prompt: the decoded prompt, control tokens included.
        learned: what carries loss, in brackets: the answer's tokens, or the target of a head.
        prompt_tokens, learned_tokens: their counts; a head learns at the prompt's last token.
        truncated: whether the text was cut.
        input_ids: token ids of the prompt, and of the answer of a generation.
    """

    id: str
    prompt: str
    learned: str
    prompt_tokens: int
    learned_tokens: int
    truncated: bool
    input_ids: tuple[int, ...]

    @property
    def summary(self) -> str:
        """``13 tokens, 3 carry loss``."""
        cut = ", the text was cut" if self.truncated else ""
        return f"{self.prompt_tokens:,} tokens, {self.learned_tokens:,} carry loss{cut}"


def preview_rows(
    dataset: DatasetSpec,
    recipe: RecipeSpec,
    transforms: Sequence[TransformSpec],
    tokenizer: Any,
    context: int,
    *,
    count: int,
) -> list[RowPreview]:
    """The first training rows, encoded as in training.

    Args:
        tokenizer: of the base.
        context: of the base, in tokens.
        count: rows at most.

    Raises:
        DataError: the rows can't be trained on.
    """
    prepared = prepare(dataset, recipe, transforms)
    limit = longest_prompt(dataset, recipe, context)
    rows = (*prepared.split.train, *prepared.augmented)[:count]
    return [_preview(row, dataset, recipe, tokenizer, limit) for row in rows]


def _preview(
    row: Row, dataset: DatasetSpec, recipe: RecipeSpec, tokenizer: Any, limit: int
) -> RowPreview:
    prompts = encode_row(
        row, recipe.template, tokenizer, limit, with_offsets=dataset.task == "tagging"
    )
    prompt = prompts[row.candidates.index(str(row.target))] if row.candidates else prompts[0]
    if dataset.task == "generation":
        answer = encode_answer(str(row.target), tokenizer)
        pieces = [tokenizer.decode([token]) for token in answer]
        learned, tokens = "".join(f"[{piece}]" for piece in pieces), len(answer)
    elif dataset.task == "tagging":
        answer, tokens = [], sum(one is not None for one in prompt.offsets)
        learned = "".join(
            f" [{row.text[one.start : one.end]}: {one.label}]" for one in spans_of(row)
        )
    else:
        named = ", ".join(map(str, row.target)) if isinstance(row.target, tuple) else row.target
        answer, learned, tokens = [], f" → [{named}]", 1
    return RowPreview(
        id=row.id,
        prompt=tokenizer.decode(prompt.ids),
        learned=learned,
        prompt_tokens=len(prompt.ids),
        learned_tokens=tokens,
        truncated=prompt.truncated,
        input_ids=(*prompt.ids, *answer),
    )

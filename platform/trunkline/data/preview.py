"""Rows as the model reads them: the prompt with its template, and the tokens that carry loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trunkline.contracts import DatasetSpec, RecipeSpec, Row, TransformSpec
from trunkline.data.encode import Prompt, encode_answer, encode_prompts
from trunkline.data.lengths import check_conversations_fit, longest_prompt
from trunkline.data.prepare import prepare
from trunkline.data.targets import spans_of


@dataclass(frozen=True, slots=True)
class RowPreview:
    """One training row.

    Attributes:
        prompt: the decoded prompt, control tokens included; earlier answers of a conversation that
            carry loss are in brackets, token by token.
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
    tagging = dataset.task == "tagging"
    prompts = [
        _relevant(row, encode_prompts(row, recipe.template, tokenizer, limit, with_offsets=tagging))
        for row in rows
    ]
    check_conversations_fit(rows, [one.full_length for one in prompts], recipe, context)
    return [
        _preview(row, prompt, dataset, tokenizer) for row, prompt in zip(rows, prompts, strict=True)
    ]


def _relevant(row: Row, prompts: Sequence[Prompt]) -> Prompt:
    """The prompt of a row; of a ranking that of the relevant candidate."""
    return prompts[row.candidates.index(str(row.target)) if row.candidates else 0]


def _preview(row: Row, prompt: Prompt, dataset: DatasetSpec, tokenizer: Any) -> RowPreview:
    if dataset.task == "generation":
        answer = encode_answer(str(row.target), tokenizer)
        learned, tokens = _in_brackets(answer, tokenizer), len(answer)
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
        prompt=_prompt_text(prompt, tokenizer),
        learned=learned,
        prompt_tokens=len(prompt.ids),
        learned_tokens=tokens + sum(end - begin for begin, end in prompt.learned),
        truncated=prompt.truncated,
        input_ids=(*prompt.ids, *answer),
    )


def _prompt_text(prompt: Prompt, tokenizer: Any) -> str:
    parts, done = [], 0
    for begin, end in prompt.learned:
        parts.append(tokenizer.decode(prompt.ids[done:begin]))
        parts.append(_in_brackets(prompt.ids[begin:end], tokenizer))
        done = end
    return "".join((*parts, tokenizer.decode(prompt.ids[done:])))


def _in_brackets(ids: Sequence[int], tokenizer: Any) -> str:
    return "".join(f"[{tokenizer.decode([token])}]" for token in ids)

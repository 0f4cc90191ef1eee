"""How long prompts are in tokens, and how many of their texts are cut to a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trunkline.contracts import DatasetSpec, RecipeSpec, Row
from trunkline.data.encode import encode_answer, encode_prompts
from trunkline.data.prepare import Prepared
from trunkline.errors import DataError


@dataclass(frozen=True, slots=True)
class LengthReport:
    """Lengths of prompts in tokens, with their complete texts.

    Attributes:
        limit: the longest prompt; the text of a longer one is cut.
        rows: how many prompts there are.
        truncated: how many of them are longer than the limit.
        median, p95, longest: quantiles of the lengths; 95 % of the prompts have at most ``p95``.
    """

    limit: int
    rows: int
    truncated: int
    median: int
    p95: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], limit: int) -> LengthReport:
        """Summarize the lengths of prompts."""
        ordered = sorted(lengths) or [0]
        last = len(ordered) - 1
        return cls(
            limit=limit,
            rows=len(lengths),
            truncated=sum(length > limit for length in lengths),
            median=ordered[last // 2],
            p95=ordered[-(-last * 95 // 100)],
            longest=ordered[-1],
        )

    @property
    def share(self) -> float:
        """The share of rows whose text is cut."""
        return self.truncated / self.rows if self.rows else 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def lengths_text(lengths: Mapping[str, Any]) -> str:
    """One line for the JSON form of a :class:`LengthReport`."""
    limit, rows, truncated = (lengths[name] for name in ("limit", "rows", "truncated"))
    cut = f"{truncated:,} of {rows:,} ({truncated / rows:.1%})" if truncated else "none"
    return (
        f"median {lengths['median']:,}, 95 % {lengths['p95']:,}, longest {lengths['longest']:,} "
        f"tokens; cut to {limit:,}: {cut}"
    )


def longest_prompt(dataset: DatasetSpec, recipe: RecipeSpec, context: int) -> int:
    """How many tokens a prompt may have; the rest is for the answer of a generation."""
    answer = recipe.max_new_tokens if dataset.task == "generation" else 0
    return min(recipe.settings.max_length, context) - answer


def count_lengths(
    rows: Sequence[Row], dataset: DatasetSpec, recipe: RecipeSpec, tokenizer: Any, context: int
) -> LengthReport:
    """How long the prompts of a recipe are, of a ranking the longest of each row.

    Args:
        rows: prepared rows.
        dataset: of the rows.
        recipe: its template and limits.
        tokenizer: of the base.
        context: of the base, in tokens.

    Raises:
        DataError: the template leaves no room for the text of a row, or a conversation is too
            long.
    """
    limit = longest_prompt(dataset, recipe, context)
    prompts = (encode_prompts(row, recipe.template, tokenizer, limit) for row in rows)
    lengths = [max(one.full_length for one in row) for row in prompts]
    check_conversations_fit(rows, lengths, recipe, context)
    return LengthReport.of(lengths, limit)


def check_conversations_fit(
    rows: Sequence[Row], lengths: Sequence[int], recipe: RecipeSpec, context: int
) -> None:
    """Raise :class:`DataError` if a conversation is too long, because none is ever cut.

    Args:
        lengths: tokens of each row's prompt.
        context: of the base, in tokens.
    """
    limit = min(recipe.settings.max_length, context) - recipe.max_new_tokens
    pairs = zip(rows, lengths, strict=True)
    long = {row.id: length for row, length in pairs if row.history and length > limit}
    if not long:
        return
    most = max(long.values())
    needed = most + recipe.max_new_tokens
    raise DataError(
        f"{len(long):,} of {len(rows):,} conversations have more than {limit:,} tokens before "
        f"their last answer, up to {most:,}, and none is cut: rows {', '.join(list(long)[:10])}"
        f"{', …' if len(long) > 10 else ''}.",
        f"Use --set max_length={needed}, or leave these rows out."
        if needed <= context
        else f"Leave out what doesn't fit the base's context of {context:,} tokens, less "
        f"{recipe.max_new_tokens:,} for the answer.",
    )


def check_answers_fit(prepared: Prepared, recipe: RecipeSpec, tokenizer: Any) -> None:
    """Raise :class:`DataError` if an answer is longer than the recipe's ``max_new_tokens``."""
    if recipe.task != "generation":
        return
    split = prepared.split
    rows = (*split.train, *prepared.augmented, *split.validation, *split.test)
    lengths = [len(encode_answer(str(row.target), tokenizer)) for row in rows]
    longest = max(lengths)
    if longest > recipe.max_new_tokens:
        long = sum(length > recipe.max_new_tokens for length in lengths)
        row_id = rows[lengths.index(longest)].id
        raise DataError(
            f"The answer of row {row_id!r} has {longest} tokens; max_new_tokens = "
            f"{recipe.max_new_tokens} would cut it off"
            + (f", and {long - 1:,} shorter ones." if long > 1 else "."),
            f"Raise max_new_tokens to {longest} in the recipe; of your own file, in YAML "
            "(`train --config`).",
        )

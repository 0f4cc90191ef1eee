"""How long prompts are in tokens, and how many of their texts are cut to a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trunkline.contracts import DatasetSpec, RecipeSpec, Row
from trunkline.data.encode import encode_answer, encode_row
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
        DataError: the template leaves no room for the text of a row.
    """
    limit = longest_prompt(dataset, recipe, context)
    prompts = (encode_row(row, recipe.template, tokenizer, limit) for row in rows)
    return LengthReport.of([max(one.full_length for one in row) for row in prompts], limit)


def check_answers_fit(prepared: Prepared, recipe: RecipeSpec, tokenizer: Any) -> None:
    """Raise :class:`DataError` if an answer is longer than the recipe's ``max_new_tokens``."""
    if recipe.task != "generation":
        return
    split = prepared.split
    for row in (*split.train, *prepared.augmented, *split.validation, *split.test):
        length = len(encode_answer(str(row.target), tokenizer))
        if length > recipe.max_new_tokens:
            raise DataError(
                f"The answer of row {row.id!r} has {length} tokens; max_new_tokens = "
                f"{recipe.max_new_tokens} would cut it off.",
                "Raise max_new_tokens in the recipe; of your own file, in YAML (`train --config`).",
            )

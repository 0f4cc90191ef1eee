"""What is suspicious in a dataset as a recipe would use it: findings of ``plugins check``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trunkline.contracts import DatasetSpec, RecipeSpec, Row, TransformSpec
from trunkline.data.lengths import LengthReport, check_answers_fit, count_lengths, lengths_text
from trunkline.data.prepare import DataReport, Prepared, default_recipe, prepare
from trunkline.data.targets import LABELED
from trunkline.errors import TrunklineError
from trunkline.labels import clean_label, similar_text
from trunkline.plugins import Finding


@dataclass(frozen=True, slots=True)
class Examiner:
    """Examines the rows of recipes, for `plugins check`.

    Attributes:
        tokenizer: gives the tokenizer and the context of the base when rows are examined; None:
            lengths are not counted.
    """

    tokenizer: Callable[[], tuple[Any, int] | None] = lambda: None

    def __call__(
        self,
        dataset: DatasetSpec,
        rows: Sequence[Row],
        recipe: RecipeSpec | None,
        transforms: Sequence[TransformSpec],
    ) -> Iterator[Finding]:
        """Prepare the rows as a training would, and report what it would count or refuse.

        Without a recipe, one of defaults is used.
        """
        recipe = replace(recipe or default_recipe(dataset), task=dataset.task)
        dataset = replace(dataset, load=lambda: rows)
        try:
            prepared = prepare(dataset, recipe, transforms)
        except TrunklineError as error:
            yield _data_error(recipe, error)
            return
        yield from self.prepared_findings(prepared, dataset, recipe)

    def prepared_findings(
        self, prepared: Prepared, dataset: DatasetSpec, recipe: RecipeSpec
    ) -> Iterator[Finding]:
        """Report what prepared rows count, and texts that are too long."""
        lengths = None
        try:
            if dataset.modality == "text" and (known := self.tokenizer()) is not None:
                split = prepared.split
                used = (*split.train, *prepared.augmented, *split.validation, *split.test)
                check_answers_fit(prepared, recipe, known[0])
                lengths = count_lengths(used, dataset, recipe, *known)
        except TrunklineError as error:
            yield _data_error(recipe, error)
            return
        for message in data_warnings(prepared.report):
            yield Finding.warning(dataset.name, message)
        if missing := missing_labels(dataset, prepared):
            yield Finding.warning(
                dataset.name,
                f"{len(missing)} of its declared labels have no row, such as {missing[0]!r}, so no "
                "adapter can predict them; add rows, or remove them from `labels`",
            )
        if lengths is not None and lengths.truncated:
            yield Finding.warning(recipe.name, length_warning(lengths))


def missing_labels(dataset: DatasetSpec, prepared: Prepared) -> list[str]:
    """The declared labels that no prepared row has."""
    if dataset.task not in LABELED:
        return []
    declared = dict.fromkeys(map(clean_label, dataset.labels))
    return [label for label in declared if label not in prepared.labels]


def _data_error(recipe: RecipeSpec, error: TrunklineError) -> Finding:
    hint = f" {error.hint}" if error.hint else ""
    return Finding.error(recipe.name, f"its data can't be used: {error.message}{hint}")


def data_warnings(report: DataReport) -> Iterator[str]:
    """A sentence with count and advice for everything suspicious in prepared rows."""
    unusable = {why: n for why, n in report.dropped.items() if not why.startswith("by ")}
    if count := sum(unusable.values()):
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in unusable.items())
        yield f"{count:,} of {report.read:,} rows are dropped ({reasons}); fix or leave them out"
    if report.duplicated:
        yield (
            f"{report.duplicated:,} rows have the text and target of another row and are dropped; "
            "leave them out"
        )
    if report.label_conflicts:
        yield (
            f"{report.label_conflicts:,} rows have the text of a row with another target; correct "
            "the targets, or add to the text what tells the rows apart"
        )
    if report.near_duplicates:
        yield (
            f"{report.near_duplicates:,} of {report.parts['test']:,} test rows have a "
            "near-duplicate in train, so scores are too high; put near-duplicates into one group"
        )
    if report.labels_cleaned:
        yield (
            f"{report.labels_cleaned:,} rows have a label with white space or invisible characters "
            "at its ends, which are removed; write the labels without them"
        )
    if report.similar_labels:
        yield (
            f"{len(report.similar_labels)} set(s) of labels differ only in case, white space or "
            f"Unicode form: {similar_text(report.similar_labels)}; write each label in one way"
        )


def length_warning(lengths: LengthReport) -> str:
    """The sentence for prompts whose text is cut."""
    return (
        f"{lengths.truncated:,} of {lengths.rows:,} texts ({lengths.share:.1%}) are too long for "
        f"max_length and are cut ({lengths_text(lengths.to_json())}); raise max_length, or shorten "
        "the texts so that their beginning tells the answer"
    )

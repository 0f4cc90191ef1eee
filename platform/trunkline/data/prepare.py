"""From a dataset's rows to a checked split, with a count of everything that was left out.

Owns: the checks on rows and the report about them. Must not know: models or tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trunkline.contracts import DatasetSpec, RecipeSpec, Row, Template, TransformSpec
from trunkline.data.split import Fold, Split, split_rows
from trunkline.errors import DataError, PluginError, TrunklineError

NEAR_DUPLICATE = 0.95
"""Cosine of character 2-5 gram TF-IDF vectors from which two texts count as near-duplicates."""


@dataclass(frozen=True, slots=True)
class DataReport:
    """What became of the rows.

    ``dropped`` counts by reason; ``duplicated`` rows (same cleaned text, same target) are dropped
    and counted apart; ``conflicting`` rows share their cleaned text with a row of another target;
    ``near_duplicates`` are test rows that have a near-copy in train.
    """

    read: int
    kept: int
    dropped: dict[str, int]
    duplicated: int
    conflicting: int
    near_duplicates: int
    augmented: int
    parts: dict[str, int]
    groups: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A dataset made ready for one recipe.

    ``fingerprint`` is of the rows that were kept, after cleaning transforms, before the split.
    """

    split: Split
    labels: tuple[str, ...]
    fingerprint: str
    report: DataReport
    augmented: tuple[Row, ...] = field(default=())


def read_rows(dataset: DatasetSpec) -> list[Row]:
    """Load a dataset's rows.

    Raises:
        PluginError: the plugin's reader raised or gave something that is no row.
        DataError: there are no rows, or two share an id.
    """
    try:
        rows = list(dataset.load())
    except TrunklineError:
        raise
    except Exception as error:
        raise PluginError(
            f"Reading {dataset.name} failed: {type(error).__name__}: {error}",
            "The plugin's data package may be missing; `trunkline plugins check` says more.",
        ) from error
    for row in rows:
        if not isinstance(row, Row):
            raise PluginError(
                f"{dataset.name} gave {type(row).__name__!r} where a Row was expected.",
                "A dataset's `load` yields trunkline.contracts.Row.",
            )
    if not rows:
        raise DataError(
            f"{dataset.name} has no rows.", f"See `trunkline datasets show {dataset.name}`."
        )
    ids = Counter(row.id for row in rows)
    twice = [row_id for row_id, count in ids.items() if count > 1]
    if twice:
        raise DataError(
            f"{dataset.name} gives the row id {twice[0]!r} more than once.",
            "Ids must be unique: predictions are kept under them.",
        )
    return rows


def fingerprint(rows: Iterable[Row]) -> str:
    """sha256 over the rows' own bytes, in id order."""
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda row: row.id):
        parts = [row.id, row.text, row.target, row.group, row.stratum, sorted(row.slices.items())]
        digest.update(json.dumps(parts, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def prepare(
    dataset: DatasetSpec,
    recipe: RecipeSpec,
    transforms: Sequence[TransformSpec] = (),
    fold: Fold | None = None,
) -> Prepared:
    """Read, clean, check, and split a dataset for a recipe.

    Raises:
        DataError: nothing to train on or judge: no rows left, a single class, a class with a
            single row, a target of the wrong kind.
    """
    read = read_rows(dataset)
    settings = recipe.settings
    dropped: Counter[str] = Counter()
    rng = random.Random(settings.split_seed)
    rows = _clean(read, recipe.template, transforms, dropped, rng)
    rows = _check_targets(dataset, recipe, rows, dropped)
    rows, duplicated, conflicting = _drop_duplicates(rows, recipe.template)
    if not rows:
        raise DataError(
            f"{dataset.name} has no rows left of {len(read)}: "
            + ", ".join(f"{count} {reason}" for reason, count in dropped.items())
            + ".",
            f"See `trunkline datasets show {dataset.name}`.",
        )
    labels = _labels(dataset, rows) if dataset.task == "classification" else ()
    split = split_rows(
        rows,
        dataset.task,
        seed=settings.split_seed,
        validation_share=dataset.validation_share,
        test_share=dataset.test_share,
        fold=fold,
    )
    if settings.max_examples and settings.max_examples < len(split.train):
        chosen = random.Random(settings.seed).sample(range(len(split.train)), settings.max_examples)
        split = replace(split, train=tuple(split.train[index] for index in sorted(chosen)))
    augmented = _augment(split.train, transforms, random.Random(settings.seed))
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    report = DataReport(
        read=len(read),
        kept=len(rows),
        dropped=dict(dropped),
        duplicated=duplicated,
        conflicting=conflicting,
        near_duplicates=near_duplicates(split, recipe.template),
        augmented=len(augmented),
        parts={name: len(part) for name, part in parts.items()},
        groups={name: len({row.group for row in part}) for name, part in parts.items()},
    )
    return Prepared(split, labels, fingerprint(rows), report, augmented)


def near_duplicates(split: Split, template: Template) -> int:
    """How many test rows have a near-copy in train, by :data:`NEAR_DUPLICATE`."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(2, 5), sublinear_tf=True)
    try:
        train = vectorizer.fit_transform([template.cleaned(row.text) for row in split.train])
    except ValueError:  # every training text is shorter than two characters
        return 0
    test = vectorizer.transform([template.cleaned(row.text) for row in split.test])
    count = 0
    for start in range(0, test.shape[0], 256):
        cosines = test[start : start + 256] @ train.T
        count += int((cosines.max(axis=1).toarray() >= NEAR_DUPLICATE).sum())
    return count


def _clean(
    rows: Sequence[Row],
    template: Template,
    transforms: Sequence[TransformSpec],
    dropped: Counter[str],
    rng: random.Random,
) -> list[Row]:
    kept: list[Row] = []
    steps = [transform for transform in transforms if transform.stage == "clean"]
    for row in rows:
        current: Row | None = row
        for step in steps:
            assert current is not None
            result = list(step.apply(current, rng))
            if len(result) > 1:
                raise PluginError(
                    f"The cleaning step {step.name} gave {len(result)} rows for one.",
                    "Only steps of the stage 'augment' may add rows.",
                )
            current = result[0] if result else None
            if current is None:
                dropped[f"by {step.name}"] += 1
                break
        if current is None:
            continue
        if not template.cleaned(current.text):
            dropped["empty text"] += 1
            continue
        kept.append(current)
    return kept


def _check_targets(
    dataset: DatasetSpec, recipe: RecipeSpec, rows: list[Row], dropped: Counter[str]
) -> list[Row]:
    kept: list[Row] = []
    for row in rows:
        target = row.target
        if dataset.task == "regression":
            if isinstance(target, bool) or not isinstance(target, int | float):
                raise DataError(
                    f"Row {row.id!r} of {dataset.name} has the target {target!r}, not a number.",
                    "A regression dataset's targets are numbers in its unit.",
                )
            if not math.isfinite(target) or (recipe.scale == "log" and target <= 0):
                dropped["target not a positive finite number"] += 1
                continue
        elif not isinstance(target, str):
            raise DataError(
                f"Row {row.id!r} of {dataset.name} has the target {target!r}, not a text.",
                f"A {dataset.task} dataset's targets are texts.",
            )
        elif not target.strip():
            dropped["no target"] += 1
            continue
        kept.append(row)
    return kept


def _drop_duplicates(rows: list[Row], template: Template) -> tuple[list[Row], int, int]:
    targets: dict[str, set[Any]] = {}
    kept: list[Row] = []
    for row in rows:
        seen = targets.setdefault(template.cleaned(row.text), set())
        if row.target not in seen:
            seen.add(row.target)
            kept.append(row)
    conflicting = sum(len(targets[template.cleaned(row.text)]) > 1 for row in kept)
    return kept, len(rows) - len(kept), conflicting


def _labels(dataset: DatasetSpec, rows: list[Row]) -> tuple[str, ...]:
    counts = Counter(str(row.target) for row in rows)
    if len(counts) < 2:
        raise DataError(
            f"{dataset.name} has one class only: {next(iter(counts))!r}.",
            "Classification needs two or more.",
        )
    single = [label for label, count in counts.items() if count == 1]
    if single:
        raise DataError(
            f"The class {single[0]!r} of {dataset.name} has one row; it can't be both trained on "
            "and judged.",
            "Add rows, or fold small classes together in the plugin.",
        )
    unknown = [label for label in counts if dataset.labels and label not in dataset.labels]
    if unknown:
        raise DataError(
            f"{dataset.name} has the label {unknown[0]!r}, which is not among its declared ones.",
            "Add it to `labels` in the DatasetSpec.",
        )
    return tuple(label for label in dataset.labels if label in counts) or tuple(sorted(counts))


def _augment(
    rows: Sequence[Row], transforms: Sequence[TransformSpec], rng: random.Random
) -> tuple[Row, ...]:
    added: list[Row] = []
    for step in transforms:
        if step.stage == "augment":
            for row in rows:
                added += [new for new in step.apply(row, rng) if new != row]
    return tuple(added)

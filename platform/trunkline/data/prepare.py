"""Prepare a dataset for a recipe: read, clean, check and split its rows, and count the drops."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trunkline.contracts import DatasetSpec, Gate, RecipeSpec, Row, Template, TransformSpec
from trunkline.data.encode import check_characters
from trunkline.data.near_duplicates import Method, NearDuplicate, method_for, near_duplicates
from trunkline.data.pairs import halves_of, with_texts
from trunkline.data.picture_facts import in_row
from trunkline.data.split import Fold, Split, split_rows
from trunkline.data.targets import (
    LABELED,
    check_template,
    count_labels,
    default_template,
    labels_in,
    normalized,
    shape_problem,
)
from trunkline.data.transforms import augment_rows, clean_rows
from trunkline.errors import (
    DataError,
    PluginCallError,
    TooLargeError,
    TrunklineError,
    UsageError,
    plugin_call,
)
from trunkline.labels import clean_label, is_blank, similar_advice, similar_labels


@dataclass(frozen=True, slots=True)
class DataReport:
    """Counts of rows.

    Attributes:
        read: rows of the dataset.
        kept: rows after cleaning, checks and deduplication.
        dropped: dropped rows by reason, duplicates not included.
        duplicated: dropped rows with the same cleaned text and target as another row.
        label_conflicts: kept rows with the same cleaned text as a row with another target.
        near_duplicates: test rows with a near-duplicate in train; see
            :mod:`~trunkline.data.near_duplicates`.
        compared_by: how they were compared: ``tfidf`` or ``minhash``; pictures by ``phash``.
        augmented: rows added to train by transforms.
        parts, groups: rows and groups in each part of the split.
        given_split: whether the rows brought their split.
        labels_cleaned: rows whose label lost white space or invisible characters at its ends.
        similar_labels: sets of labels that differ only in case, white space or Unicode form.
    """

    read: int
    kept: int
    dropped: dict[str, int]
    duplicated: int
    label_conflicts: int
    near_duplicates: int
    augmented: int
    parts: dict[str, int]
    groups: dict[str, int]
    given_split: bool
    labels_cleaned: int
    similar_labels: list[list[str]]
    compared_by: Method = "tfidf"

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A dataset prepared for one recipe.

    Attributes:
        split: the kept rows.
        labels: of a classification, in the order of the head's outputs; else empty.
        fingerprint: of the kept rows, after cleaning and before the split.
        report: counts.
        augmented: rows that transforms add to train.
        near_duplicates: the test rows that the report counts, with the rows of train.
    """

    split: Split
    labels: tuple[str, ...]
    fingerprint: str
    report: DataReport
    augmented: tuple[Row, ...] = field(default=())
    near_duplicates: tuple[NearDuplicate, ...] = ()


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """A dataset after the core's checks, with label counts and some example rows."""

    spec: DatasetSpec
    prepared: Prepared
    labels: dict[str, int]
    examples: tuple[Row, ...]


def read_rows(
    dataset: DatasetSpec, unreadable: dict[str, TrunklineError] | None = None
) -> list[Row]:
    """Load a dataset's rows.

    Args:
        unreadable: receives, by row id, why a picture can't be read, and the row is left out; by
            default the first one is an error.

    Raises:
        PluginCallError: the plugin's reader raised, or yielded something that is not a Row.
        DataError: there are no rows, two share an id, or a text field holds something else, or
            a picture is missing or can't be read.
    """
    hint = "The plugin's data package may be missing; `trunkline plugins check` shows more."
    with plugin_call(f"Reading {dataset.name}", hint):
        rows = list(dataset.load())
    for row in rows:
        if not isinstance(row, Row):
            raise PluginCallError(
                f"{dataset.name} gave {type(row).__name__!r} where a Row was expected.",
                "A dataset's `load` yields trunkline.contracts.Row.",
            )
        _check_texts(dataset, row)
    listed = rows
    if dataset.has_pictures:
        rows = list(_with_pictures(dataset, rows, unreadable))
    _check_no_pictures(dataset, rows)
    if not listed:
        raise DataError(
            f"{dataset.name} has no rows.", f"See `trunkline datasets show {dataset.name}`."
        )
    blank = next((index for index, row in enumerate(listed, 1) if not row.id.strip()), None)
    if blank is not None:
        raise DataError(
            f"Row {blank:,} of {dataset.name} has an empty id.",
            "Give every row a name of its own: predictions are stored under it.",
        )
    ids = Counter(row.id for row in listed)
    repeated = [row_id for row_id, count in ids.items() if count > 1]
    if repeated:
        raise DataError(
            f"{dataset.name} gives the row id {repeated[0]!r} more than once.",
            "Ids must be unique: predictions are stored under them.",
        )
    return rows


def _with_pictures(
    dataset: DatasetSpec, rows: Iterable[Row], unreadable: dict[str, TrunklineError] | None
) -> Iterator[Row]:
    """The rows with the digests of their pictures; see :func:`read_rows`."""
    for row in rows:
        try:
            yield with_picture(dataset, row)
        except (DataError, TooLargeError, PluginCallError) as error:
            if unreadable is None or row.image is None or (row.text and not dataset.text_and_image):
                raise
            unreadable[row.id] = error


def identified_rows(dataset: DatasetSpec) -> tuple[Row, ...]:
    """The rows that ``load`` gives, with the digests of pictures; raises as ``load`` does."""
    rows = tuple(dataset.load())
    if not dataset.has_pictures:
        return rows
    return tuple(with_picture(dataset, row) if isinstance(row, Row) else row for row in rows)


def fingerprint(rows: Iterable[Row]) -> str:
    """sha256 over the rows' content, in the order of their ids; 64 hex digits."""
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda row: row.id):
        parts: list[Any] = [
            row.id, row.text, row.target, row.group, row.stratum, sorted(row.slices.items())
        ]  # fmt: skip
        parts += [] if row.split is None else [row.split]
        parts += [(one.role, one.content) for one in row.history]
        parts += row.candidates
        parts += [] if row.image is None else ["image", row.picture.sha256]
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

    Args:
        dataset: the rows and the shares of the split.
        recipe: its template, scale and settings.
        transforms: that the recipe names, in order.
        fold: cross-validation: which groups are the test part.

    Raises:
        DataError: nothing to train on or evaluate: no rows left, a single class, a class with a
            single row, a target of the wrong type.
        PluginCallError: the reader or a transform raised, or broke its contract.
    """
    check_template(recipe.template, dataset.task)
    if dataset.modality == "image" and recipe.template != Template():
        raise UsageError(
            f"The template of {recipe.name} is for texts, and {dataset.name} holds pictures.",
            "Leave it out.",
        )
    _check_transforms(dataset, transforms)
    source = read_rows(dataset)
    settings = recipe.settings
    dropped: Counter[str] = Counter()
    rng = random.Random(settings.split_seed)
    rows = clean_rows(source, recipe.template, transforms, dropped, rng)
    if dataset.has_pictures:
        rows = [with_picture(dataset, row) for row in rows]
    if dataset.text_and_image:
        rows = with_texts(rows, dropped)
    _check_no_pictures(dataset, rows)
    rows, labels_cleaned = _clean_labels(dataset, rows)
    rows = _check_targets(dataset, recipe, rows, dropped)
    trained = any(row.split == "train" for row in rows)
    rows, duplicated, label_conflicts = _drop_duplicates(rows, recipe.template)
    if trained and not any(row.split == "train" for row in rows):
        raise DataError(
            f"Every train row of {dataset.name} has the text and target of a row of the validation "
            "or test part, so none is left.",
            "Were the same rows given twice? Give other rows for train.",
        )
    if not rows:
        raise DataError(
            f"{dataset.name} has no rows left of {len(source)}: "
            + ", ".join(f"{count} {reason}" for reason, count in dropped.items())
            + ".",
            f"See `trunkline datasets show {dataset.name}`.",
        )
    labels = _labels(dataset, rows) if dataset.task in LABELED else ()
    split = split_rows(
        rows,
        dataset.task,
        seed=settings.split_seed,
        validation_share=dataset.validation_share,
        test_share=dataset.test_share,
        fold=fold,
    )
    if settings.max_train_samples and settings.max_train_samples < len(split.train):
        indices = random.Random(settings.seed).sample(
            range(len(split.train)), settings.max_train_samples
        )
        split = replace(split, train=tuple(split.train[index] for index in sorted(indices)))
    if dataset.text_and_image:
        split = halves_of(split, dataset.modality)
    added = augment_rows(split.train, transforms, random.Random(settings.seed))
    augmented = checked_additions(dataset, recipe, added, labels)
    method = method_for(split)
    known = (*split.train, *augmented)
    close = near_duplicates(split.test, known, recipe.template, method)
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    report = DataReport(
        read=len(source),
        kept=len(rows),
        dropped=dict(dropped),
        duplicated=duplicated,
        label_conflicts=label_conflicts,
        near_duplicates=len(close),
        augmented=len(augmented),
        parts={name: len(part) for name, part in parts.items()},
        groups={name: len({row.group for row in part}) for name, part in parts.items()},
        given_split=any(row.split is not None for row in rows),
        labels_cleaned=labels_cleaned,
        similar_labels=similar_labels(labels),
        compared_by=method,
    )
    return Prepared(split, labels, fingerprint(rows), report, augmented, tuple(close))


def default_recipe(dataset: DatasetSpec) -> RecipeSpec:
    """A recipe of defaults, for datasets without one."""
    return RecipeSpec(
        name=dataset.name,
        description=dataset.description,
        dataset=dataset.name,
        task=dataset.task,
        template=default_template(dataset.task),
        gate=Gate(metric="accuracy"),
    )


def describe_dataset(spec: DatasetSpec) -> DatasetReport:
    """Read a dataset and split it with the default split."""
    prepared = prepare(spec, default_recipe(spec))
    rows = (*prepared.split.train, *prepared.split.validation, *prepared.split.test)
    labels = dict(count_labels(rows, prepared.labels))
    return DatasetReport(spec, prepared, labels, rows[:: max(1, len(rows) // 5)][:5])


def input_of(row: Row, template: Template) -> tuple[str, ...]:
    """What the model reads: rows with the same texts or picture are compared by their targets.

    A row that has both is the same as another with the same text and the same picture.
    """
    if row.image is not None:
        return (row.picture.sha256, row.text) if row.text else (row.picture.sha256,)
    history = (part for one in row.history for part in (one.role, one.content))
    return (*history, template.cleaned(row.text), *row.candidates)


def _clean_labels(dataset: DatasetSpec, rows: Sequence[Row]) -> tuple[list[Row], int]:
    """The rows with cleaned labels, and how many labels changed."""
    cleaned = list(rows)
    if dataset.task != "classification":
        return cleaned, 0
    changed = 0
    for index, row in enumerate(cleaned):
        if isinstance(row.target, str) and (label := clean_label(row.target)) != row.target:
            cleaned[index] = replace(row, target=label)
            changed += 1
    return cleaned, changed


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
                    "The targets of a regression dataset are int or float, in its unit.",
                )
            if not _is_finite(target):
                dropped["target not a finite number"] += 1
                continue
            if recipe.scale == "log" and target <= 0:
                dropped["target not above zero"] += 1
                continue
        elif dataset.task not in ("multilabel", "tagging"):
            if not isinstance(target, str):
                raise DataError(
                    f"Row {row.id!r} of {dataset.name} has the target {target!r}, not a text.",
                    f"A {dataset.task} dataset's targets are texts.",
                )
            if is_blank(target):
                dropped["no target"] += 1
                continue
        try:
            kept.append(normalized(row, dataset.task))
            for text in (*labels_in(kept[-1].target), *kept[-1].candidates):
                check_characters(text)
        except (ValueError, DataError) as error:
            raise DataError(
                f"Row {row.id!r} of {dataset.name} can't be used: {str(error).rstrip('.')}.",
                f"See what a {dataset.task} row needs in `trunkline.contracts.Row`.",
            ) from None
    return kept


def _drop_duplicates(rows: list[Row], template: Template) -> tuple[list[Row], int, int]:
    """Keep one row of each text and target: in a given split, one of the test part."""
    parts = {"test": 0, "validation": 1}
    targets: dict[tuple[str, ...], set[Any]] = {}
    chosen: set[str] = set()
    for row in sorted(rows, key=lambda row: parts.get(row.split or "", 2)):
        seen = targets.setdefault(input_of(row, template), set())
        if row.target not in seen:
            seen.add(row.target)
            chosen.add(row.id)
    kept = [row for row in rows if row.id in chosen]
    label_conflicts = sum(len(targets[input_of(row, template)]) > 1 for row in kept)
    return kept, len(rows) - len(kept), label_conflicts


def _labels(dataset: DatasetSpec, rows: list[Row]) -> tuple[str, ...]:
    counts = Counter(label for row in rows for label in labels_in(row.target))
    if not counts:
        raise DataError(f"No row of {dataset.name} has a label.", "Add rows with labels.")
    if dataset.task == "multilabel" and len({row.target for row in rows}) < 2:
        raise DataError(
            f"Every row of {dataset.name} has the same labels: {', '.join(counts)!r:.60}.",
            "Add rows with others, or with none. Is the separator of the labels right?",
        )
    if dataset.task != "classification":
        return _declared(dataset, counts)
    if len(counts) < 2:
        raise DataError(
            f"{dataset.name} has one class only: {next(iter(counts))!r}.",
            "Classification needs two or more.",
        )
    single = [label for label, count in counts.items() if count == 1]
    if single:
        raise DataError(
            f"The class {single[0]!r} of {dataset.name} has one row; it can't be both trained on "
            "and evaluated.",
            "Add rows, or merge small classes in the plugin.",
        )
    return _declared(dataset, counts)


def _declared(dataset: DatasetSpec, counts: Mapping[str, int]) -> tuple[str, ...]:
    """The labels that occur, in the dataset's order, else sorted."""
    declared = tuple(dict.fromkeys(map(clean_label, dataset.labels)))
    unknown = [label for label in counts if declared and label not in declared]
    if unknown:
        raise DataError(
            f"{dataset.name} has the label {unknown[0]!r}, which is not among its declared ones.",
            similar_advice(unknown[0], declared) or "Add it to `labels` in the DatasetSpec.",
        )
    return tuple(label for label in declared if label in counts) or tuple(sorted(counts))


def checked_additions(
    dataset: DatasetSpec, recipe: RecipeSpec, added: Sequence[Row], labels: tuple[str, ...]
) -> tuple[Row, ...]:
    """The rows that augmentation added, with clean labels; none is ever silently dropped.

    Raises:
        DataError, PluginCallError: one could not be trained on.
    """
    rows = tuple(_clean_labels(dataset, added)[0])
    for row in rows:
        _check_texts(dataset, row)
    if dataset.modality == "image":
        rows = tuple(with_picture(dataset, row) for row in rows)
    _check_no_pictures(dataset, rows)
    dropped: Counter[str] = Counter()
    kept = clean_rows(rows, recipe.template, (), dropped, random.Random(0))
    kept = _check_targets(dataset, recipe, kept, dropped)
    if labels:
        dropped["undeclared label"] += sum(
            not set(labels_in(row.target)) <= set(labels) for row in kept
        )
    reasons = [f"{count} with {reason}" for reason, count in dropped.items() if count]
    if reasons:
        raise PluginCallError(
            f"The augmentation of {recipe.name} gave rows that can't be trained on: "
            f"{', '.join(reasons)}.",
            "An added row needs a text, and a target of the same type as the others.",
        )
    return rows


def _check_transforms(dataset: DatasetSpec, transforms: Sequence[TransformSpec]) -> None:
    """Refuse transforms where they don't fit: the core's change texts and move no spans."""
    pictured = [step.name for step in transforms if step.changes_pictures]
    if dataset.modality == "text" and pictured:
        raise UsageError(
            f"The transform {pictured[0]} changes pictures, and {dataset.name} holds texts.",
            "Leave it out.",
        )
    core = [step.name for step in transforms if "/" not in step.name and step.name not in pictured]
    if dataset.modality == "image" and core:
        raise UsageError(
            f"The transform {core[0]} changes texts, and {dataset.name} holds pictures.",
            "Leave it out.",
        )
    if dataset.task == "tagging" and core:
        raise UsageError(
            f"The transform {core[0]} changes the text, and the spans of {dataset.name} count its "
            "characters.",
            "Leave it out, or write a transform that moves the spans too.",
        )


def _check_texts(dataset: DatasetSpec, row: Row) -> None:
    if problem := shape_problem(row):
        raise DataError(
            f"Row {row.id!r} of {dataset.name} can't be used: {problem}.",
            "See `trunkline.contracts.Row`.",
        )
    if not isinstance(row.slices, Mapping):
        raise DataError(
            f"The slices of row {row.id!r} of {dataset.name} are {row.slices!r}, not a mapping.",
            "Write for example slices={'country': 'DE'}.",
        )
    stratum = () if row.stratum is None else (row.stratum,)
    given = () if row.split is None else (row.split,)
    history = tuple(one.content for one in row.history)
    texts = (
        row.id, row.text, row.group, *stratum, *given, *row.slices, *row.slices.values(), *history
    )  # fmt: skip
    for text in texts:
        if not isinstance(text, str):
            raise DataError(
                f"Row {row.id!r} of {dataset.name} has {text!r} where a text was expected.",
                "Id, text, group, stratum, split, slices and messages are texts.",
            )
    for text in (*texts, row.target):
        if isinstance(text, str) and not text.isascii():
            try:
                check_characters(text)
            except DataError as error:
                raise DataError(
                    f"Row {row.id!r} of {dataset.name}: {error.message}", error.hint
                ) from None


def _check_no_pictures(dataset: DatasetSpec, rows: Iterable[Row]) -> None:
    """Refuse pictures in a dataset of text, whether they were read or made by a transform."""
    if dataset.has_pictures:
        return
    if pictured := next((row for row in rows if row.image is not None), None):
        raise DataError(
            f"Row {pictured.id!r} of {dataset.name} has a picture, and the dataset is of text.",
            "Set modality='image' in the DatasetSpec, or text_and_image=True for both.",
        )


def with_picture(dataset: DatasetSpec, row: Row) -> Row:
    """The row of a dataset of pictures with the digest of its picture, which identifies it.

    Raises:
        DataError: it has no picture, something else beside it, or the picture can't be read.
        PluginCallError: the plugin's function raised.
    """
    beside = row.text and not dataset.text_and_image
    if row.image is None or beside or row.history or row.candidates:
        raise DataError(
            f"Row {row.id!r} of {dataset.name} has "
            + ("no picture." if row.image is None else "a text beside its picture."),
            "Every row of a dataset of pictures has a picture alone.",
        )
    try:
        return replace(row, image=row.picture.identified())
    except (DataError, TooLargeError) as error:
        raise in_row(row, error) from error
    except TrunklineError:
        raise
    except Exception as error:
        raise PluginCallError.raised(f"The picture of row {row.id!r}", error, None) from error


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int that is too large for a float
        return False

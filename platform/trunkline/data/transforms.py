"""Apply cleaning and augmentation transforms to rows; a failure names the transform and the row."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from trunkline.contracts import Row, Template, TransformSpec
from trunkline.data.targets import shape_problem, text_problem
from trunkline.errors import PluginCallError, plugin_call
from trunkline.labels import is_blank


def clean_rows(
    rows: Sequence[Row],
    template: Template,
    transforms: Sequence[TransformSpec],
    dropped: Counter[str],
    rng: random.Random,
) -> list[Row]:
    """Apply the transforms of the stage ``clean``.

    Args:
        rows: to clean.
        template: a row that its cleaning steps leave empty is dropped.
        transforms: those of another stage are skipped.
        dropped: incremented for each dropped row, by reason.
        rng: passed to the transforms.

    Raises:
        PluginCallError: a transform raised, gave more than one row, or changed an id.
    """
    kept: list[Row] = []
    steps = [transform for transform in transforms if transform.stage == "clean"]
    for row in rows:
        current: Row | None = row
        for step in steps:
            assert current is not None
            result = apply_transform(step, current, rng)
            if len(result) > 1:
                raise PluginCallError(
                    f"The cleaning step {step.name} gave {len(result)} rows for one.",
                    "Only transforms of the stage 'augment' may add rows.",
                )
            current = result[0] if result else None
            if current is None:
                dropped[f"by {step.name}"] += 1
                break
            if current.id != row.id:
                raise PluginCallError(
                    f"The cleaning step {step.name} gave row {row.id!r} the id {current.id!r}.",
                    "A row keeps its id: predictions are stored under it.",
                )
        if current is None:
            continue
        if current.image is None and is_blank(template.cleaned(current.text)):
            dropped["empty text"] += 1
            continue
        kept.append(current)
    return kept


def augment_rows(
    rows: Sequence[Row], transforms: Sequence[TransformSpec], rng: random.Random
) -> tuple[Row, ...]:
    """The rows that the transforms of the stage ``augment`` add to training rows.

    A row that a transform returns unchanged is not added.

    Raises:
        PluginCallError: a transform raised, or gave something that is not a row.
    """
    added: list[Row] = []
    for step in transforms:
        if step.stage == "augment":
            for row in rows:
                added += [new for new in apply_transform(step, row, rng) if new != row]
    return tuple(added)


def apply_transform(step: TransformSpec, row: Row, rng: random.Random) -> list[Row]:
    """Apply one transform to one row.

    Raises:
        PluginCallError: the transform raised, or gave something that is not a row.
    """
    hint = "`trunkline plugins check` tries every transform on all rows."
    with plugin_call(f"The transform {step.name} on row {row.id!r}", hint):
        result = list(step.apply(row, rng))
    for new in result:
        if not isinstance(new, Row):
            raise PluginCallError(
                f"The transform {step.name} gave {new!r:.80} for row {row.id!r}.",
                "A transform must give trunkline.contracts.Row, with a text.",
            )
        if problem := text_problem(new) or shape_problem(new):
            raise PluginCallError(
                f"The transform {step.name} gave a row for row {row.id!r} that can't be used: "
                f"{problem}.",
                "See `trunkline.contracts.Row`.",
            )
    return result

"""A plugin's transforms on a dataset's rows, with every failure told as the plugin's.

Owns: what a step may give back. Must not know: splits, tasks, models.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from trunkline.contracts import Row, Template, TransformSpec
from trunkline.errors import PluginError, TrunklineError


def clean_rows(
    rows: Sequence[Row],
    template: Template,
    transforms: Sequence[TransformSpec],
    dropped: Counter[str],
    rng: random.Random,
) -> list[Row]:
    """The rows after the steps of the stage ``clean``; ``dropped`` counts, by reason, those that a
    step dropped or that the template leaves nothing of.

    Raises:
        PluginError: a step raised, gave more than one row, or changed an id.
    """
    kept: list[Row] = []
    steps = [transform for transform in transforms if transform.stage == "clean"]
    for row in rows:
        current: Row | None = row
        for step in steps:
            assert current is not None
            result = applied(step, current, rng)
            if len(result) > 1:
                raise PluginError(
                    f"The cleaning step {step.name} gave {len(result)} rows for one.",
                    "Only steps of the stage 'augment' may add rows.",
                )
            current = result[0] if result else None
            if current is None:
                dropped[f"by {step.name}"] += 1
                break
            if current.id != row.id:
                raise PluginError(
                    f"The cleaning step {step.name} gave row {row.id!r} the id {current.id!r}.",
                    "A row keeps its id: predictions are kept under it.",
                )
        if current is None:
            continue
        if not template.cleaned(current.text).strip():
            dropped["empty text"] += 1
            continue
        kept.append(current)
    return kept


def augment_rows(
    rows: Sequence[Row], transforms: Sequence[TransformSpec], rng: random.Random
) -> tuple[Row, ...]:
    """What the steps of the stage ``augment`` add to training rows; a row given back unchanged is
    not counted.

    Raises:
        PluginError: a step raised or gave something that is no row.
    """
    added: list[Row] = []
    for step in transforms:
        if step.stage == "augment":
            for row in rows:
                added += [new for new in applied(step, row, rng) if new != row]
    return tuple(added)


def applied(step: TransformSpec, row: Row, rng: random.Random) -> list[Row]:
    """What one step makes of one row; its failure is told as the plugin's."""
    try:
        result = list(step.apply(row, rng))
    except TrunklineError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"The transform {step.name} failed on row {row.id!r}: {type(error).__name__}: {error}",
            "`trunkline plugins check` tries every transform on a few rows.",
        ) from error
    for new in result:
        if not isinstance(new, Row) or not isinstance(new.text, str):
            raise PluginError(
                f"The transform {step.name} gave {new!r:.80} for row {row.id!r}.",
                "A transform gives rows of trunkline.contracts.Row, with a text.",
            )
    return result

"""The plugin ``core``: the built-in metrics, losses, baselines, tasks and transforms.

It implements the same hooks as any plugin. Its names carry no domain: a recipe writes ``accuracy``
or ``core/accuracy``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from trunkline.contracts import (
    BaselineSpec,
    LossContext,
    LossFunction,
    LossSpec,
    MetricSpec,
    Row,
    TaskSpec,
    TransformSpec,
)
from trunkline.evaluation.baselines import BASELINES
from trunkline.evaluation.metrics import METRICS
from trunkline.hookspecs import hookimpl

TRUNKLINE_API = 1

_DELETION_PROBABILITY = 0.1


@hookimpl
def trunkline_tasks() -> Iterator[TaskSpec]:
    yield TaskSpec(
        name="classification",
        description="one of several labels, from a linear head",
        kind="classification",
        loss="cross_entropy",
        baselines=("majority", "tfidf"),
    )
    yield TaskSpec(
        name="regression",
        description="a number in the dataset's unit, from a linear head",
        kind="regression",
        loss="mse",
        baselines=("group-median", "linear"),
    )
    yield TaskSpec(
        name="generation",
        description="a text, from the base's own head",
        kind="generation",
        loss="token_cross_entropy",
        baselines=("base",),
    )


@hookimpl
def trunkline_losses() -> Iterator[LossSpec]:
    yield LossSpec(
        name="cross_entropy",
        description="mean cross entropy of the label",
        task="classification",
        build=_cross_entropy,
    )
    yield LossSpec(
        name="mse",
        description="mean squared error on the recipe's scale",
        task="regression",
        build=_mean_squared_error,
    )
    yield LossSpec(
        name="token_cross_entropy",
        description="mean cross entropy of the answer's tokens",
        task="generation",
        build=_cross_entropy,
    )


@hookimpl
def trunkline_metrics() -> Iterator[MetricSpec]:
    yield from METRICS.values()


@hookimpl
def trunkline_baselines() -> Iterator[BaselineSpec]:
    yield from BASELINES


@hookimpl
def trunkline_transforms() -> Iterator[TransformSpec]:
    yield TransformSpec(
        name="lowercase-copy",
        description="add a lower-case copy of each training row",
        stage="augment",
        apply=_lowercase_copy,
    )
    yield TransformSpec(
        name="random-deletion",
        description="add a copy with each word deleted at probability 0.1 (Wei & Zou 2019, EDA)",
        stage="augment",
        apply=_random_deletion,
    )


def _cross_entropy(context: LossContext) -> LossFunction:
    from torch.nn.functional import cross_entropy

    return cross_entropy


def _mean_squared_error(context: LossContext) -> LossFunction:
    from torch.nn.functional import mse_loss

    return mse_loss


def _lowercase_copy(row: Row, rng: random.Random) -> list[Row]:
    return [_copy(row, "lowercase", row.text.lower())]


def _random_deletion(row: Row, rng: random.Random) -> list[Row]:
    """At least one word stays."""
    tokens = row.text.split()
    kept = [token for token in tokens if rng.random() >= _DELETION_PROBABILITY]
    return [_copy(row, "deletion", " ".join(kept or tokens[:1]))]


def _copy(row: Row, suffix: str, text: str) -> Row:
    """The row with another text and id, or the row itself if the text did not change."""
    return row if text == row.text else replace(row, id=f"{row.id}+{suffix}", text=text)

"""The plugin ``core``: the built-in metrics, losses, baselines, tasks and transforms.

It implements the same hooks as any plugin. Its names carry no domain: a recipe writes ``accuracy``
or ``core/accuracy``.
"""

from __future__ import annotations

from collections.abc import Iterator

from trunkline.contracts import (
    BaselineSpec,
    LossSpec,
    MetricSpec,
    TaskSpec,
    TransformSpec,
)
from trunkline.data import augment, augment_images
from trunkline.evaluation.baselines import BASELINES
from trunkline.evaluation.image_baselines import PICTURED
from trunkline.evaluation.metrics import METRICS
from trunkline.evaluation.structured_baselines import STRUCTURED
from trunkline.hookspecs import hookimpl
from trunkline.tasks.losses import LOSSES

TRUNKLINE_API = 1


@hookimpl
def trunkline_tasks() -> Iterator[TaskSpec]:
    yield TaskSpec(
        name="classification",
        description="one of several labels, from a linear head",
        kind="classification",
        loss="cross_entropy",
        baselines=("majority", "tfidf", "frozen-features", "hog"),
    )
    yield TaskSpec(
        name="multilabel",
        description="any number of labels, from a linear head",
        kind="multilabel",
        loss="binary_cross_entropy",
        baselines=("majority", "one-versus-rest"),
    )
    yield TaskSpec(
        name="regression",
        description="a number in the dataset's unit, from a linear head",
        kind="regression",
        loss="mse",
        baselines=("group-median", "linear", "frozen-features", "hog"),
    )
    yield TaskSpec(
        name="generation",
        description="a text, from the base's own head",
        kind="generation",
        loss="token_cross_entropy",
        baselines=("base",),
    )
    yield TaskSpec(
        name="tagging",
        description="labeled spans of a text, from a linear head on each token",
        kind="tagging",
        loss="tag_cross_entropy",
        baselines=("dictionary",),
    )
    yield TaskSpec(
        name="ranking",
        description="an order of candidates for a query, from a linear head",
        kind="ranking",
        loss="listwise",
        baselines=("popularity", "similarity"),
    )


@hookimpl
def trunkline_losses() -> Iterator[LossSpec]:
    yield from LOSSES


@hookimpl
def trunkline_metrics() -> Iterator[MetricSpec]:
    yield from METRICS.values()


@hookimpl
def trunkline_baselines() -> Iterator[BaselineSpec]:
    yield from (*BASELINES, *PICTURED, *STRUCTURED)


@hookimpl
def trunkline_transforms() -> Iterator[TransformSpec]:
    yield from (*augment.TRANSFORMS, *augment_images.TRANSFORMS)

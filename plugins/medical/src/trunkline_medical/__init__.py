"""The hooks of the medical domain, which is built on ICD-10-CM.

Importing this module reads no data and does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable

from trunkline.contracts import DatasetSpec, LossSpec, MetricSpec, RecipeSpec, TransformSpec
from trunkline.hookspecs import hookimpl

TRUNKLINE_API = 1


@hookimpl
def trunkline_datasets() -> Iterable[DatasetSpec]:
    from trunkline_medical.datasets import DATASETS

    yield from DATASETS


@hookimpl
def trunkline_recipes() -> Iterable[RecipeSpec]:
    from trunkline_medical.recipes import RECIPES

    yield from RECIPES


@hookimpl
def trunkline_losses() -> Iterable[LossSpec]:
    from trunkline_medical.losses import HIERARCHICAL

    yield HIERARCHICAL


@hookimpl
def trunkline_metrics() -> Iterable[MetricSpec]:
    from trunkline_medical.metrics import HIERARCHY_DISTANCE, TITLE_OVERLAP

    yield HIERARCHY_DISTANCE
    yield TITLE_OVERLAP


@hookimpl
def trunkline_transforms() -> Iterable[TransformSpec]:
    from trunkline_medical.transforms import WITHOUT_NOS

    yield WITHOUT_NOS

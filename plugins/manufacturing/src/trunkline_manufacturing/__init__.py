"""The manufacturing domain: pictures of solar cells, and which of them are defective.

Importing this module reads no picture and imports no heavy package.
"""

from __future__ import annotations

from collections.abc import Iterable

from trunkline.contracts import DatasetSpec, MetricSpec, RecipeSpec
from trunkline.hookspecs import hookimpl
from trunkline_manufacturing.datasets import DATASETS
from trunkline_manufacturing.metrics import DEFECT_RECALL
from trunkline_manufacturing.recipes import RECIPES

TRUNKLINE_API = 1


@hookimpl
def trunkline_datasets() -> Iterable[DatasetSpec]:
    yield from DATASETS


@hookimpl
def trunkline_recipes() -> Iterable[RecipeSpec]:
    yield from RECIPES


@hookimpl
def trunkline_metrics() -> Iterable[MetricSpec]:
    yield DEFECT_RECALL

"""The retail domain: a grocer's product types, their prices and baskets, and pictures of garments.

Importing this module imports no heavy package.
"""

from __future__ import annotations

from collections.abc import Iterable

from trunkline.contracts import DatasetSpec, LossSpec, MetricSpec, RecipeSpec
from trunkline.hookspecs import hookimpl
from trunkline_retail.datasets import DEPARTMENT, NEXT_PRODUCT, UNIT_PRICE
from trunkline_retail.garments import GARMENT
from trunkline_retail.losses import HUBER
from trunkline_retail.metrics import WITHIN_25_PERCENT
from trunkline_retail.recipes import (
    DEPARTMENT_RECIPE,
    GARMENT_RECIPE,
    NEXT_PRODUCT_RECIPE,
    UNIT_PRICE_RECIPE,
)

TRUNKLINE_API = 1


@hookimpl
def trunkline_datasets() -> Iterable[DatasetSpec]:
    yield DEPARTMENT
    yield UNIT_PRICE
    yield NEXT_PRODUCT
    yield GARMENT


@hookimpl
def trunkline_recipes() -> Iterable[RecipeSpec]:
    yield DEPARTMENT_RECIPE
    yield UNIT_PRICE_RECIPE
    yield NEXT_PRODUCT_RECIPE
    yield GARMENT_RECIPE


@hookimpl
def trunkline_losses() -> Iterable[LossSpec]:
    yield HUBER


@hookimpl
def trunkline_metrics() -> Iterable[MetricSpec]:
    yield WITHIN_25_PERCENT

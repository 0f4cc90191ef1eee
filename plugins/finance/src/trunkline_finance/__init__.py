"""The finance domain: sectors of businesses and categories of bank-statement lines.

Importing this module imports neither torch nor a data package.
"""

from __future__ import annotations

from collections.abc import Iterable

from trunkline.contracts import DatasetSpec, LossSpec, MetricSpec, RecipeSpec
from trunkline.hookspecs import hookimpl

TRUNKLINE_API = 1


@hookimpl
def trunkline_datasets() -> Iterable[DatasetSpec]:
    from trunkline_finance.datasets import DATASETS

    yield from DATASETS


@hookimpl
def trunkline_recipes() -> Iterable[RecipeSpec]:
    from trunkline_finance.recipes import RECIPES

    yield from RECIPES


@hookimpl
def trunkline_losses() -> Iterable[LossSpec]:
    from trunkline_finance.losses import COST_SENSITIVE

    yield COST_SENSITIVE


@hookimpl
def trunkline_metrics() -> Iterable[MetricSpec]:
    from trunkline_finance.metrics import EXPECTED_COST

    yield EXPECTED_COST

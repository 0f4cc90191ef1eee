"""Rows, datasets and recipes with defaults, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trunkline.contracts import DatasetSpec, Gate, RecipeSpec, Row, Task
from trunkline.data.split import Split

DECIDING: dict[Task, str] = {
    "classification": "accuracy",
    "regression": "mae",
    "generation": "exact_match",
    "multilabel": "micro_f1",
    "tagging": "entity_f1",
    "ranking": "mrr",
}


def make_row(number: int, **fields: Any) -> Row:
    """Row ``number``, of a group of its own, with defaults for what ``fields`` omits."""
    given = {
        "id": f"r{number}",
        "text": f"text number {number}",
        "target": "even" if number % 2 == 0 else "odd",
        "group": f"g{number}",
    }
    return Row(**(given | fields))


def make_dataset(rows: Sequence[Any], task: Task = "classification", **fields: Any) -> DatasetSpec:
    """A dataset that gives ``rows``."""
    given: dict[str, Any] = {
        "name": "toy/things",
        "description": "made-up rows",
        "license": "CC0-1.0",
        "source": "made up",
        "grouping": "every row stands alone",
    }
    return DatasetSpec(task=task, load=lambda: rows, **(given | fields))


def make_recipe(task: Task = "classification", **fields: Any) -> RecipeSpec:
    """A recipe with the defaults of the contract."""
    given: dict[str, Any] = {
        "name": "toy/things",
        "description": "made-up recipe",
        "dataset": "toy/things",
        "gate": Gate(metric=DECIDING[task]),
    }
    return RecipeSpec(task=task, **(given | fields))


def make_split(train: Sequence[Row], validation: Sequence[Row], test: Sequence[Row]) -> Split:
    """A split as given, whatever its groups."""
    return Split(tuple(train), tuple(validation), tuple(test), "0" * 64)

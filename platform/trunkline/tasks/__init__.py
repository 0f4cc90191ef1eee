"""Tasks: how a target is encoded, batched and decoded; one module per task.

A task is a frozen value that the artifact stores (``to_json`` and :func:`task_from_json`), so
inference decodes exactly what training encoded. The package may import data and the layers below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from trunkline.contracts import RecipeSpec, Row
from trunkline.errors import IntegrityError
from trunkline.tasks.classification import ClassificationTask
from trunkline.tasks.generation import GenerationTask
from trunkline.tasks.regression import RegressionTask

AnyTask = ClassificationTask | RegressionTask | GenerationTask

__all__ = [
    "AnyTask",
    "ClassificationTask",
    "GenerationTask",
    "RegressionTask",
    "task_for",
    "task_from_json",
]


def task_for(
    recipe: RecipeSpec, labels: tuple[str, ...], train: Sequence[Row], unit: str | None
) -> AnyTask:
    """The task of a recipe; a regression is standardized by the targets of the training rows.

    Args:
        recipe: its kind of task, scale and ``max_new_tokens``.
        labels: of a classification, in the order of the head's outputs.
        train: the training rows.
        unit: of a regression.
    """
    if recipe.task == "classification":
        return ClassificationTask(labels)
    if recipe.task == "regression":
        targets = [float(row.target) for row in train]
        return RegressionTask.fitted(targets, scale=recipe.scale, unit=unit or "")
    return GenerationTask(recipe.max_new_tokens)


def task_from_json(data: dict[str, Any]) -> AnyTask:
    """The task that an artifact describes.

    Raises:
        IntegrityError: the task is unknown, or a field is missing or invalid.
    """
    kinds = {
        "classification": ClassificationTask,
        "regression": RegressionTask,
        "generation": GenerationTask,
    }
    try:
        fields = dict(data)
        kind = fields.pop("kind", None)
        if not isinstance(kind, str) or kind not in kinds:
            raise ValueError(f"there is no task {kind!r}")
        expected = [spec.name for spec in dataclasses.fields(kinds[kind])]
        if sorted(fields) != sorted(expected):
            names = ", ".join(sorted(fields))
            raise ValueError(f"a {kind} has {', '.join(expected)}, not {names}")
        return kinds[kind].from_json(fields)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise IntegrityError(
            f"The artifact's task can't be read: {error}.", "It may need a newer Trunkline."
        ) from error

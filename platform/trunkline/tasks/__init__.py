"""The kinds of questions: how a target is encoded, batched, scored by a loss, and decoded.

Owns: one module a task. Must not know: LoRA, files, the registry. A task is a frozen value that
stands in the artifact (``to_json`` / ``task_from_json``), so that inference decodes as training
encoded.
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
    """The task of a recipe on its training rows (a regression takes its scale from them)."""
    if recipe.task == "classification":
        return ClassificationTask(labels)
    if recipe.task == "regression":
        targets = [float(row.target) for row in train]
        return RegressionTask.fitted(targets, scale=recipe.scale, unit=unit or "")
    return GenerationTask(recipe.max_new_tokens)


def task_from_json(data: dict[str, Any]) -> AnyTask:
    """The task that an artifact describes.

    Raises:
        IntegrityError: the description is not of a known task.
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
        known = [spec.name for spec in dataclasses.fields(kinds[kind])]
        if sorted(fields) != sorted(known):
            raise ValueError(f"a {kind} has {', '.join(known)}, not {', '.join(sorted(fields))}")
        return kinds[kind].from_json(fields)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise IntegrityError(
            f"The artifact's task can't be read: {error}.", "It may need a newer Trunkline."
        ) from error

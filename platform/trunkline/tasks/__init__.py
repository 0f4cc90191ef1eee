"""Tasks: how a target is encoded, batched and decoded; one module per task.

A task is a frozen value that the artifact stores (``to_json`` and :func:`task_from_json`), so
inference decodes exactly what training encoded. The package may import data and the layers below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from trunkline.contracts import MOST_NEW_TOKENS, RecipeSpec, Row
from trunkline.data.targets import number
from trunkline.errors import IntegrityError
from trunkline.files import validation_problem
from trunkline.tasks.classification import Calibration, ClassificationTask
from trunkline.tasks.generation import GenerationTask
from trunkline.tasks.multilabel import MultilabelTask
from trunkline.tasks.ranking import RankingTask
from trunkline.tasks.regression import RegressionTask
from trunkline.tasks.tagging import TaggingTask

AnyTask = (
    ClassificationTask
    | MultilabelTask
    | RegressionTask
    | GenerationTask
    | TaggingTask
    | RankingTask
)

ImageTask = ClassificationTask | MultilabelTask | RegressionTask
"""The tasks that an adapter for pictures may have."""

__all__ = [
    "AnyTask",
    "Calibration",
    "ClassificationTask",
    "GenerationTask",
    "ImageTask",
    "MultilabelTask",
    "RankingTask",
    "RegressionTask",
    "TaggingTask",
    "prompt_limit",
    "task_for",
    "task_from_json",
]


def task_for(
    recipe: RecipeSpec, labels: tuple[str, ...], train: Sequence[Row], unit: str | None
) -> AnyTask:
    """The task of a recipe; a regression is standardized by the targets of the training rows.

    Args:
        recipe: its kind of task, scale and ``max_new_tokens``.
        labels: of a classification, multilabel or tagging task, in the order of the head's outputs.
        train: the training rows.
        unit: of a regression.
    """
    if recipe.task == "classification":
        return ClassificationTask(labels)
    if recipe.task == "multilabel":
        return MultilabelTask(labels)
    if recipe.task == "tagging":
        return TaggingTask(labels)
    if recipe.task == "ranking":
        return RankingTask()
    if recipe.task == "regression":
        targets = [number(row.target) for row in train]
        return RegressionTask.fitted(targets, scale=recipe.scale, unit=unit or "")
    return GenerationTask(recipe.max_new_tokens)


def prompt_limit(task: AnyTask, max_length: int) -> int:
    """The longest prompt in tokens: ``max_length`` less the longest answer of a generation."""
    return max_length - (task.max_new_tokens if isinstance(task, GenerationTask) else 0)


def task_from_json(data: dict[str, Any]) -> AnyTask:
    """The task that an artifact describes.

    Raises:
        IntegrityError: the task is unknown, or a field is missing or invalid.
    """
    try:
        return _StoredTask.model_validate({"task": data}).task.make()
    except ValidationError as error:
        raise IntegrityError(
            f"The artifact's task can't be read: {validation_problem(error)}.",
            "It may need a newer Trunkline.",
        ) from error


# --------------------------------------------------------------------------------- stored form


def _distinct(labels: list[str]) -> list[str]:
    if len(set(labels)) < len(labels):
        raise ValueError("labels must be different texts")
    return labels


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Calibration(_Strict):
    temperature: Annotated[FiniteFloat, Field(gt=0)]
    thresholds: dict[
        Annotated[str, Field(pattern=r"^[1-9][0-9]\z")], Annotated[FiniteFloat, Field(ge=0, le=1)]
    ]


class _Classification(_Strict):
    kind: Literal["classification"]
    labels: Annotated[list[str], Field(min_length=2), AfterValidator(_distinct)]
    calibration: _Calibration | None = None

    def make(self) -> AnyTask:
        fitted = self.calibration
        return ClassificationTask(
            tuple(self.labels),
            None if fitted is None else Calibration(fitted.temperature, fitted.thresholds),
        )


class _Multilabel(_Strict):
    kind: Literal["multilabel"]
    labels: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]
    threshold: Annotated[FiniteFloat, Field(gt=0, lt=1)]

    def make(self) -> AnyTask:
        return MultilabelTask(tuple(self.labels), self.threshold)


class _Tagging(_Strict):
    kind: Literal["tagging"]
    labels: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]

    def make(self) -> AnyTask:
        return TaggingTask(tuple(self.labels))


class _Ranking(_Strict):
    kind: Literal["ranking"]

    def make(self) -> AnyTask:
        return RankingTask()


class _Regression(_Strict):
    kind: Literal["regression"]
    scale: Literal["linear", "log"]
    mean: FiniteFloat
    deviation: Annotated[FiniteFloat, Field(gt=0)]
    unit: str

    def make(self) -> AnyTask:
        return RegressionTask(self.scale, self.mean, self.deviation, self.unit)


class _Generation(_Strict):
    kind: Literal["generation"]
    max_new_tokens: Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)]

    def make(self) -> AnyTask:
        return GenerationTask(self.max_new_tokens)


class _StoredTask(_Strict):
    task: Annotated[
        _Classification | _Multilabel | _Regression | _Generation | _Tagging | _Ranking,
        Field(discriminator="kind"),
    ]

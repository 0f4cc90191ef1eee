"""The hooks that a plugin may implement; ``docs/hooks.md`` is generated from this file.

A plugin is a module behind an entry point of the group ``trunkline``. It declares
``TRUNKLINE_API = 1`` and implements any of these hooks with the marker
``trunkline.hookspecs.hookimpl``. Hooks yield frozen specs. Names are qualified by the plugin's
domain, which is the name of its entry point. The built-ins are a plugin too: ``core``.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from trunkline.contracts import (
    BaselineSpec,
    DatasetSpec,
    LossSpec,
    MetricSpec,
    RecipeSpec,
    TaskSpec,
    TransformSpec,
)

hookspec = pluggy.HookspecMarker("trunkline")
hookimpl = pluggy.HookimplMarker("trunkline")


@hookspec
def trunkline_datasets() -> Iterable[DatasetSpec]:  # type: ignore[empty-body]
    """Yield the datasets of this domain.

    Returns:
        One :class:`~trunkline.contracts.DatasetSpec` each. Its ``load`` is called only when the
        rows are needed.

    Example::

        @hookimpl
        def trunkline_datasets():
            yield DatasetSpec(
                name="medical/icd10-chapter",
                description="ICD-10-CM diagnoses and the chapter that they belong to",
                task="classification",
                load=read_chapters,
                license="public domain",
                source="simple-icd-10-cm 1.5.0",
                grouping="a 3-character category: its codes are near-duplicates of one another",
            )
    """


@hookspec
def trunkline_recipes() -> Iterable[RecipeSpec]:  # type: ignore[empty-body]
    """Yield the LoRA adapters that this domain can train.

    Returns:
        One :class:`~trunkline.contracts.RecipeSpec` each. A recipe's name is its adapter's name.

    Example::

        @hookimpl
        def trunkline_recipes():
            yield RecipeSpec(
                name="medical/icd10-chapter",
                description="chapter of a diagnosis",
                dataset="medical/icd10-chapter",
                task="classification",
                template=Template(prompt="Diagnosis: {text}"),
                settings=Settings(num_train_epochs=2, r=16),
                loss="medical/hierarchical",
                metrics=("accuracy", "macro_f1", "medical/hierarchy_distance"),
                gate=Gate(metric="accuracy"),
            )
    """


@hookspec
def trunkline_losses() -> Iterable[LossSpec]:  # type: ignore[empty-body]
    """Yield the training losses of this domain.

    Returns:
        One :class:`~trunkline.contracts.LossSpec` each; ``build`` imports torch when it is called.

    Example::

        @hookimpl
        def trunkline_losses():
            yield LossSpec(
                name="retail/huber",
                description="Huber loss: quadratic near zero, linear far from it",
                task="regression",
                build=lambda context: huber,
            )
    """


@hookspec
def trunkline_metrics() -> Iterable[MetricSpec]:  # type: ignore[empty-body]
    """Yield the metrics of this domain.

    Returns:
        One :class:`~trunkline.contracts.MetricSpec` each.

    Example::

        @hookimpl
        def trunkline_metrics():
            yield MetricSpec(
                name="finance/expected_cost",
                description="mean misclassification cost, by the plugin's cost table",
                task="classification",
                compute=expected_cost,
                higher_is_better=False,
            )
    """


@hookspec
def trunkline_transforms() -> Iterable[TransformSpec]:  # type: ignore[empty-body]
    """Yield cleaning and augmentation steps of this domain.

    Returns:
        One :class:`~trunkline.contracts.TransformSpec` each; recipes name those that they use.

    Example::

        @hookimpl
        def trunkline_transforms():
            yield TransformSpec(
                name="finance/drop-card-numbers",
                description="remove runs of digits that identify a card or a terminal",
                stage="clean",
                apply=lambda row, rng: [replace(row, text=without_digits(row.text))],
            )
    """


@hookspec
def trunkline_baselines() -> Iterable[BaselineSpec]:  # type: ignore[empty-body]
    """Yield inexpensive methods that adapters are compared with.

    Returns:
        One :class:`~trunkline.contracts.BaselineSpec` each. A task's or a recipe's ``baselines``
        name those that are used.

    Example::

        @hookimpl
        def trunkline_baselines():
            yield BaselineSpec(
                name="finance/keyword",
                description="the category whose keyword occurs in the text",
                tasks=("classification",),
                predict=lambda context: BaselinePredictions(
                    values=[category_by_keyword(row.text) for row in context.test]
                ),
            )
    """


@hookspec
def trunkline_tasks() -> Iterable[TaskSpec]:  # type: ignore[empty-body]
    """Yield tasks: a kind of output with its default loss and baselines.

    Returns:
        One :class:`~trunkline.contracts.TaskSpec` each; a recipe's ``task`` names the one that it
        uses.

    Example::

        @hookimpl
        def trunkline_tasks():
            yield TaskSpec(
                name="finance/cost-sensitive",
                description="classification where mistakes have different costs",
                kind="classification",
                loss="finance/cost_sensitive",
                baselines=("majority", "tfidf", "finance/keyword"),
            )
    """

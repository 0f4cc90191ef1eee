"""The hooks that a plugin may implement.

Owns: their names, signatures and documentation; ``docs/hooks.md`` is generated from here.
Must not know: how plugins are found or what is done with what they yield.

A plugin is a module behind an entry point of the group ``trunkline``. It declares
``TRUNKLINE_API = 1`` and implements any of these hooks with the marker
``trunkline.hookspecs.hookimpl``. Hooks yield frozen specs; names are qualified by the plugin's
domain, which is the name of its entry point.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from trunkline.contracts import DatasetSpec, LossSpec, MetricSpec, RecipeSpec, TransformSpec

hookspec = pluggy.HookspecMarker("trunkline")
hookimpl = pluggy.HookimplMarker("trunkline")


@hookspec
def trunkline_datasets() -> Iterable[DatasetSpec]:  # type: ignore[empty-body]
    """Yield the data sets that this domain brings.

    Returns:
        One :class:`~trunkline.contracts.DatasetSpec` each; its ``load`` is called only when the
        rows are needed.

    Example::

        @hookimpl
        def trunkline_datasets():
            yield DatasetSpec(
                name="medical/icd10-chapter",
                description="ICD-10-CM diagnoses and the chapter they stand in",
                task="classification",
                load=read_chapters,
                license="public domain",
                source="simple-icd-10-cm 1.5.0",
                grouping="a 3-character category: its codes are near-copies of one another",
            )
    """


@hookspec
def trunkline_recipes() -> Iterable[RecipeSpec]:  # type: ignore[empty-body]
    """Yield the LoRA adapters that this domain can make.

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
                settings=Settings(num_train_epochs=2, rank=16),
                loss="medical/hierarchical",
                metrics=("accuracy", "macro_f1", "medical/hierarchy_distance"),
                gate=Gate(metric="accuracy"),
            )
    """


@hookspec
def trunkline_losses() -> Iterable[LossSpec]:  # type: ignore[empty-body]
    """Yield training losses of this domain.

    Returns:
        One :class:`~trunkline.contracts.LossSpec` each; ``build`` imports torch when it is called.

    Example::

        @hookimpl
        def trunkline_losses():
            yield LossSpec(
                name="retail/huber",
                description="quadratic near zero, linear far out",
                task="regression",
                build=lambda context: huber,
            )
    """


@hookspec
def trunkline_metrics() -> Iterable[MetricSpec]:  # type: ignore[empty-body]
    """Yield figures of merit of this domain.

    Returns:
        One :class:`~trunkline.contracts.MetricSpec` each.

    Example::

        @hookimpl
        def trunkline_metrics():
            yield MetricSpec(
                name="finance/expected_cost",
                description="mean cost of the confusion, by the plugin's cost table",
                task="classification",
                compute=expected_cost,
                higher_is_better=False,
            )
    """


@hookspec
def trunkline_transforms() -> Iterable[TransformSpec]:  # type: ignore[empty-body]
    """Yield cleaning and augmentation steps of this domain.

    Returns:
        One :class:`~trunkline.contracts.TransformSpec` each; recipes name those they use.

    Example::

        @hookimpl
        def trunkline_transforms():
            yield TransformSpec(
                name="finance/drop-card-numbers",
                description="remove runs of digits that name a card or a terminal",
                stage="clean",
                apply=lambda row, rng: [replace(row, text=without_digits(row.text))],
            )
    """

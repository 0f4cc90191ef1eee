"""Compare a version with another version or with a baseline, on the version's own test rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trunkline.adapters.store import AdapterStore
from trunkline.contracts import MetricSpec, Target
from trunkline.data.targets import target_text
from trunkline.errors import DataError
from trunkline.evaluation.baselines import fit_baselines
from trunkline.evaluation.comparison import Comparison, PairedRows, compare
from trunkline.evaluation.intervals import paired_records, typed_predictions, typed_targets
from trunkline.plugins import Catalog
from trunkline.promotion import evaluations_on_test
from trunkline.registry.records import EvaluationRecord, PredictionRecord, VersionRecord
from trunkline.training.cross_validation import prepare_version
from trunkline.training.job import TrainingJob
from trunkline.training.run import RunContext

BEST = "baseline"
"""Means the best baseline of the version's evaluation."""


def compare_versions(
    store: AdapterStore,
    metric: Callable[[str], MetricSpec],
    version: VersionRecord,
    other: VersionRecord,
) -> Comparison:
    """Compare the stored predictions of two versions.

    Raises:
        DataError: one was never evaluated, or they were not evaluated on the same rows.
        NotFoundError: a metric of the evaluation is missing.
    """
    evaluation, first = _newest(store, version)
    second = _newest(store, other)[1]
    try:
        second = paired_records(first, second)
    except DataError as error:
        raise DataError(
            f"{version.ref} and {other.ref} can't be compared: {error.message}.",
            "Evaluate both on the same rows: train both with the same data and split_seed.",
        ) from None
    predictions = [record.prediction for record in second]
    return _compare(store, metric, version, evaluation, first, predictions, str(other.ref))


def compare_with_best(
    store: AdapterStore, metric: Callable[[str], MetricSpec], version: VersionRecord
) -> Comparison:
    """Compare with the stored predictions of the best baseline.

    Raises:
        DataError: the version was never evaluated.
    """
    evaluation, first = _newest(store, version)
    predictions = [record.baseline_prediction or "" for record in first]
    name = str(evaluation.results["best_baseline"])
    return _compare(store, metric, version, evaluation, first, predictions, name)


def compare_with_baseline(
    context: RunContext, job: TrainingJob, catalog: Catalog, version: VersionRecord, name: str
) -> Comparison:
    """Fit a baseline on the version's training rows and compare with it.

    Raises:
        NotFoundError: there is no such baseline for the task.
        DataError: the version was never evaluated on these rows.
        RefusedError: the data changed since the training.
    """
    spec = catalog.baseline_for(name, job.dataset.task, job.dataset.modality)
    context.stage("reading data")
    job, prepared, _ = prepare_version(context.store, job, version)
    split = prepared.split
    (fitted,) = fit_baselines([spec], job.recipe, split, context.engine.base, context.stage)
    by_id = dict(zip((row.id for row in split.test), fitted.predictions, strict=True))
    evaluation, first = _newest(context.store, version)
    if {record.row_id for record in first} != set(by_id):
        raise DataError(
            f"{version.ref} was evaluated on other rows than {job.dataset.name} has now.",
            f"Evaluate it again: `trunkline eval {version.ref}`.",
        )
    predictions = [by_id[record.row_id] for record in first]
    return _compare(
        context.store, catalog.metric, version, evaluation, first, predictions, spec.name
    )


def _newest(
    store: AdapterStore, version: VersionRecord
) -> tuple[EvaluationRecord, Sequence[PredictionRecord]]:
    for evaluation in evaluations_on_test(store.registry, version.ref):
        stored = store.registry.evaluations.predictions(evaluation.id)
        if stored:
            return evaluation, stored
    raise DataError(
        f"{version.ref} has no stored predictions on test rows.",
        f"Evaluate it first: `trunkline eval {version.ref}`.",
    )


def _compare(
    store: AdapterStore,
    metric: Callable[[str], MetricSpec],
    version: VersionRecord,
    evaluation: EvaluationRecord,
    first: Sequence[PredictionRecord],
    second: Sequence[Target],
    against: str,
) -> Comparison:
    results = evaluation.results
    metrics = [metric(name) for name in dict.fromkeys((results["metric"], *results["scores"]))]
    deciding = metrics[0]
    artifact = store.fetch(version)
    rows = PairedRows(
        ids=[record.row_id for record in first],
        groups=[record.group for record in first],
        targets=typed_targets(deciding, [record.target for record in first]),
        first=typed_predictions(deciding, [record.prediction for record in first]),
        second=typed_predictions(deciding, [target_text(value) for value in second]),
    )
    return compare(rows, against, metrics, tuple(artifact.manifest.task.get("labels", ())))

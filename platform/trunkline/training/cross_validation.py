"""Evaluation without publishing: a recipe over folds or seeds, and a version once more."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import Artifact
from trunkline.adapters.store import AdapterStore
from trunkline.contracts import Row, Target
from trunkline.data.prepare import Prepared, prepare
from trunkline.data.split import Fold
from trunkline.errors import Interrupted, RefusedError, UsageError
from trunkline.evaluation.baselines import Baseline, fit_baselines
from trunkline.evaluation.report import (
    EvaluationReport,
    RowPredictions,
    answer_rows,
    evaluate,
    predict_rows,
)
from trunkline.inference.ensemble import average
from trunkline.registry.records import VersionRecord
from trunkline.training.distributed import require_one
from trunkline.training.job import TrainingJob
from trunkline.training.model import check_targets
from trunkline.training.run import (
    RunContext,
    evaluate_artifact,
    prediction_record,
    record_base,
    record_dataset,
)
from trunkline.training.scratch import scratch_folder
from trunkline.training.trainer import TrainerOutput, train_adapter

_STOPPED = "The evaluation was stopped; nothing was kept."


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """The pooled evaluation of all folds.

    ``evaluation`` is the number of its record in the registry.
    """

    folds: int
    evaluation: int
    evaluation_report: EvaluationReport
    per_fold: tuple[dict[str, Any], ...]


def cross_validate(context: RunContext, job: TrainingJob, folds: int) -> CrossValidation:
    """Train once per fold and evaluate all held-out rows together; publish nothing.

    Baselines are fitted on each fold. Each group is held out once; intervals resample the groups of
    all folds.

    Raises:
        UsageError: ``folds`` is not 2 to 20, or this is one of several processes.
        Interrupted: stopped by the user; nothing is kept.
    """
    _check_count("folds", folds)
    recipe = job.recipe
    rows: list[Row] = []
    values: list[Target] = []
    confidences: list[float | None] = []
    pooled: dict[str, Baseline] = {}
    per_fold: list[dict[str, Any]] = []
    labels: tuple[str, ...] = ()
    dataset_id = 0
    check_targets(context.engine.base, recipe.settings)
    with _scratch_folder(context) as folder:
        for index in range(folds):
            context.stage(f"fold {index + 1} of {folds}")
            prepared = prepare(job.dataset, recipe, job.transforms, Fold(index, folds))
            dataset_id = record_dataset(context, job, prepared)
            labels = prepared.labels
            output, predicted = _train_and_predict(context, job, prepared, folder / str(index))
            test = prepared.split.test
            for baseline in fit_baselines(
                job.baselines, recipe, prepared.split, context.engine.base, context.stage
            ):
                total = pooled.setdefault(
                    baseline.name, Baseline(baseline.name, [], "fitted on each fold")
                )
                total.predictions.extend(baseline.predictions)
            rows += test
            values += predicted.values
            confidences += predicted.confidences
            per_fold.append({"test_rows": len(test), **output.to_json()})
    context.listener.stage("evaluating")
    report, predictions = evaluate(
        rows, values, list(pooled.values()), job.metrics, labels, confidences
    )
    evaluation = context.registry.evaluations.record(
        recipe=recipe.name,
        base_digest=record_base(context),
        dataset_id=dataset_id,
        split=f"{folds} folds",
        results={
            **report.to_json(),
            "settings": asdict(recipe.settings),
            "folds": per_fold,
        },
        predictions=[prediction_record(prediction) for prediction in predictions],
    )
    return CrossValidation(folds, evaluation, report, tuple(per_fold))


@dataclass(frozen=True, slots=True)
class Spread:
    """A metric over several trainings: mean, sample standard deviation, lowest and highest."""

    mean: float
    deviation: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SeedRepetition:
    """The same recipe trained with several seeds on one split.

    Attributes:
        metric: the deciding metric.
        spread: of every metric.
        reports: the evaluation of each seed, in the order of the seeds.
        evaluation: the number of the record in the registry.
    """

    metric: str
    spread: dict[str, Spread]
    reports: tuple[EvaluationReport, ...]
    evaluation: int


def repeat_seeds(context: RunContext, job: TrainingJob, seeds: int) -> SeedRepetition:
    """Train with the seeds 0 to ``seeds - 1``; the split and the baselines stay the same.

    Raises:
        UsageError: ``seeds`` is not 2 to 20, or this is one of several processes.
        Interrupted: stopped by the user; nothing is kept.
    """
    _check_count("seeds", seeds)
    recipe = job.recipe
    check_targets(context.engine.base, recipe.settings)
    context.listener.stage("reading data")
    prepared = prepare(job.dataset, recipe, job.transforms)
    test = prepared.split.test
    reports: list[EvaluationReport] = []
    with _scratch_folder(context) as folder:
        baselines = fit_baselines(
            job.baselines, recipe, prepared.split, context.engine.base, context.stage
        )
        for seed in range(seeds):
            context.stage(f"seed {seed}: {seed + 1} of {seeds}")
            settings = replace(recipe.settings, seed=seed)
            seeded = replace(job, recipe=replace(recipe, settings=settings))
            predicted = _train_and_predict(context, seeded, prepared, folder / str(seed))[1]
            report, _ = evaluate(
                test,
                predicted.values,
                baselines,
                job.metrics,
                prepared.labels,
                predicted.confidences,
            )
            reports.append(report)
    spread = {
        metric.name: _spread([report.scores[metric.name].value for report in reports])
        for metric in job.metrics
    }
    evaluation = context.registry.evaluations.record(
        recipe=recipe.name,
        base_digest=record_base(context),
        dataset_id=record_dataset(context, job, prepared),
        split=f"test, {seeds} seeds",
        results={
            "metric": job.deciding_metric.name,
            "settings": asdict(recipe.settings),
            "spread": {name: asdict(value) for name, value in spread.items()},
            "seeds": [report.to_json() for report in reports],
        },
    )
    return SeedRepetition(job.deciding_metric.name, spread, tuple(reports), evaluation)


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values), min(values), max(values))


@contextmanager
def _scratch_folder(context: RunContext) -> Iterator[Path]:
    """A folder for trainings that publish nothing; an interrupt says that nothing was kept."""
    try:
        with scratch_folder(context.workspace, f"folds-{os.getpid()}") as folder:
            yield folder
    except (Interrupted, KeyboardInterrupt) as stop:
        raise Interrupted(_STOPPED, "Start again, perhaps with fewer trainings.") from stop


def _train_and_predict(
    context: RunContext, job: TrainingJob, prepared: Prepared, folder: Path
) -> tuple[TrainerOutput, RowPredictions]:
    """Train in a folder, predict the test rows, and remove the folder."""
    output = train_adapter(
        job,
        prepared,
        context.engine,
        folder,
        listener=context.listener,
        log=lambda step, figures: None,
        should_stop=context.should_stop,
    )
    if output.artifact is None:
        raise Interrupted(_STOPPED)
    predicted = predict_rows(
        context.engine,
        output.artifact,
        job.recipe.name,
        prepared.split.test,
        on_done=context.check_stop,
    )
    context.engine.pool.unload(output.artifact.digest)
    shutil.rmtree(folder, ignore_errors=True)
    return output, predicted


def evaluate_version(
    context: RunContext, job: TrainingJob, version: VersionRecord
) -> EvaluationReport:
    """Evaluate a published version on its own test rows again, and record it.

    On a quantized base it is recorded under a split of its own, because the gate requires an
    evaluation in floating point.

    Raises:
        RefusedError: the data changed since the training, so its test rows may have been seen.
        UsageError: this is one of several processes.
    """
    require_one()
    context.listener.stage("reading data")
    job, prepared, artifact = prepare_version(context.store, job, version)
    report, predictions = evaluate_artifact(context, job, prepared, artifact)
    quantized = getattr(context.engine.base, "quantized", None)
    context.registry.evaluations.record(
        recipe=job.recipe.name,
        base_digest=record_base(context),
        dataset_id=record_dataset(context, job, prepared),
        split=f"test, base in {quantized}" if quantized else "test",
        results={**report.to_json(), "gate": asdict(job.recipe.gate)},
        predictions=[prediction_record(prediction) for prediction in predictions],
        version=version.ref,
    )
    return report


def evaluate_ensemble(
    context: RunContext, job: TrainingJob, versions: Sequence[VersionRecord]
) -> EvaluationReport:
    """Evaluate the average of several versions on the test rows that all of them have.

    Args:
        job: of the first version.
        versions: two or more.

    Raises:
        RefusedError: a version was trained on other rows, so it may have seen these.
        UsageError: the versions can't be averaged.
    """
    context.listener.stage("reading data")
    job, prepared, first = prepare_version(context.store, job, versions[0])
    artifacts = [first, *(context.store.fetch(version) for version in versions[1:])]
    for version, artifact in zip(versions, artifacts, strict=True):
        if artifact.manifest.data != first.manifest.data:
            raise RefusedError(
                f"{version.ref} was trained on other rows or another split than "
                f"{versions[0].ref}, so it may have seen these test rows.",
                "Use versions of one recipe with the same data and split_seed.",
            )
    test = prepared.split.test
    context.stage("predicting the test rows")
    answers = [
        answer_rows(context.engine, artifact, str(version.ref), test, context.check_stop)
        for version, artifact in zip(versions, artifacts, strict=True)
    ]
    predicted = RowPredictions.of([average(of_row) for of_row in zip(*answers, strict=True)])
    baselines = fit_baselines(
        job.baselines, job.recipe, prepared.split, context.engine.base, context.stage
    )
    context.stage("evaluating")
    report, _ = evaluate(
        test,
        predicted.values,
        baselines,
        job.metrics,
        prepared.labels,
        predicted.confidences,
    )
    return report


def prepare_version(
    store: AdapterStore, job: TrainingJob, version: VersionRecord
) -> tuple[TrainingJob, Prepared, Artifact]:
    """A version's own rows, with its template and limit.

    Raises:
        RefusedError: the data changed since the training, so its test rows may have been seen.
    """
    artifact = store.fetch(version)
    template, max_length = artifact.manifest.make_template(), artifact.manifest.max_length
    settings = job.settings
    if max_length is not None:
        settings = replace(settings, max_length=max_length)
    job = replace(job, recipe=replace(job.recipe, template=template, settings=settings))
    prepared = prepare(job.dataset, job.recipe, job.transforms)
    data = artifact.manifest.data
    if (data["fingerprint"], data["split"]) != (prepared.fingerprint, prepared.split.fingerprint):
        raise RefusedError(
            f"The rows of {job.dataset.name} changed since {version.ref} was trained, so its test "
            "rows can't be separated from its training rows.",
            f"Train again: `trunkline train {job.recipe.name}`.",
        )
    return job, prepared, artifact


def _check_count(noun: str, count: int) -> None:
    require_one()
    if not 2 <= count <= 20:
        raise UsageError(f"The number of {noun} can't be {count}.", "Use 2 to 20.")

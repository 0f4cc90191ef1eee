"""Evaluating without publishing: a version once more, or a recipe over folds.

Owns: what ``eval`` does. Must not know: how a run is recorded, the command line.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trunkline.contracts import Row, Target
from trunkline.data.prepare import prepare
from trunkline.data.split import Fold
from trunkline.errors import Interrupted, RefusedError
from trunkline.evaluation.assess import predict_rows
from trunkline.evaluation.baselines import Baseline, fit_baselines
from trunkline.evaluation.report import EvaluationReport, evaluate
from trunkline.registry.records import VersionRecord
from trunkline.training.fit import TrainingJob, fit
from trunkline.training.model import lora_targets
from trunkline.training.run_context import (
    RunContext,
    evaluate_artifact,
    prediction_record,
    record_base,
    record_dataset,
)

_FOLDS_STOPPED = "The folds were stopped; nothing was kept."


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Predictions of every fold taken together."""

    folds: int
    evaluation: int
    evaluation_report: EvaluationReport
    per_fold: tuple[dict[str, Any], ...]


def cross_validate(bench: RunContext, training_job: TrainingJob, folds: int) -> CrossValidation:
    """Train once a fold, publish nothing, and evaluate all held-out rows together.

    Baselines are fitted anew on every fold. Each group is held out once; the interval resamples the
    groups of all folds.

    Raises:
        Interrupted: stopped by the user; nothing is kept.
    """
    recipe = training_job.recipe
    rows: list[Row] = []
    values: list[Target] = []
    confidences: list[float | None] = []
    pooled: dict[str, Baseline] = {}
    per_fold: list[dict[str, Any]] = []
    labels: tuple[str, ...] = ()
    dataset_id = 0
    lora_targets(bench.engine.base.model, recipe.settings)
    bench.workspace.runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="folds-", dir=bench.workspace.runs))
    try:
        for index in range(folds):
            bench.stage(f"fold {index + 1} of {folds}")
            prepared = prepare(
                training_job.dataset, recipe, training_job.transforms, Fold(index, folds)
            )
            dataset_id = record_dataset(bench, training_job, prepared)
            labels = prepared.labels
            fitted = fit(
                training_job,
                prepared,
                bench.engine,
                folder / str(index),
                listener=bench.listener,
                log=lambda step, figures: None,
                should_stop=bench.should_stop,
            )
            if fitted.artifact is None:
                raise Interrupted(_FOLDS_STOPPED)
            test = prepared.split.test
            predicted = predict_rows(
                bench.engine, fitted.artifact, recipe.name, test, on_done=bench.check_stop
            )
            bench.engine.pool.unload(fitted.artifact.digest)
            shutil.rmtree(folder / str(index), ignore_errors=True)
            for baseline in fit_baselines(
                training_job.baselines,
                recipe,
                prepared.split,
                bench.engine.base,
                bench.stage,
            ):
                so_far = pooled.setdefault(
                    baseline.name, Baseline(baseline.name, [], "fitted on each fold")
                )
                so_far.predictions.extend(baseline.predictions)
            rows += test
            values += predicted.values
            confidences += predicted.confidences
            per_fold.append({"test_rows": len(test), **fitted.to_json()})
    except (Interrupted, KeyboardInterrupt) as stop:
        raise Interrupted(_FOLDS_STOPPED, "Start again, with fewer folds if need be.") from stop
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    bench.listener.stage("evaluating")
    evaluation_report, kept = evaluate(
        rows, values, list(pooled.values()), training_job.metrics, labels, confidences
    )
    evaluation = bench.registry.evaluations.record(
        recipe=recipe.name,
        base_digest=record_base(bench),
        dataset_id=dataset_id,
        split=f"{folds} folds",
        results={
            **evaluation_report.to_json(),
            "settings": asdict(recipe.settings),
            "folds": per_fold,
        },
        predictions=[prediction_record(prediction) for prediction in kept],
    )
    return CrossValidation(folds, evaluation, evaluation_report, tuple(per_fold))


def evaluate_version(
    bench: RunContext, training_job: TrainingJob, version: VersionRecord
) -> EvaluationReport:
    """Evaluate a published version on its own test rows again, and record it.

    On a quantized base it is recorded apart: the gate asks for what was evaluated in floating
    point.

    Raises:
        RefusedError: the data changed since it was trained, so that its test rows are not known
            to be unseen.
    """
    bench.listener.stage("reading data")
    artifact = bench.store.fetch(version)
    template = artifact.manifest.make_template()
    training_job = replace(training_job, recipe=replace(training_job.recipe, template=template))
    prepared = prepare(training_job.dataset, training_job.recipe, training_job.transforms)
    data = artifact.manifest.data
    if (data["fingerprint"], data["split"]) != (prepared.fingerprint, prepared.split.fingerprint):
        raise RefusedError(
            f"The rows of {training_job.dataset.name} changed since {version.ref} was trained; its "
            "test rows can't be told from its training rows.",
            f"Train again: `trunkline train {training_job.recipe.name}`.",
        )
    evaluation_report, kept = evaluate_artifact(bench, training_job, prepared, artifact)
    quantized = bench.engine.base.quantized
    bench.registry.evaluations.record(
        recipe=training_job.recipe.name,
        base_digest=record_base(bench),
        dataset_id=record_dataset(bench, training_job, prepared),
        split=f"test, base in {quantized}" if quantized else "test",
        results={**evaluation_report.to_json(), "gate": asdict(training_job.recipe.gate)},
        predictions=[prediction_record(prediction) for prediction in kept],
        version=version.ref,
    )
    return evaluation_report

"""A run: a recipe trained, judged, published, and written down whatever happens.

Owns: the order of things and the registry's account of them. Must not know: the command line.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trunkline.adapters.store import AdapterStore
from trunkline.contracts import Target
from trunkline.data.prepare import Prepared, prepare
from trunkline.data.split import Fold
from trunkline.errors import Interrupted, RefusedError, TrainingError, TrunklineError
from trunkline.evaluation.assess import predict_rows
from trunkline.evaluation.floors import Floor, floors
from trunkline.evaluation.judgement import Judgement, Prediction, judge
from trunkline.inference.engine import Engine
from trunkline.plugins import PluginInfo
from trunkline.refs import Ref
from trunkline.registry.records import PredictionRecord, RunRecord, VersionRecord
from trunkline.registry.store import Registry
from trunkline.training.card import model_card
from trunkline.training.environment import environment
from trunkline.training.fit import Fitted, Ingredients, fit, uses_bf16, write_provenance
from trunkline.training.steps import Listener
from trunkline.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Bench:
    """Where the work is done: the workspace's parts and the engine on the clean base."""

    workspace: Workspace
    registry: Registry
    store: AdapterStore
    engine: Engine
    listener: Listener
    should_stop: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished run and the version that it published."""

    number: int
    version: VersionRecord
    judgement: Judgement
    report: dict[str, Any]


def train(
    bench: Bench,
    ingredients: Ingredients,
    plugin: PluginInfo | None,
    resume: RunRecord | None = None,
) -> TrainedRun:
    """Train a recipe and publish the version, whatever the verdict.

    Raises:
        Interrupted: stopped by the user; the run can be resumed.
        TrunklineError: the run failed; it is recorded as failed, nothing is published.
    """
    recipe = ingredients.recipe
    bench.listener.stage("reading data")
    prepared = prepare(ingredients.dataset, recipe, ingredients.transforms)
    dataset_id = _record_dataset(bench, ingredients, prepared)
    if resume is None:
        number = _start(bench, ingredients, plugin, dataset_id)
    else:
        _check_same_ground(resume, prepared, bench)
        number = resume.number
        bench.registry.resume_run(number)
    folder = bench.workspace.run_path(number)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        fitted = fit(
            ingredients,
            prepared,
            bench.engine,
            folder,
            listener=bench.listener,
            log=lambda step, values: bench.registry.log_metrics(number, step, values),
            should_stop=bench.should_stop,
            resume=resume is not None,
        )
        if fitted.artifact is None:
            raise Interrupted(
                f"Run {number} was stopped at step {fitted.stepped.steps} of "
                f"{fitted.stepped.total_steps}.",
                f"Go on with `trunkline train {recipe.name} --resume {number}`.",
            )
        report = _report(prepared, fitted, started)
        judgement = _judge_and_record(
            bench, ingredients, prepared, fitted, dataset_id, number, report
        )
        report["seconds"] = round(time.monotonic() - started, 1)
        bench.listener.stage("publishing")
        version = bench.store.publish(
            fitted.artifact.folder, Ref.parse(recipe.name), task=recipe.task, run=number
        )
        bench.registry.finish_run(number, "finished", report=report)
    except (Interrupted, KeyboardInterrupt) as stop:
        bench.registry.finish_run(number, "interrupted", error=str(stop) or "interrupted")
        if isinstance(stop, Interrupted):
            raise
        raise Interrupted(
            f"Run {number} was stopped.",
            f"Go on with `trunkline train {recipe.name} --resume {number}`.",
        ) from stop
    except TrunklineError as error:
        bench.registry.finish_run(number, "failed", error=error.message)
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        bench.registry.finish_run(number, "failed", error=told)
        raise TrainingError(
            f"Run {number} failed: {told}", "`trunkline --debug train …` shows the traceback."
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    return TrainedRun(number, version, judgement, report)


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Predictions of every fold taken together."""

    folds: int
    evaluation: int
    judgement: Judgement
    per_fold: tuple[dict[str, Any], ...]


def cross_validate(
    bench: Bench, ingredients: Ingredients, plugin: PluginInfo | None, folds: int
) -> CrossValidation:
    """Train once a fold, publish nothing, and judge all held-out rows together.

    Floors are fitted anew on every fold. Each group is held out once; the interval resamples the
    groups of all folds.

    Raises:
        Interrupted: stopped by the user; nothing is kept.
    """
    recipe = ingredients.recipe
    rows: list[Any] = []
    values: list[Target] = []
    confidences: list[float | None] = []
    pooled: dict[str, Floor] = {}
    per_fold: list[dict[str, Any]] = []
    labels: tuple[str, ...] = ()
    dataset_id = 0
    folder = bench.workspace.runs / f"folds-{recipe.name.replace('/', '-')}"
    try:
        for index in range(folds):
            bench.listener.stage(f"fold {index + 1} of {folds}")
            prepared = prepare(
                ingredients.dataset, recipe, ingredients.transforms, Fold(index, folds)
            )
            dataset_id = _record_dataset(bench, ingredients, prepared)
            labels = prepared.labels
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            fitted = fit(
                ingredients,
                prepared,
                bench.engine,
                folder,
                listener=bench.listener,
                log=lambda step, figures: None,
                should_stop=bench.should_stop,
            )
            if fitted.artifact is None:
                raise Interrupted("The folds were stopped; nothing was kept.", None)
            test = prepared.split.test
            predicted = predict_rows(bench.engine, fitted.artifact, recipe.name, test)
            bench.engine.bank.unload(fitted.artifact.digest)
            for floor in floors(recipe, prepared.split, bench.engine.base, bench.listener.stage):
                so_far = pooled.setdefault(floor.name, Floor(floor.name, [], "fitted on each fold"))
                so_far.predictions.extend(floor.predictions)
            rows += test
            values += predicted.values
            confidences += predicted.confidences
            per_fold.append({"test_rows": len(test), **fitted.to_json()})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    bench.listener.stage("judging")
    judgement, kept = judge(
        rows, values, list(pooled.values()), ingredients.metrics, labels, confidences
    )
    evaluation = bench.registry.record_evaluation(
        recipe=recipe.name,
        base_digest=_record_base(bench),
        dataset_id=dataset_id,
        split=f"{folds} folds",
        results={**judgement.to_json(), "settings": asdict(recipe.settings), "folds": per_fold},
        predictions=[_record(prediction) for prediction in kept],
    )
    return CrossValidation(folds, evaluation, judgement, tuple(per_fold))


def evaluate_version(bench: Bench, ingredients: Ingredients, version: VersionRecord) -> Judgement:
    """Judge a published version on its own test rows again, and record it.

    Raises:
        RefusedError: the data changed since it was trained, so that its test rows are not known
            to be unseen.
    """
    bench.listener.stage("reading data")
    artifact = bench.store.fetch(version)
    prepared = prepare(ingredients.dataset, ingredients.recipe, ingredients.transforms)
    data = artifact.manifest.data
    if (data["fingerprint"], data["split"]) != (prepared.fingerprint, prepared.split.fingerprint):
        raise RefusedError(
            f"The rows of {ingredients.dataset.name} changed since {version.ref} was trained; its "
            "test rows can't be told from its training rows.",
            f"Train again: `trunkline train {ingredients.recipe.name}`.",
        )
    template = artifact.manifest.make_template()
    ingredients = replace(ingredients, recipe=replace(ingredients.recipe, template=template))
    judgement, kept = _judge(bench, ingredients, prepared, artifact)
    bench.registry.record_evaluation(
        recipe=ingredients.recipe.name,
        base_digest=_record_base(bench),
        dataset_id=_record_dataset(bench, ingredients, prepared),
        split="test",
        results={**judgement.to_json(), "gate": asdict(ingredients.recipe.gate)},
        predictions=[_record(prediction) for prediction in kept],
        version=version.ref,
    )
    return judgement


def _judge(
    bench: Bench, ingredients: Ingredients, prepared: Prepared, artifact: Any
) -> tuple[Judgement, list[Prediction]]:
    recipe, split = ingredients.recipe, prepared.split
    found = floors(recipe, split, bench.engine.base, bench.listener.stage)
    bench.listener.stage("predicting the test rows")
    predicted = predict_rows(bench.engine, artifact, recipe.name, split.test)
    bench.listener.stage("judging")
    return judge(
        split.test,
        predicted.values,
        found,
        ingredients.metrics,
        prepared.labels,
        predicted.confidences,
    )


def _judge_and_record(
    bench: Bench,
    ingredients: Ingredients,
    prepared: Prepared,
    fitted: Fitted,
    dataset_id: int,
    number: int,
    report: dict[str, Any],
) -> Judgement:
    recipe, artifact = ingredients.recipe, fitted.artifact
    assert artifact is not None
    judgement, kept = _judge(bench, ingredients, prepared, artifact)
    results = {**judgement.to_json(), "gate": asdict(recipe.gate)}
    bench.registry.record_evaluation(
        recipe=recipe.name,
        base_digest=bench.engine.base.digest,
        dataset_id=dataset_id,
        split="test",
        results=results,
        predictions=[_record(prediction) for prediction in kept],
        run=number,
    )
    folder: Path = artifact.folder
    write_provenance(
        folder,
        {
            "run": number,
            "recipe": recipe.name,
            "settings": asdict(recipe.settings),
            "environment": bench.registry.run(number).environment,
            "report": report,
            "evaluation": results,
        },
    )
    card = model_card(recipe, ingredients.dataset, artifact.manifest, judgement, report)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return judgement


def _start(
    bench: Bench, ingredients: Ingredients, plugin: PluginInfo | None, dataset_id: int
) -> int:
    recipe, base = ingredients.recipe, bench.engine.base
    plugin_id = None
    if plugin is not None:
        plugin_id = bench.registry.record_plugin(
            distribution=plugin.distribution,
            version=plugin.version,
            api=plugin.api or 0,
            domain=plugin.domain,
        )
    return bench.registry.start_run(
        recipe=recipe.name,
        base_digest=_record_base(bench),
        dataset_id=dataset_id,
        plugin_id=plugin_id,
        seed=recipe.settings.seed,
        settings=asdict(recipe.settings),
        environment=environment(base.device, uses_bf16(recipe.settings.precision, base.device)),
    )


def _record_base(bench: Bench) -> str:
    info = bench.engine.base.info
    bench.registry.record_base(
        digest=info.digest,
        name=info.name,
        source=info.source,
        architecture=info.architecture,
        parameters=info.parameters,
        dtype=info.dtype,
    )
    return info.digest


def _record_dataset(bench: Bench, ingredients: Ingredients, prepared: Prepared) -> int:
    dataset = ingredients.dataset
    return bench.registry.record_dataset(
        name=dataset.name,
        fingerprint=prepared.fingerprint,
        split_fingerprint=prepared.split.fingerprint,
        rows=prepared.report.kept,
        licence=dataset.licence,
        source=dataset.source,
        counts=prepared.report.to_json(),
    )


def _check_same_ground(run: RunRecord, prepared: Prepared, bench: Bench) -> None:
    """A checkpoint goes on only on the base, rows and split that it began with."""
    begun = (run.base_digest, run.dataset_fingerprint, run.split_fingerprint)
    now = (bench.engine.base.digest, prepared.fingerprint, prepared.split.fingerprint)
    if begun != now:
        raise RefusedError(
            f"Run {run.number} can't go on: its base or its data are not the same any more.",
            f"Start anew with `trunkline train {run.recipe}`.",
        )


def _report(prepared: Prepared, fitted: Fitted, started: float) -> dict[str, Any]:
    return {
        "data": prepared.report.to_json(),
        **fitted.to_json(),
        "train_seconds": round(time.monotonic() - started, 1),
    }


def _record(prediction: Prediction) -> PredictionRecord:
    floor = prediction.floor_prediction
    return PredictionRecord(
        row_id=prediction.row_id,
        group=prediction.group,
        target=str(prediction.target),
        prediction=str(prediction.prediction),
        confidence=prediction.confidence,
        floor_prediction=None if floor is None else str(floor),
    )

"""Judging without publishing: a version once more, or a recipe over folds.

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
from trunkline.evaluation.floors import Floor, floors
from trunkline.evaluation.judgement import Judgement, judge
from trunkline.registry.records import VersionRecord
from trunkline.training.bench import (
    Bench,
    judge_artifact,
    prediction_record,
    record_base,
    record_dataset,
)
from trunkline.training.fit import Ingredients, fit
from trunkline.training.model import lora_targets

_FOLDS_STOPPED = "The folds were stopped; nothing was kept."


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Predictions of every fold taken together."""

    folds: int
    evaluation: int
    judgement: Judgement
    per_fold: tuple[dict[str, Any], ...]


def cross_validate(bench: Bench, ingredients: Ingredients, folds: int) -> CrossValidation:
    """Train once a fold, publish nothing, and judge all held-out rows together.

    Floors are fitted anew on every fold. Each group is held out once; the interval resamples the
    groups of all folds.

    Raises:
        Interrupted: stopped by the user; nothing is kept.
    """
    recipe = ingredients.recipe
    rows: list[Row] = []
    values: list[Target] = []
    confidences: list[float | None] = []
    pooled: dict[str, Floor] = {}
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
                ingredients.dataset, recipe, ingredients.transforms, Fold(index, folds)
            )
            dataset_id = record_dataset(bench, ingredients, prepared)
            labels = prepared.labels
            fitted = fit(
                ingredients,
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
            bench.engine.bank.unload(fitted.artifact.digest)
            shutil.rmtree(folder / str(index), ignore_errors=True)
            for floor in floors(recipe, prepared.split, bench.engine.base, bench.stage):
                so_far = pooled.setdefault(floor.name, Floor(floor.name, [], "fitted on each fold"))
                so_far.predictions.extend(floor.predictions)
            rows += test
            values += predicted.values
            confidences += predicted.confidences
            per_fold.append({"test_rows": len(test), **fitted.to_json()})
    except (Interrupted, KeyboardInterrupt) as stop:
        raise Interrupted(_FOLDS_STOPPED, "Start again, with fewer folds if need be.") from stop
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    bench.listener.stage("judging")
    judgement, kept = judge(
        rows, values, list(pooled.values()), ingredients.metrics, labels, confidences
    )
    evaluation = bench.registry.evaluations.record(
        recipe=recipe.name,
        base_digest=record_base(bench),
        dataset_id=dataset_id,
        split=f"{folds} folds",
        results={**judgement.to_json(), "settings": asdict(recipe.settings), "folds": per_fold},
        predictions=[prediction_record(prediction) for prediction in kept],
    )
    return CrossValidation(folds, evaluation, judgement, tuple(per_fold))


def evaluate_version(bench: Bench, ingredients: Ingredients, version: VersionRecord) -> Judgement:
    """Judge a published version on its own test rows again, and record it.

    On a quantised base it is recorded apart: the gate asks for what was judged in floating point.

    Raises:
        RefusedError: the data changed since it was trained, so that its test rows are not known
            to be unseen.
    """
    bench.listener.stage("reading data")
    artifact = bench.store.fetch(version)
    template = artifact.manifest.make_template()
    ingredients = replace(ingredients, recipe=replace(ingredients.recipe, template=template))
    prepared = prepare(ingredients.dataset, ingredients.recipe, ingredients.transforms)
    data = artifact.manifest.data
    if (data["fingerprint"], data["split"]) != (prepared.fingerprint, prepared.split.fingerprint):
        raise RefusedError(
            f"The rows of {ingredients.dataset.name} changed since {version.ref} was trained; its "
            "test rows can't be told from its training rows.",
            f"Train again: `trunkline train {ingredients.recipe.name}`.",
        )
    judgement, kept = judge_artifact(bench, ingredients, prepared, artifact)
    quantised = bench.engine.base.quantised
    bench.registry.evaluations.record(
        recipe=ingredients.recipe.name,
        base_digest=record_base(bench),
        dataset_id=record_dataset(bench, ingredients, prepared),
        split=f"test, base in {quantised}" if quantised else "test",
        results={**judgement.to_json(), "gate": asdict(ingredients.recipe.gate)},
        predictions=[prediction_record(prediction) for prediction in kept],
        version=version.ref,
    )
    return judgement

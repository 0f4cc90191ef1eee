"""A run: a recipe trained, evaluated, published, and written down whatever happens.

Owns: the order of things and the registry's account of them. Must not know: the command line.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import CARD, CROISSANT, Artifact, write_json
from trunkline.adapters.card import render_card
from trunkline.adapters.provenance import run_provenance, write_provenance
from trunkline.data.croissant import croissant_of
from trunkline.data.prepare import Prepared, prepare
from trunkline.errors import (
    DataError,
    Interrupted,
    RefusedError,
    TrainingError,
    TrunklineError,
    one_line,
)
from trunkline.evaluation.report import EvaluationReport
from trunkline.plugins import PluginInfo
from trunkline.refs import Ref
from trunkline.registry.records import RunRecord, VersionRecord
from trunkline.training.checkpoints import last_checkpoint
from trunkline.training.compute import EnergyMeter, compute_report
from trunkline.training.environment import environment
from trunkline.training.fit import Fitted, TrainingJob, fit
from trunkline.training.model import lora_targets, uses_bf16
from trunkline.training.run_context import (
    RunContext,
    evaluate_artifact,
    prediction_record,
    record_base,
    record_dataset,
)
from trunkline.training.specification import specification


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished run and the version that it published."""

    number: int
    version: VersionRecord
    evaluation_report: EvaluationReport
    report: dict[str, Any]


def train(
    bench: RunContext,
    training_job: TrainingJob,
    plugin: PluginInfo | None,
    resume: RunRecord | None = None,
) -> TrainedRun:
    """Train a recipe and publish the version, whatever the verdict.

    Raises:
        Interrupted: stopped by the user; the run can be resumed.
        TrunklineError: the run failed; it is recorded as failed, nothing is published.
    """
    recipe = training_job.recipe
    lora_targets(bench.engine.base.model, recipe.settings)
    bench.listener.stage("reading data")
    prepared = prepare(training_job.dataset, recipe, training_job.transforms)
    dataset_id = record_dataset(bench, training_job, prepared)
    with ExitStack() as stack:
        if resume is None:
            number = _start(bench, training_job, plugin, dataset_id)
            folder = bench.workspace.run_path(number)
            stack.enter_context(_account(bench, recipe.name, number, folder))
            stack.enter_context(_held(folder, number))
        else:
            _check_same_ground(resume, prepared, bench)
            number = resume.number
            folder = bench.workspace.run_path(number)
            stack.enter_context(_held(folder, number))
            bench.registry.runs.resume(number)
            stack.enter_context(_account(bench, recipe.name, number, folder))
        started = time.monotonic()
        meter = None if resume is not None else EnergyMeter()

        def log(step: int, values: Mapping[str, float]) -> None:
            if meter is not None:
                meter.read()
            bench.registry.runs.log_metrics(number, step, values)

        fitted = fit(
            training_job,
            prepared,
            bench.engine,
            folder,
            listener=bench.listener,
            log=log,
            should_stop=bench.should_stop,
            resume=resume is not None,
        )
        if fitted.artifact is None:
            stepped = fitted.stepped
            raise Interrupted(
                f"Run {number} was stopped at step {stepped.steps} of {stepped.total_steps}."
            )
        report = _report(bench, prepared, fitted, started, meter)
        evaluation_report = _evaluate_and_record(
            bench, training_job, prepared, fitted, dataset_id, number
        )
        report["seconds"] = round(time.monotonic() - started, 1)
        _write_account(bench, training_job, prepared, fitted.artifact, number, report)
        bench.listener.stage("publishing")
        version = bench.store.publish(
            fitted.artifact.folder, Ref.parse(recipe.name), task=recipe.task, run=number
        )
        bench.registry.runs.finish(number, "finished", report=report)
    shutil.rmtree(folder, ignore_errors=True)
    return TrainedRun(number, version, evaluation_report, report)


@contextmanager
def _account(bench: RunContext, recipe: str, number: int, folder: Path) -> Iterator[None]:
    """Write down how the run ended if the block raises, and say it in one sentence."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        message = str(stop) or f"Run {number} was stopped."
        bench.registry.runs.finish(number, "interrupted", error=message)
        _drop_unless_resumable(folder)
        raise Interrupted(
            message, f"Go on with `trunkline train {recipe} --resume {number}`."
        ) from stop
    except TrunklineError as error:
        bench.registry.runs.finish(number, "failed", error=error.message)
        if isinstance(error, TrainingError | DataError):  # going on would fail the same way
            shutil.rmtree(folder, ignore_errors=True)
        _drop_unless_resumable(folder)
        raise
    except Exception as error:
        reason = one_line(error, with_type=True)
        bench.registry.runs.finish(number, "failed", error=reason)
        _drop_unless_resumable(folder)
        raise TrainingError(
            f"Run {number} failed: {reason}.", "`trunkline --debug train …` shows the traceback."
        ) from error


@contextmanager
def _held(folder: Path, number: int) -> Iterator[None]:
    """Keep every other process away from the run's folder; a killed one lets go by itself."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RefusedError(
            f"Run {number} is being worked on by another process.", "Wait for it, or stop it."
        ) from None
    except OSError as error:
        raise TrainingError(
            f"The run's folder {folder} can't be written: {error.strerror or error}.",
            "Make room or give write permission.",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _drop_unless_resumable(folder: Path) -> None:
    """Leave no folder behind that holds no checkpoint."""
    if last_checkpoint(folder / "checkpoints") is None:
        shutil.rmtree(folder, ignore_errors=True)


def _evaluate_and_record(
    bench: RunContext,
    training_job: TrainingJob,
    prepared: Prepared,
    fitted: Fitted,
    dataset_id: int,
    number: int,
) -> EvaluationReport:
    recipe, artifact = training_job.recipe, fitted.artifact
    assert artifact is not None
    evaluation_report, kept = evaluate_artifact(bench, training_job, prepared, artifact)
    bench.registry.evaluations.record(
        recipe=recipe.name,
        base_digest=bench.engine.base.digest,
        dataset_id=dataset_id,
        split="test",
        results={**evaluation_report.to_json(), "gate": asdict(recipe.gate)},
        predictions=[prediction_record(prediction) for prediction in kept],
        run=number,
    )
    return evaluation_report


def _write_account(
    bench: RunContext,
    training_job: TrainingJob,
    prepared: Prepared,
    artifact: Artifact,
    number: int,
    report: Mapping[str, Any],
) -> None:
    """Write what lies outside of the identity: Croissant file, provenance and card."""
    dataset = training_job.dataset
    described = croissant_of(dataset, prepared.split, prepared.fingerprint)
    write_json(artifact.folder / CROISSANT, described)
    provenance = run_provenance(bench.registry, number, artifact, dataset=dataset, report=report)
    write_provenance(artifact.folder, provenance)
    card = render_card(artifact, provenance, training_job.recipe.name)
    (artifact.folder / CARD).write_text(card, encoding="utf-8")


def _start(
    bench: RunContext, training_job: TrainingJob, plugin: PluginInfo | None, dataset_id: int
) -> int:
    recipe, base = training_job.recipe, bench.engine.base
    plugin_id = None
    if plugin is not None:
        plugin_id = bench.registry.sources.record_plugin(
            distribution=plugin.distribution,
            version=plugin.version,
            api=plugin.api or 0,
            domain=plugin.domain,
        )
    return bench.registry.runs.start(
        recipe=recipe.name,
        base_digest=record_base(bench),
        dataset_id=dataset_id,
        plugin_id=plugin_id,
        seed=recipe.settings.seed,
        settings=asdict(recipe.settings),
        environment=environment(base.device, uses_bf16(recipe.settings.precision, base.device)),
        specification=specification(training_job, plugin),
    )


def _check_same_ground(run: RunRecord, prepared: Prepared, bench: RunContext) -> None:
    """A checkpoint goes on only on the base, rows and split that it began with."""
    begun = (run.base_digest, run.dataset_fingerprint, run.split_fingerprint)
    now = (bench.engine.base.digest, prepared.fingerprint, prepared.split.fingerprint)
    if begun != now:
        raise RefusedError(
            f"Run {run.number} can't go on: its base or its data are not the same any more.",
            f"Start anew with `trunkline train {run.recipe}`.",
        )


def _report(
    bench: RunContext, prepared: Prepared, fitted: Fitted, started: float, meter: EnergyMeter | None
) -> dict[str, Any]:
    base = bench.engine.base
    return {
        "data": prepared.report.to_json(),
        **fitted.to_json(),
        "train_seconds": round(time.monotonic() - started, 1),
        "compute": compute_report(
            parameters=base.info.parameters,
            tokens=fitted.stepped.tokens,
            device=base.device.type,
            meter=meter,
        ),
    }

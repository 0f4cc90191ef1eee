"""A training run: train a recipe, evaluate and publish the adapter, and record how it ended."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import CARD, CROISSANT, Artifact, write_json
from trunkline.adapters.card import render_card
from trunkline.adapters.provenance import run_provenance, write_provenance
from trunkline.adapters.store import AdapterStore
from trunkline.bases import Base
from trunkline.contracts import NoProgress, ProgressListener
from trunkline.data.croissant import croissant_of
from trunkline.data.prepare import Prepared, prepare
from trunkline.data.targets import target_text
from trunkline.errors import (
    DataError,
    Interrupted,
    RefusedError,
    TrainingError,
    TrunklineError,
    UsageError,
    one_line,
)
from trunkline.evaluation.baselines import fit_baselines
from trunkline.evaluation.report import (
    EvaluationReport,
    Prediction,
    evaluate,
    evaluate_calibration,
    predict_rows,
)
from trunkline.inference.image_engine import AnyEngine
from trunkline.redaction import redact_exception
from trunkline.refs import Ref
from trunkline.registry.records import PredictionRecord, RunRecord, VersionRecord
from trunkline.registry.registry import Registry
from trunkline.training.checkpoints import find_resume_point
from trunkline.training.distributed import (
    StepsTakenError,
    connect,
    is_first,
    require_one,
    share,
)
from trunkline.training.job import TrainingJob
from trunkline.training.model import check_targets, uses_bf16
from trunkline.training.proof import NoEffectError
from trunkline.training.run_info import (
    EnergyMeter,
    changed_environment,
    changed_specification,
    compute_report,
    environment,
    specification,
)
from trunkline.training.stopping import CHECKPOINTS, LOCK, forget_stop, stop_requests
from trunkline.training.together import (
    ALONE,
    Place,
    SharedProgress,
    check_together,
    train_together,
)
from trunkline.training.trainer import TrainerOutput, train_adapter
from trunkline.workspace import Workspace


@dataclass(frozen=True, slots=True)
class RunContext:
    """The parts of a workspace that a run uses, and the engine with the clean base.

    Attributes:
        report_to: trackers that receive the trainer's log: ``tensorboard``.
        place: among trainings that share the base.
        actor: who trains, for events; by default the system's user.
        on_run: called with the number of the run.
    """

    workspace: Workspace
    registry: Registry
    store: AdapterStore
    engine: AnyEngine
    listener: ProgressListener
    should_stop: Callable[[], bool]
    report_to: tuple[str, ...] = ()
    place: Place = ALONE
    actor: str | None = None
    on_run: Callable[[int], None] = lambda number: None

    @property
    def pad_id(self) -> int:
        """Id of the padding token; 0 for pictures."""
        base = self.engine.base
        return int(base.tokenizer.pad_token_id) if isinstance(base, Base) else 0

    def stage(self, text: str) -> None:
        """Report the start of a stage.

        Raises:
            Interrupted: ``should_stop`` returned true.
        """
        self.check_stop()
        self.listener.stage(text)

    def check_stop(self, _: int = 0) -> None:
        """Raise :class:`Interrupted` if ``should_stop`` returns true."""
        if self.should_stop():
            raise Interrupted("Stopped before the evaluation was complete.")


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished run with the version that it published and its evaluation.

    ``report`` holds the counts of rows, steps and tokens, the proof, and the compute used.
    """

    number: int
    version: VersionRecord
    evaluation_report: EvaluationReport
    report: dict[str, Any]


def train(context: RunContext, job: TrainingJob, resume: RunRecord | None = None) -> TrainingResult:
    """Train a recipe and publish the version, whatever the verdict.

    Raises:
        StepsTakenError: in a process that is not the first of several, after its last step.
        Interrupted: stopped by the user; the run can be resumed.
        TrunklineError: the run failed; it is recorded as failed, nothing is published.
    """
    recipe = job.recipe
    check_targets(context.engine.base, recipe.settings)
    context.listener.stage("reading data")
    prepared = prepare(job.dataset, recipe, job.transforms)
    connect(context.engine.base.device)
    if not is_first():
        _follow(context, job, prepared)
        raise StepsTakenError
    dataset_id = record_dataset(context, job, prepared)
    with ExitStack() as stack:
        if resume is None:
            number = _start(context, job, dataset_id)
            folder = context.workspace.run_path(number)
            stack.enter_context(_record_outcome(context, recipe.name, number, folder))
            stack.enter_context(_lock_folder(folder, number))
        else:
            _check_resumable(resume, prepared, context, job)
            number = resume.number
            folder = context.workspace.run_path(number)
            stack.enter_context(_lock_folder(folder, number))
            forget_stop(folder)
            context.registry.runs.resume(number, actor=context.actor)
            stack.enter_context(_record_outcome(context, recipe.name, number, folder))
        context.on_run(number)
        stopped = stop_requests(folder)
        should_stop = context.should_stop
        context = replace(context, should_stop=lambda: stopped() or should_stop())
        share((number, resume is not None))
        started = time.monotonic()
        meter = None if resume is not None else EnergyMeter()

        def log(step: int, values: Mapping[str, float]) -> None:
            if meter is not None:
                meter.read()
            context.registry.runs.log_metrics(number, step, values)

        output = train_adapter(
            job,
            prepared,
            context.engine,
            folder,
            listener=context.listener,
            log=log,
            should_stop=context.should_stop,
            resume=resume is not None,
            tensorboard=(
                context.workspace.root / "tensorboard" / f"run-{number}"
                if "tensorboard" in context.report_to
                else None
            ),
            place=context.place,
        )
        if output.artifact is None:
            raise Interrupted(
                f"Run {number} was stopped at step {output.steps} of {output.total_steps}."
            )
        report = _report(context, prepared, output, started, meter)
        evaluation_report = _evaluate_and_record(context, job, prepared, output, dataset_id, number)
        report["seconds"] = round(time.monotonic() - started, 1)
        _write_documents(context, job, prepared, output.artifact, number, report)
        context.listener.stage("publishing")
        version = context.store.publish(
            output.artifact.folder,
            Ref.parse(recipe.name),
            task=recipe.task,
            run=number,
            actor=context.actor,
        )
        context.registry.runs.finish(number, "finished", report=report, actor=context.actor)
    shutil.rmtree(folder, ignore_errors=True)
    return TrainingResult(number, version, evaluation_report, report)


def train_several(
    context: RunContext, jobs: Sequence[TrainingJob]
) -> list[TrainingResult | Exception]:
    """Train several recipes at once on one copy of the base, and publish each.

    Returns:
        Of each recipe its result, or the exception that ended its run; the others go on.

    Raises:
        UsageError: two are the same recipe, or settings keep them from sharing the base.
    """
    require_one()
    if pictured := next((job for job in jobs if job.dataset.modality == "image"), None):
        raise UsageError(
            f"{pictured.recipe.name} reads pictures, and only adapters for text are trained "
            "together.",
            f"Train it alone: `trunkline train {pictured.recipe.name}`.",
        )
    names = [job.recipe.name for job in jobs]
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(f"{name} is named {count} times.", "Name each recipe once.")
    check_together({job.recipe.name: job.settings for job in jobs}, context.engine.base.device)
    shared = SharedProgress(context.listener)

    def training(job: TrainingJob) -> Callable[[Place], TrainingResult]:
        listener = shared.of(job.recipe.name)
        return lambda place: train(replace(context, listener=listener, place=place), job)

    return train_together(names, [training(job) for job in jobs])


def _follow(context: RunContext, job: TrainingJob, prepared: Prepared) -> None:
    """Take part in the steps of the run that the first process has started."""
    number, resumes = share((0, False))
    train_adapter(
        job,
        prepared,
        context.engine,
        context.workspace.run_path(number),
        listener=NoProgress(),
        log=lambda step, values: None,
        should_stop=lambda: False,
        resume=resumes,
    )


@contextmanager
def _record_outcome(context: RunContext, recipe: str, number: int, folder: Path) -> Iterator[None]:
    """Record how the run ended if the block raises, and raise an error that says how to go on."""
    resume = f"trunkline train {recipe} --resume {number}"
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        message = str(stop) or f"Run {number} was stopped."
        context.registry.runs.finish(number, "interrupted", error=message, actor=context.actor)
        kept = _remove_unless_resumable(folder, context.place)
        command = f"trunkline train {recipe}" + (f" --resume {number}" if kept else "")
        raise Interrupted(
            message, f"Resume it with `{command}`." if kept else f"Train it again: `{command}`."
        ) from stop
    except TrunklineError as error:
        redact_exception(error)
        context.registry.runs.finish(number, "failed", error=error.message, actor=context.actor)
        remedy = _keep_finished_work(folder, error, context.place, resume)
        error.hint = " ".join(filter(None, (error.hint, remedy))) or None
        raise
    except Exception as error:
        redact_exception(error)
        reason = one_line(error, with_type=True)
        context.registry.runs.finish(number, "failed", error=reason, actor=context.actor)
        remedy = _keep_finished_work(folder, error, context.place, resume)
        hint = "`trunkline --debug train …` shows the traceback."
        raise TrainingError(
            f"Run {number} failed: {reason}.", f"{hint} {remedy}" if remedy else hint
        ) from error


def _keep_finished_work(folder: Path, error: Exception, place: Place, resume: str) -> str | None:
    """Remove the folder of a failed run unless it can be resumed; returns how to go on.

    Where steps are missing, a training with bad data or a loss that is not finite would only fail
    in the same way. Finished steps are kept, since evaluating and publishing may succeed later.
    """
    checkpoint = find_resume_point(folder / CHECKPOINTS).checkpoint
    if checkpoint is not None and checkpoint.finished and not isinstance(error, NoEffectError):
        return (
            "All training steps are finished and kept: once the cause is removed, "
            f"`{resume}` evaluates and publishes without training again."
        )
    if checkpoint is None or place.others or isinstance(error, TrainingError | DataError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return f"The training is kept: `{resume}` continues after step {checkpoint.step}."


@contextmanager
def _lock_folder(folder: Path, number: int) -> Iterator[None]:
    """Lock the run's folder against other processes; a killed process releases the lock."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RefusedError(
            f"Run {number} is in use by another process.", "Wait for it, or stop it."
        ) from None
    except OSError as error:
        raise TrainingError(
            f"The run's folder {folder} can't be written: {error.strerror or error}.",
            "Free disk space, or grant write permission.",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _remove_unless_resumable(folder: Path, place: Place) -> bool:
    """Remove the folder of a run that can't be resumed; returns whether it can.

    Of trainings that shared the base only finished steps are kept: those that are missing would be
    computed in other batches, which changes the last digits of the weights.
    """
    checkpoint = find_resume_point(folder / CHECKPOINTS).checkpoint
    kept = checkpoint is not None and (checkpoint.finished or not place.others)
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)
    return kept


def _evaluate_and_record(
    context: RunContext,
    job: TrainingJob,
    prepared: Prepared,
    output: TrainerOutput,
    dataset_id: int,
    number: int,
) -> EvaluationReport:
    recipe, artifact = job.recipe, output.artifact
    assert artifact is not None
    report, predictions = evaluate_artifact(context, job, prepared, artifact)
    context.registry.evaluations.record(
        recipe=recipe.name,
        base_digest=context.engine.base.digest,
        dataset_id=dataset_id,
        split="test",
        results={**report.to_json(), "gate": asdict(recipe.gate)},
        predictions=[prediction_record(prediction) for prediction in predictions],
        run=number,
    )
    return report


def _write_documents(
    context: RunContext,
    job: TrainingJob,
    prepared: Prepared,
    artifact: Artifact,
    number: int,
    report: Mapping[str, Any],
) -> None:
    """Write the files outside the artifact's identity: Croissant file, provenance and card."""
    dataset = job.dataset
    croissant = croissant_of(dataset, prepared.split, prepared.fingerprint)
    write_json(artifact.folder / CROISSANT, croissant)
    provenance = run_provenance(context.registry, number, artifact, dataset=dataset, report=report)
    write_provenance(artifact.folder, provenance)
    card = render_card(artifact, provenance, job.recipe.name)
    (artifact.folder / CARD).write_text(card, encoding="utf-8")


def _start(context: RunContext, job: TrainingJob, dataset_id: int) -> int:
    recipe, base, plugin = job.recipe, context.engine.base, job.plugin
    plugin_id = None
    if plugin is not None:
        plugin_id = context.registry.sources.record_plugin(
            distribution=plugin.distribution,
            version=plugin.version,
            api=plugin.api or 0,
            domain=plugin.domain,
        )
    return context.registry.runs.start(
        recipe=recipe.name,
        base_digest=record_base(context),
        dataset_id=dataset_id,
        plugin_id=plugin_id,
        seed=recipe.settings.seed,
        settings=asdict(recipe.settings),
        environment=environment(
            base.device,
            uses_bf16(recipe.settings.precision, base.device, job.dataset.modality),
            together=context.place.others,
            pictures=job.dataset.modality == "image",
        ),
        specification=specification(job),
        actor=context.actor,
    )


def _check_resumable(
    run: RunRecord,
    prepared: Prepared,
    context: RunContext,
    job: TrainingJob,
) -> None:
    """Refuse to resume a run that would end with another adapter than without the interruption.

    The base, the rows and what the recipe states must be the same; unless all steps are finished,
    also the code that trains and the environment.
    """
    before = (run.base_digest, run.dataset_fingerprint, run.split_fingerprint)
    now = (context.engine.base.digest, prepared.fingerprint, prepared.split.fingerprint)
    change = "its base or its data changed" if before != now else None
    checkpoint = find_resume_point(context.workspace.run_path(run.number) / CHECKPOINTS).checkpoint
    finished = checkpoint is not None and checkpoint.finished
    if change is None and not finished:
        base, pictures = context.engine.base, job.dataset.modality == "image"
        bf16 = uses_bf16(job.settings.precision, base.device, job.dataset.modality)
        now_here = environment(base.device, bf16, pictures=pictures)
        change = changed_environment(run.environment, now_here)
    if change is None and run.specification is not None:
        change = changed_specification(run.specification, specification(job), finished=finished)
    if change is not None:
        raise RefusedError(
            f"Run {run.number} can't be resumed: {change}.",
            f"Undo the change, or start a new run with `trunkline train {run.recipe}`.",
        )


def _report(
    context: RunContext,
    prepared: Prepared,
    output: TrainerOutput,
    started: float,
    meter: EnergyMeter | None,
) -> dict[str, Any]:
    base = context.engine.base
    return {
        "data": prepared.report.to_json(),
        **output.to_json(),
        "train_seconds": round(time.monotonic() - started, 1),
        "compute": compute_report(
            parameters=base.info.parameters,
            tokens=output.tokens_trained,
            device=base.device.type,
            meter=meter,
        ),
    }


# --------------------------------------------------------- shared with cross-validation


def evaluate_artifact(
    context: RunContext, job: TrainingJob, prepared: Prepared, artifact: Artifact
) -> tuple[EvaluationReport, list[Prediction]]:
    """Compare an artifact with its baselines on the test rows.

    Raises:
        Interrupted: the user stopped it.
    """
    recipe, split = job.recipe, prepared.split
    baselines = fit_baselines(job.baselines, recipe, split, context.engine.base, context.stage)
    context.stage("predicting the test rows")
    predicted = predict_rows(
        context.engine, artifact, recipe.name, split.test, on_done=context.check_stop
    )
    context.stage("evaluating")
    report, predictions = evaluate(
        split.test,
        predicted.values,
        baselines,
        job.metrics,
        prepared.labels,
        predicted.confidences,
    )
    calibration = evaluate_calibration(artifact, split.test, predicted)
    return replace(report, calibration=calibration), predictions


def record_base(context: RunContext) -> str:
    """Record the base; returns its digest."""
    info = context.engine.base.info
    context.registry.sources.record_base(
        digest=info.digest,
        name=info.name,
        source=info.source,
        architecture=info.architecture,
        parameters=info.parameters,
        dtype=info.dtype,
        modality="text" if isinstance(context.engine.base, Base) else "image",
    )
    return info.digest


def record_dataset(context: RunContext, job: TrainingJob, prepared: Prepared) -> int:
    """Record the dataset with its split; returns its id."""
    dataset = job.dataset
    return context.registry.sources.record_dataset(
        name=dataset.name,
        fingerprint=prepared.fingerprint,
        split_fingerprint=prepared.split.fingerprint,
        rows=prepared.report.kept,
        license=dataset.license,
        source=dataset.source,
        counts=prepared.report.to_json(),
    )


def prediction_record(prediction: Prediction) -> PredictionRecord:
    """A prediction in the form of the registry."""
    baseline = prediction.baseline_prediction
    return PredictionRecord(
        row_id=prediction.row_id,
        group=prediction.group,
        target=target_text(prediction.target),
        prediction=target_text(prediction.prediction),
        confidence=prediction.confidence,
        baseline_prediction=None if baseline is None else target_text(baseline),
    )

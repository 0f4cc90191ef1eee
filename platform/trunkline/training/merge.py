"""Merge versions into one: PEFT combines the adapters, and the result is proved and published."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import (
    CARD,
    CONFIG,
    CROISSANT,
    WEIGHTS,
    Artifact,
    read_artifact,
    seal,
    write_json,
)
from trunkline.adapters.card import render_card
from trunkline.adapters.config import PREFIX
from trunkline.adapters.peft_targets import read_module_tree
from trunkline.adapters.provenance import (
    UNKNOWN,
    EvaluationSection,
    MergeParent,
    MergeSection,
    Provenance,
    VersionSection,
    version_provenance,
    write_provenance,
)
from trunkline.bases import Base
from trunkline.data.croissant import croissant_of
from trunkline.data.encode import encode_prompt
from trunkline.data.prepare import Prepared
from trunkline.errors import NotFoundError, RefusedError, RegistryError, UsageError, reason_of
from trunkline.evaluation.report import EvaluationReport, Prediction
from trunkline.files import read_json_object
from trunkline.refs import Ref
from trunkline.registry.records import VersionRecord
from trunkline.registry.tables import utc_now
from trunkline.tasks import (
    AnyTask,
    ClassificationTask,
    MultilabelTask,
    prompt_limit,
    task_from_json,
)
from trunkline.training.calibrate import calibrate, fit_threshold
from trunkline.training.cross_validation import prepare_version
from trunkline.training.export import PROBES
from trunkline.training.export_images import picture_reader, probe_rows
from trunkline.training.job import EncodedParts, TrainingJob, encode_parts
from trunkline.training.merge_weights import (
    MERGED,
    MergeOptions,
    check_mergeable,
    check_options,
    head_name,
    merge_adapters,
    merged_rank,
    modules_of,
    without_calibration,
)
from trunkline.training.proof import (
    SAMPLE,
    Proof,
    ProofInput,
    proof_input,
    prove,
    trained_outputs,
)
from trunkline.training.run import (
    RunContext,
    evaluate_artifact,
    prediction_record,
    record_base,
    record_dataset,
)


@dataclass(frozen=True, slots=True)
class MergeResult:
    """A published merge.

    Attributes:
        rank: of the merged adapter.
        proof: the artifact against PEFT's merged model and the base.
        evaluation_report: None if the parents do not share their rows and split.
        notes: remarks for the user, in sentences.
    """

    version: VersionRecord
    merge: MergeSection
    rank: int
    proof: Proof
    evaluation_report: EvaluationReport | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _SharedData:
    """The rows that all parents were trained on."""

    job: TrainingJob
    prepared: Prepared
    encoded: EncodedParts


def merge_versions(
    context: RunContext,
    versions: Sequence[VersionRecord],
    ref: Ref,
    options: MergeOptions,
    *,
    job: TrainingJob | None,
    actor: str | None = None,
) -> MergeResult:
    """Merge versions, prove the result, evaluate it if possible, and publish it under ``ref``.

    The same versions and options give the same digest, on the same machine.

    Args:
        context: its engine holds the base of the versions.
        versions: two or more; their order is that of the weights.
        ref: ``domain/name`` of the new version.
        options: see :class:`MergeOptions`.
        job: the recipe of the parents, if all were trained on the same rows and split.
        actor: recorded as the publisher; by default the system's user.

    Raises:
        UsageError: an option is out of range, or ``ref`` names a version.
        RefusedError: the versions can't be merged, or ``ref`` is for another task.
        TrainingError: the proof failed; nothing was published.
    """
    options = check_options(options, len(versions))
    context.stage("reading the adapters")
    artifacts = [context.store.fetch(version) for version in versions]
    check_mergeable(versions, artifacts)
    check_target(context, ref, versions[0].task)
    rank = merged_rank(options, artifacts)
    section = MergeSection(
        method=options.method,
        density=options.density,
        seed=options.seed,
        parents=tuple(
            MergeParent(ref=str(version.ref), digest=version.digest, weight=weight)
            for version, weight in zip(versions, options.weights, strict=True)
        ),
    )
    task = task_from_json(without_calibration(artifacts[0].manifest.task))
    shared = None if job is None else _shared_data(context, job, versions[0], task)
    notes = [] if shared else [_NOT_SHARED]
    with staging_folder() as name:
        folder = Path(name)
        context.stage("merging")
        model = merge_adapters(context.engine.base, artifacts, options, rank, task.head_size)
        task = _calibrated(context, model, task, artifacts, shared, notes)
        artifact = _write_artifact(
            context, folder / "artifact", model, task, artifacts, rank, shared
        )
        context.stage("proving the artifact")
        prompts = _prompts(context, artifact, task, shared)
        expected = trained_outputs(model, task, prompts, context.pad_id)
        del model
        proof = prove(expected, context.engine, artifact, task, prompts)
        report: EvaluationReport | None = None
        predictions: list[Prediction] = []
        if shared is not None:
            report, predictions = evaluate_artifact(context, shared.job, shared.prepared, artifact)
        _write_documents(context, artifact, ref, versions[0], section, shared, report)
        dataset_id = None
        if shared is not None:
            dataset_id = record_dataset(context, shared.job, shared.prepared)
        context.stage("publishing")
        version = context.store.publish(
            artifact.folder,
            ref,
            task=task.kind,
            run=None,
            base_digest=record_base(context),
            merge=section.model_dump(),
            dataset_id=dataset_id,
            actor=actor,
        )
    if shared is not None and report is not None:
        assert dataset_id is not None
        _record_evaluation(context, shared.job, report, predictions, dataset_id, version)
    return MergeResult(version, section, rank, proof, report, tuple(notes))


_NOT_SHARED = (
    "It was not evaluated: its parents were not trained on the same rows and split, so there are "
    "no rows that none of them has seen."
)


def _calibrated(
    context: RunContext,
    model: Any,
    task: AnyTask,
    artifacts: Sequence[Artifact],
    shared: _SharedData | None,
    notes: list[str],
) -> AnyTask:
    """The task, calibrated again if every parent was, or with a new threshold."""
    if isinstance(task, MultilabelTask):
        if shared is None:
            notes.append("Its threshold is 0.5, since there are no validation rows.")
            return task
        return fit_threshold(model, task, shared.encoded.validation, context.pad_id)
    if not isinstance(task, ClassificationTask):
        return task
    calibrated = ["calibration" in artifact.manifest.task for artifact in artifacts]
    if shared is None:
        if any(calibrated):
            notes.append("It is not calibrated, since there are no validation rows.")
        return task
    if not all(calibrated):
        return task
    context.stage("calibrating")
    return calibrate(model, task, shared.encoded.validation, context.pad_id)


# ------------------------------------------------------------------------------------- documents


def _write_artifact(
    context: RunContext,
    folder: Path,
    model: Any,
    task: AnyTask,
    artifacts: Sequence[Artifact],
    rank: int,
    shared: _SharedData | None,
) -> Artifact:
    """Write the merged adapter as an artifact and read it back."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir()
    first = artifacts[0].manifest
    state = get_peft_model_state_dict(model, adapter_name=MERGED, save_embedding_layers=False)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    config = dict(read_json_object(artifacts[0].folder / CONFIG))
    for key in ("use_rslora", "layers_to_transform", "init_lora_weights", "lora_dropout"):
        config.pop(key, None)
    if task.head_size is not None:
        head = head_name(artifacts[0])
        weight = model.base_model.model.get_submodule(head).weight
        tensors[f"{PREFIX}{head}.weight"] = weight.detach().float().cpu().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    targets = sorted({module for artifact in artifacts for module in modules_of(artifact)})
    if not first.reads_images:
        tree = read_module_tree(
            context.engine.base.info.folder, with_head=task.head_size is not None
        )
        targets = tree.targets(set(targets))
    write_json(
        folder / CONFIG,
        {**config, "r": rank, "lora_alpha": rank, "target_modules": targets},
    )
    unknown = {"dataset": UNKNOWN, "fingerprint": UNKNOWN, "split": UNKNOWN}
    manifest = seal(
        folder,
        base=first.base,
        task=task.to_json(),
        template=first.make_template(),
        max_length=first.max_length,
        preprocessing=first.make_preprocessing() if first.reads_images else None,
        data=first.data if shared else unknown,
    )
    return read_artifact(folder, manifest.digest)


def _write_documents(
    context: RunContext,
    artifact: Artifact,
    ref: Ref,
    parent: VersionRecord,
    section: MergeSection,
    shared: _SharedData | None,
    report: EvaluationReport | None,
) -> None:
    """Write the files outside the artifact's identity: Croissant file, provenance and card."""
    now = utc_now()
    origin = version_provenance(context.registry, parent, context.store.fetch(parent))
    evaluations: tuple[EvaluationSection, ...] = ()
    if shared is not None and report is not None:
        prepared = shared.prepared
        croissant = croissant_of(shared.job.dataset, prepared.split, prepared.fingerprint)
        write_json(artifact.folder / CROISSANT, croissant)
        results = _results(shared.job, report)
        evaluations = (EvaluationSection(split=split_name(context), results=results, created=now),)
    provenance = Provenance(
        version=VersionSection(
            adapter=ref.adapter, task=artifact.manifest.task["kind"], created=now
        ),
        base=origin.base,
        dataset=None if shared is None else origin.dataset,
        evaluations=evaluations,
        merge=section,
    )
    write_provenance(artifact.folder, provenance)
    card = render_card(artifact, provenance, ref.adapter)
    (artifact.folder / CARD).write_text(card, encoding="utf-8")


def _results(job: TrainingJob, report: EvaluationReport) -> dict[str, Any]:
    return {**report.to_json(), "gate": asdict(job.recipe.gate)}


def split_name(context: RunContext) -> str:
    """The split under which an evaluation on this base is recorded."""
    quantized = getattr(context.engine.base, "quantized", None)
    return f"test, base in {quantized}" if quantized else "test"


def _record_evaluation(
    context: RunContext,
    job: TrainingJob,
    report: EvaluationReport,
    predictions: Sequence[Prediction],
    dataset_id: int,
    version: VersionRecord,
) -> None:
    context.registry.evaluations.record(
        recipe=job.recipe.name,
        base_digest=context.engine.base.digest,
        dataset_id=dataset_id,
        split=split_name(context),
        results=_results(job, report),
        predictions=[prediction_record(prediction) for prediction in predictions],
        version=version.ref,
    )


# ---------------------------------------------------------------------------------------- checks


def check_target(context: RunContext, ref: Ref, kind: str) -> None:
    """Refuse a ref with a selector, or an adapter for another task."""
    if ref.selector is not None:
        raise UsageError(
            f"{str(ref)!r} names a version, but a merge publishes the next one.",
            f"Use {ref.adapter}.",
        )
    try:
        adapter = context.registry.adapters.get(ref.domain, ref.name)
    except NotFoundError:
        return
    if adapter.task != kind:
        raise RefusedError(
            f"The adapter '{ref}' is for {adapter.task}, not for {kind}.", "Use another --name."
        )


def _shared_data(
    context: RunContext, job: TrainingJob, version: VersionRecord, task: AnyTask
) -> _SharedData:
    context.stage("reading data")
    job, prepared, _ = prepare_version(context.store, job, version)
    context.stage("encoding")
    return _SharedData(job, prepared, encode_parts(job, prepared, task, context.engine))


def _prompts(
    context: RunContext, artifact: Artifact, task: AnyTask, shared: _SharedData | None
) -> list[ProofInput]:
    """Inputs for the proof: of test rows, or fixed texts or random pictures."""
    if shared is not None:
        return [proof_input(example) for example in shared.encoded.test.examples[:SAMPLE]]
    base, manifest = context.engine.base, artifact.manifest
    if not isinstance(base, Base):
        steps = manifest.make_preprocessing()
        return [picture_reader(row, steps) for row in probe_rows()]
    limit = prompt_limit(task, min(manifest.max_length or base.info.context, base.info.context))
    template = manifest.make_template()
    return [encode_prompt(text, template, base.tokenizer, limit).ids for text in PROBES]


def staging_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder; raises :class:`RegistryError` if there can't be one."""
    try:
        return tempfile.TemporaryDirectory(prefix="trunkline-merge-")
    except OSError as error:
        raise RegistryError(
            f"The adapters can't be copied: {reason_of(error)}.",
            "Free space in the folder for temporary files, or set TMPDIR to another one.",
        ) from error

"""Fuse a text and an image adapter: fit on validation rows, evaluate on test rows, publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import CARD, CROISSANT, Artifact, seal_fusion, write_json
from trunkline.adapters.card import render_card
from trunkline.adapters.fusion import FUSED, FusedParent, Fusion, pair_digest
from trunkline.adapters.provenance import (
    BaseSection,
    EvaluationSection,
    MergeSection,
    Provenance,
    VersionSection,
    fusion_section,
    version_provenance,
    write_provenance,
)
from trunkline.contracts import FUSION_METHODS, FusionMethod, Row, Scored
from trunkline.data.croissant import croissant_of
from trunkline.data.prepare import Prepared
from trunkline.errors import RefusedError, UsageError
from trunkline.evaluation.baselines import Baseline, fit_baselines
from trunkline.evaluation.calibration import MIN_ROWS, abstention_thresholds
from trunkline.evaluation.intervals import Estimate, paired_difference, verdict
from trunkline.evaluation.report import (
    EvaluationReport,
    Prediction,
    RowPredictions,
    answer_rows,
    evaluate,
    evaluate_calibration,
)
from trunkline.inference.fusion import LEAST_PROBABILITY, fuse_probabilities, stacked_features
from trunkline.refs import Ref
from trunkline.registry.records import VersionRecord
from trunkline.registry.tables import utc_now
from trunkline.tasks import ClassificationTask
from trunkline.tasks.classification import Calibration
from trunkline.training.cross_validation import prepare_version
from trunkline.training.job import TrainingJob
from trunkline.training.merge import check_target, split_name, staging_folder
from trunkline.training.run import RunContext, prediction_record, record_dataset

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the L2 penalty of stacking; cross-validation chooses one."""

_FOLDS = 5
_WAY_OUT = "Train both on one file or folder: `trunkline train --data PATH --fuse text+image`."


@dataclass(frozen=True, slots=True)
class Half:
    """A parent, the context whose engine holds its base, and the job that trained it."""

    context: RunContext
    version: VersionRecord
    job: TrainingJob


@dataclass(frozen=True, slots=True)
class FusionResult:
    """A published fusion.

    Attributes:
        better_parent: the ref of the parent with the better score on the test rows.
        difference: deciding metric of the fusion minus that of the better parent, paired.
        verdict: of that difference: ``beats``, ``ties`` or ``loses``.
        notes: remarks for the user, in sentences.
    """

    version: VersionRecord
    fusion: Fusion
    evaluation_report: EvaluationReport
    better_parent: str
    difference: Estimate
    verdict: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FittedFusion:
    """The numbers of a fusion.

    Attributes:
        numbers: fields of :class:`~trunkline.adapters.fusion.Fusion`.
        held_out: probabilities of the validation rows ``[rows, labels]``, of stacking from folds
            that were not fitted on them.
        detail: what was chosen, in a sentence.
    """

    numbers: dict[str, Any]
    held_out: Any
    detail: str


@dataclass(frozen=True, slots=True)
class _Parent:
    """A parent with its own rows, which are those of the other in the same order."""

    half: Half
    job: TrainingJob
    prepared: Prepared
    artifact: Artifact

    @property
    def name(self) -> str:
        return str(self.half.version.ref)

    def predict(self, rows: Sequence[Row], order: Sequence[str]) -> RowPredictions:
        """The predictions of rows, in the order of these ids."""
        by_id = {row.id: row for row in rows}
        context = self.half.context
        chosen = [by_id[id] for id in order]
        answers = answer_rows(context.engine, self.artifact, self.name, chosen, context.check_stop)
        return RowPredictions.of(answers)


# ------------------------------------------------------------------------------------------ fit


def fit_fusion(
    method: FusionMethod, text: Any, image: Any, targets: Sequence[int], groups: Sequence[str]
) -> FittedFusion:
    """Fit a fusion to the parents' probabilities of validation rows.

    ``average`` takes the weight of least log loss among 0, 0.01, …, 1. ``stacked`` is multinomial
    logistic regression on both log probabilities, whose L2 penalty has the least log loss over
    folds of the groups.

    Args:
        text, image: probabilities ``[rows, labels]``.
        targets: label indices.
        groups: of the rows; a group is in one fold.

    Raises:
        RefusedError: ``stacked``, and there are too few rows.
    """
    import numpy as np

    first, second = np.asarray(text, dtype=float), np.asarray(image, dtype=float)
    if method == "stacked":
        return _fit_stacked(stacked_features(first, second), np.asarray(targets), groups)
    rows = np.arange(len(targets))
    right, other = first[rows, targets], second[rows, targets]
    weights = [step / 100 for step in range(101)]
    losses = [
        -float(np.log(np.maximum(one * right + (1 - one) * other, 1e-300)).mean())
        for one in weights
    ]
    weight, loss = min(
        zip(weights, losses, strict=True), key=lambda pair: (round(pair[1], 12), abs(pair[0] - 0.5))
    )
    return FittedFusion(
        {"weight": weight},
        weight * first + (1 - weight) * second,
        f"The text counts {weight:.0%} and the picture {1 - weight:.0%}, by the log loss on "
        f"{len(rows):,} validation rows: {loss:.3f}; text alone {losses[-1]:.3f}, picture alone "
        f"{losses[0]:.3f}.",
    )


def _fit_stacked(features: Any, targets: Any, groups: Sequence[str]) -> FittedFusion:
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    labels = features.shape[1] // 2
    folds = min(_FOLDS, len(set(groups)))
    if folds < 2 or len(set(targets.tolist())) < labels:
        raise RefusedError(
            f"The validation rows have {len(set(targets.tolist()))} of {labels} labels in "
            f"{len(set(groups))} groups, which is too few to stack.",
            "Use --method average, which fits one number, or add rows.",
        )

    def fit(rows: Any, strength: float) -> Any:
        return LogisticRegression(C=strength, max_iter=2000).fit(features[rows], targets[rows])

    def held_out(strength: float) -> Any:
        probabilities = np.full((len(targets), labels), LEAST_PROBABILITY)
        splitter = GroupKFold(n_splits=folds)
        for train, test in splitter.split(features, targets, groups):
            seen = np.unique(targets[train])
            if len(seen) == 1:
                probabilities[np.ix_(test, seen)] = 1.0
                continue
            model = fit(train, strength)
            probabilities[np.ix_(test, seen)] = model.predict_proba(features[test])
        return np.maximum(probabilities, LEAST_PROBABILITY)

    rows = np.arange(len(targets))
    tried = {strength: held_out(strength) for strength in STRENGTHS}
    losses = {
        strength: -float(np.log(one[rows, targets]).mean()) for strength, one in tried.items()
    }
    best = min(STRENGTHS, key=lambda strength: losses[strength])
    model = fit(rows, best)
    coefficients, intercepts = model.coef_, model.intercept_
    if labels == 2:  # one row of differences
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    return FittedFusion(
        {"coefficients": coefficients.tolist(), "intercepts": intercepts.tolist()},
        tried[best],
        f"Stacked with C={best:g}, by the log loss over {folds} folds of {len(rows):,} validation "
        f"rows: {losses[best]:.3f}.",
    )


# ---------------------------------------------------------------------------------------- publish


def ordered(one: VersionRecord, other: VersionRecord) -> tuple[VersionRecord, VersionRecord]:
    """The version that reads text, then the one that reads pictures.

    Raises:
        RefusedError: there are not one of each, or they are no classifications.
    """
    by_modality = {one.modality: one, other.modality: other}
    if set(by_modality) != {"text", "image"}:
        raise RefusedError(
            f"{one.ref} and {other.ref} don't read one a text and the other a picture.",
            "Name an adapter for text and one for pictures; `trunkline adapters list` shows what "
            "each reads.",
        )
    for version in by_modality.values():
        if version.task != "classification":
            raise RefusedError(
                f"{version.ref} is for {version.task}, and only classifications are fused.",
                "Train it with --label.",
            )
    return by_modality["text"], by_modality["image"]


def fuse_versions(
    text: Half, image: Half, ref: Ref, method: FusionMethod, *, actor: str | None = None
) -> FusionResult:
    """Fit the fusion of two versions, evaluate it beside them, and publish it under ``ref``.

    Args:
        text, image: from :func:`ordered`.
        ref: ``domain/name`` of the new version.
        method: how the probabilities are combined.
        actor: recorded as the publisher; by default the system's user.

    Raises:
        UsageError: there is no such method, or ``ref`` names a version.
        RefusedError: they have other labels, or were trained on other rows or another split.
    """
    if method not in FUSION_METHODS:
        raise UsageError(
            f"There is no method {method!r} of a fusion.", f"Use {' or '.join(FUSION_METHODS)}."
        )
    context = text.context
    check_target(context, ref, "classification")
    parents = _read_parents(text, image)
    labels = parents[0].prepared.labels
    context.stage("predicting the validation rows")
    rows = parents[0].prepared.split.validation
    first, second = (one.probabilities for one in _predictions(parents, "validation"))
    targets = [labels.index(str(row.target)) for row in rows]
    context.stage("fitting the fusion")
    fitted = fit_fusion(method, first, second, targets, [row.group for row in rows])
    notes = [fitted.detail]
    if fitted.numbers.get("weight") in (0.0, 1.0):
        unused = "picture" if fitted.numbers["weight"] else "text"
        notes.append(f"The {unused} has no weight, so the answers are those of the other alone.")
    task = ClassificationTask(labels, _calibration(parents, fitted, targets, notes))
    fusion = Fusion(
        method=method,
        text=FusedParent(ref=parents[0].name, digest=parents[0].artifact.digest),
        image=FusedParent(ref=parents[1].name, digest=parents[1].artifact.digest),
        **fitted.numbers,
    )
    base = _record_base(text, image)
    with staging_folder() as name:
        artifact = seal_fusion(
            Path(name),
            fusion,
            base={"name": base.name, "digest": base.digest},
            task=task.to_json(),
            text=parents[0].artifact.manifest,
        )
        report, predictions, alone = _evaluate(parents, artifact)
        section = fusion_section(fusion)
        _write_documents(parents, artifact, ref, base, section, report)
        dataset_id = record_dataset(context, parents[0].job, parents[0].prepared)
        context.stage("publishing")
        version = context.store.publish(
            artifact.folder,
            ref,
            task=task.kind,
            run=None,
            base_digest=base.digest,
            merge=section.model_dump(),
            dataset_id=dataset_id,
            actor=actor,
        )
    _record_evaluation(parents[0], base.digest, dataset_id, version, report, predictions)
    better, difference, outcome = _against_better(parents[0], report, predictions, alone)
    return FusionResult(version, fusion, report, better, difference, outcome, tuple(notes))


def evaluate_fused(text: Half, image: Half, version: VersionRecord) -> EvaluationReport:
    """Evaluate a published fusion on its test rows again, and record it.

    Raises:
        RefusedError: the data changed since the training, so its test rows may have been seen.
    """
    parents = _read_parents(text, image)
    artifact = text.context.store.fetch(version)
    report, predictions, _ = _evaluate(parents, artifact)
    dataset_id = record_dataset(text.context, parents[0].job, parents[0].prepared)
    digest = version.base_digest
    _record_evaluation(parents[0], digest, dataset_id, version, report, predictions)
    return report


def _read_parents(text: Half, image: Half) -> tuple[_Parent, _Parent]:
    """Both parents with their rows, which must be the same.

    Raises:
        RefusedError: they have other labels, or were trained on other rows or another split.
    """
    for half in (text, image):
        if half.version.dataset is None:
            raise RefusedError(
                f"{half.version.ref} came without a dataset, so there are no rows to fit on.",
                _WAY_OUT,
            )
    first, second = text.version, image.version
    if first.dataset_fingerprint != second.dataset_fingerprint:
        raise RefusedError(
            f"{first.ref} and {second.ref} were trained on different rows, so none has a text and "
            "a picture that neither has seen.",
            _WAY_OUT,
        )
    if first.split_fingerprint != second.split_fingerprint:
        raise RefusedError(
            f"{first.ref} and {second.ref} were trained on different splits of the rows, so one "
            "may have seen the test rows of the other.",
            _WAY_OUT,
        )
    text.context.stage("reading data")
    parents = []
    for half in (text, image):
        job, prepared, artifact = prepare_version(half.context.store, half.job, half.version)
        parents.append(_Parent(half, job, prepared, artifact))
    labels = [tuple(parent.artifact.manifest.task["labels"]) for parent in parents]
    if len({*labels, parents[0].prepared.labels}) > 1:
        differing = sorted(set(labels[0]) ^ set(labels[1])) or ["their order"]
        raise RefusedError(
            f"{first.ref} and {second.ref} have different labels: {', '.join(differing[:5])}.",
            _WAY_OUT,
        )
    return parents[0], parents[1]


def _predictions(parents: Sequence[_Parent], part: str) -> list[RowPredictions]:
    """Both parents' predictions of the validation or test rows, in the order of the first's."""
    order = [row.id for row in getattr(parents[0].prepared.split, part)]
    return [one.predict(getattr(one.prepared.split, part), order) for one in parents]


def _calibration(
    parents: Sequence[_Parent], fitted: FittedFusion, targets: Sequence[int], notes: list[str]
) -> Calibration | None:
    """The thresholds of abstention, if both parents are calibrated and there are enough rows."""
    calibrated = all("calibration" in one.artifact.manifest.task for one in parents)
    if not calibrated or len(targets) < MIN_ROWS:
        notes.append(
            "It has no thresholds for --abstain, which need calibrated parents and "
            f"{MIN_ROWS} validation rows."
        )
        return None
    right = fitted.held_out.argmax(-1) == targets
    return Calibration(1.0, abstention_thresholds(fitted.held_out.max(-1), right))


def _evaluate(
    parents: tuple[_Parent, _Parent], artifact: Artifact
) -> tuple[EvaluationReport, list[Prediction], list[Baseline]]:
    """Score a fusion on the test rows beside the baselines of both halves and both parents alone.

    Returns:
        The report, whose baselines include the parents, the predictions, and the parents alone.
    """
    manifest = artifact.manifest
    assert manifest.fusion is not None
    text = parents[0]
    context, split = text.half.context, text.prepared.split
    baselines: dict[str, Baseline] = {}
    for one in parents:
        engine = one.half.context.engine
        for fitted in fit_baselines(
            one.job.baselines, one.job.recipe, one.prepared.split, engine.base, context.stage
        ):
            baselines.setdefault(fitted.name, fitted)
    context.stage("predicting the test rows")
    predicted = _predictions(parents, "test")
    alone = [
        Baseline(one.name, result.values, f"the {half} alone")
        for one, result, half in zip(parents, predicted, ("text", "picture"), strict=True)
    ]
    labels = text.prepared.labels
    table = fuse_probabilities(manifest.fusion, *(one.probabilities for one in predicted))
    values = [labels[index] for index in table.argmax(-1).tolist()]
    fused = RowPredictions(list(values), table.max(-1).tolist(), table.tolist())
    context.stage("evaluating")
    report, predictions = evaluate(
        split.test,
        fused.values,
        [*baselines.values(), *alone],
        text.job.metrics,
        labels,
        fused.confidences,
    )
    calibration = evaluate_calibration(artifact, split.test, fused)
    return replace(report, calibration=calibration), predictions, alone


def _against_better(
    text: _Parent,
    report: EvaluationReport,
    predictions: Sequence[Prediction],
    alone: Sequence[Baseline],
) -> tuple[str, Estimate, str]:
    """The better parent, the paired difference to it, and the verdict."""
    metric, sign = text.job.deciding_metric, 1 if report.higher_is_better else -1
    better = max(alone, key=lambda one: sign * report.baselines[one.name][metric.name].value)
    scored = Scored(
        targets=[one.target for one in predictions],
        predictions=[one.prediction for one in predictions],
        labels=text.prepared.labels,
    )
    groups = [one.group for one in predictions]
    difference = paired_difference(metric, scored, better.predictions, groups)
    return better.name, difference, verdict(metric, difference, report.groups)


def _record_base(text: Half, image: Half) -> BaseSection:
    """Record the pair of bases; returns its section of the provenance."""
    one, other = text.context.engine.base.info, image.context.engine.base.info
    section = BaseSection(
        digest=pair_digest(one.digest, other.digest),
        name=f"{one.name}+{other.name}",
        source=f"{one.source}; {other.source}",
        architecture=f"{one.architecture}+{other.architecture}",
        parameters=one.parameters + other.parameters,
        dtype=one.dtype if one.dtype == other.dtype else f"{one.dtype}+{other.dtype}",
        modality=FUSED,
    )
    text.context.registry.sources.record_base(**section.model_dump())
    return section


def _write_documents(
    parents: tuple[_Parent, _Parent],
    artifact: Artifact,
    ref: Ref,
    base: BaseSection,
    section: MergeSection,
    report: EvaluationReport,
) -> None:
    """Write the files outside the artifact's identity: Croissant file, provenance and card."""
    text = parents[0]
    context, prepared = text.half.context, text.prepared
    croissant = croissant_of(text.job.dataset, prepared.split, prepared.fingerprint)
    write_json(artifact.folder / CROISSANT, croissant)
    now = utc_now()
    origin = version_provenance(context.registry, text.half.version, text.artifact)
    evaluation = EvaluationSection(
        split=split_name(context), results=_results(text.job, report), created=now
    )
    provenance = Provenance(
        version=VersionSection(adapter=ref.adapter, task="classification", created=now),
        base=base,
        dataset=origin.dataset,
        evaluations=(evaluation,),
        merge=section,
    )
    write_provenance(artifact.folder, provenance)
    card = render_card(artifact, provenance, ref.adapter)
    (artifact.folder / CARD).write_text(card, encoding="utf-8")


def _results(job: TrainingJob, report: EvaluationReport) -> dict[str, Any]:
    return {**report.to_json(), "gate": asdict(job.recipe.gate)}


def _record_evaluation(
    text: _Parent,
    base_digest: str,
    dataset_id: int,
    version: VersionRecord,
    report: EvaluationReport,
    predictions: Sequence[Prediction],
) -> None:
    context = text.half.context
    context.registry.evaluations.record(
        recipe=text.job.recipe.name,
        base_digest=base_digest,
        dataset_id=dataset_id,
        split=split_name(context),
        results=_results(text.job, report),
        predictions=[prediction_record(prediction) for prediction in predictions],
        version=version.ref,
    )

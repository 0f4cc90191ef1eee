"""The model card of a version: Markdown with a metadata block for the Hugging Face Hub.

Only people can say what an adapter is intended for, under which license it is, and whom to
contact. The card marks these as NOT PROVIDED instead of guessing, and ignores a card that an
imported adapter came with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trunkline.adapters.artifact import CONFIG, CROISSANT, Artifact, Manifest
from trunkline.adapters.card_usage import code, escape, usage
from trunkline.adapters.provenance import UNKNOWN, EvaluationSection, Provenance
from trunkline.files import read_json_object

NOT_PROVIDED = "NOT PROVIDED"
MIN_SLICE_ROWS = 30
"""The score of a slice with fewer rows is unreliable."""

_MAX_SLICES = 15
_PIPELINES = {
    "classification": "text-classification",
    "multilabel": "text-classification",
    "generation": "text-generation",
    "tagging": "token-classification",
    "ranking": "text-ranking",
}


def render_card(artifact: Artifact, provenance: Provenance, adapter: str) -> str:
    """The model card of an artifact.

    Args:
        artifact: its verified files.
        provenance: where it comes from.
        adapter: ``domain/name``, with the version's number if it is known.
    """
    manifest = artifact.manifest
    config = {} if manifest.fusion is not None else read_json_object(artifact.folder / CONFIG)
    croissant = (artifact.folder / CROISSANT).exists()
    return "\n".join(
        [
            f"---\n{_metadata(adapter, manifest, provenance)}\n---",
            f"# {adapter}",
            "",
            *_summary(manifest, provenance),
            "",
            "## Intended use",
            f"- uses, users, and what it is not for: {NOT_PROVIDED}",
            "",
            "## Data",
            *_data(provenance, croissant),
            "",
            "## Training",
            *_training(config, provenance),
            "",
            "## Evaluation",
            *_evaluations(provenance),
            "",
            "## Limits",
            *_limits(manifest, provenance),
            "",
            "## Use",
            *usage(manifest),
            "",
            *_origin(provenance),
            "## License, authors, contact",
            f"- license of the adapter: {NOT_PROVIDED}",
            f"- license of the base: {NOT_PROVIDED}",
            f"- authors, contact, how to cite: {NOT_PROVIDED}",
            "",
        ]
    )


# ------------------------------------------------------------------------------------- sections


def _metadata(adapter: str, manifest: Manifest, provenance: Provenance) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    kind = manifest.task["kind"]
    reads = manifest.reads
    pipeline = _PIPELINES.get(kind) if reads == "text" else f"{reads.replace('+', '-')}-{kind}"
    dataset = provenance.dataset
    tags = ["trunkline", kind] if manifest.fusion else ["lora", "trunkline", kind]
    if provenance.imported is not None:
        tags.append("imported")
    results = [
        EvalResult(
            task_type=pipeline or f"{reads}-{kind}",
            dataset_type=dataset.name,
            dataset_name=dataset.name,
            dataset_split=evaluation.split,
            dataset_revision=dataset.fingerprint,
            metric_type=metric,
            metric_name=metric,
            metric_value=score["value"],
            metric_args={"interval_95": [score.get("low"), score.get("high")]},
        )
        for evaluation in _newest(provenance.evaluations)
        for metric, score in (evaluation.results.get("scores") or {}).items()
        if dataset is not None and score.get("value") is not None
    ]
    return ModelCardData(
        base_model=manifest.base["name"],
        library_name="trunkline" if manifest.fusion else "peft",
        datasets=None if dataset is None else [dataset.name],
        pipeline_tag=pipeline,
        tags=tags,
        model_name=adapter if results else None,
        eval_results=results or None,
    ).to_yaml()


def _summary(manifest: Manifest, provenance: Provenance) -> list[str]:
    base = provenance.base
    description = _specification(provenance).get("description")
    about = []
    if base.parameters:
        about.append(f"{base.parameters:,} parameters")
    about += [escape(text) for text in (base.architecture, base.dtype) if text != UNKNOWN]
    if base.source != UNKNOWN:
        about.append(f"from {escape(base.source)}")
    lines = []
    if isinstance(description, str) and description:
        lines += [f"{escape(description)}.", ""]
    if provenance.imported is not None:
        lines += ["Trained elsewhere and imported; unknown details are NOT PROVIDED.", ""]
    adapter = f"A LoRA adapter for {manifest.task['kind']}{' of pictures' * manifest.reads_images}"
    if manifest.fusion is not None:
        adapter = f"A fusion of two adapters for {manifest.task['kind']}, of a text and a picture"
    return [
        *lines,
        f"{adapter}, `{manifest.digest}`.",
        "",
        f"- base: {code(manifest.base['name'])}" + (f" ({', '.join(about)})" if about else ""),
        f"- sha256 of the base: `{escape(manifest.base['digest'])}`; the outputs are meaningless "
        "on any other base",
    ]


def _data(provenance: Provenance, croissant: bool) -> list[str]:
    dataset = provenance.dataset
    if dataset is None:
        return [NOT_PROVIDED]
    parts, dropped = dataset.counts.get("parts"), dataset.counts.get("dropped")
    given = dataset.counts.get("given_split") is True
    transforms = _specification(provenance).get("transforms")
    lines = [
        f"- {code(dataset.name)}: {escape(dataset.description or NOT_PROVIDED)}",
        f"- source: {_recorded(dataset.source)}; license: {_recorded(dataset.license)}",
        *([f"- **{escape(dataset.restrictions)}**"] if dataset.restrictions else ()),
        ("- split given by the dataset, by group: " if given else "- split by group: ")
        + escape(dataset.grouping or NOT_PROVIDED),
        f"- rows: {dataset.rows:,}"
        + (f"; {code(parts)}" if parts else "")
        + (f"; dropped: {code(dropped)}" if dropped else ""),
        *(
            f"- transform {code(step.get('name'))} ({escape(step.get('stage'))}), sha256 of "
            f"its code {code(step.get('code'))}"
            for step in map(_mapping, transforms if isinstance(transforms, list) else ())
        ),
        f"- sha256 of the rows: `{escape(dataset.fingerprint)}`; of the split: "
        f"`{escape(dataset.split_fingerprint)}`",
    ]
    if croissant:
        lines.append(f"- machine-readable description: [{CROISSANT}]({CROISSANT}) (Croissant 1.0)")
    return [*lines, f"- personal or sensitive content, consent: {NOT_PROVIDED}"]


def _training(config: Mapping[str, Any], provenance: Provenance) -> list[str]:
    if (merge := provenance.merge) is not None and not config:
        lines = [f"- not trained: {merge.text}; fitted on the validation rows"]
        shares = merge.method == "average"
        return lines + [
            f"- parent {code(parent.ref)}, "
            + (f"weight {parent.weight:g}, " if shares else "")
            + f"`{parent.digest}`"
            for parent in merge.parents
        ]
    if not config:
        return [NOT_PROVIDED]
    targets = config.get("target_modules")
    modules = ", ".join(sorted(targets)) if isinstance(targets, list) else str(targets)
    lora = f"- LoRA: rank {config.get('r')}, alpha {config.get('lora_alpha'):g}"
    lora += ", rank-stabilized" if config.get("use_rslora") else ""
    lora += ", with magnitudes (DoRA)" if config.get("use_dora") else ""
    lines = [f"{lora}, on {escape(modules)}"]
    run = provenance.run
    if merge is not None:
        parents = [
            f"- parent {code(parent.ref)}, weight {parent.weight:g}, `{parent.digest}`"
            for parent in merge.parents
        ]
        return [*lines, f"- not trained, but merged: {merge.text}", *parents]
    if run is None:
        return [*lines, f"- everything else: {NOT_PROVIDED}"]
    specification, report = _specification(provenance), run.report or {}
    environment = run.environment
    if plugin := run.plugin:
        source = _mapping(specification.get("plugin"))
        commit = source.get("commit")
        at = f", commit `{escape(commit)}`" if commit else ", commit unknown"
        changed = " with uncommitted changes" if source.get("changed") else ""
        lines.append(
            f"- plugin: {escape(plugin.distribution)} {escape(plugin.version)}{at}{changed}"
        )
    lines.append(f"- run {run.number}, started {run.started:%Y-%m-%d %H:%M} UTC")
    if loss := specification.get("loss"):
        options = _mapping(_mapping(loss).get("options"))
        shown = f", {code(options)}" if options else ""
        lines.append(f"- loss: {code(_mapping(loss).get('name'))}{shown}")
    lines.append(f"- settings: {code(run.settings)}")
    if steps := report.get("steps"):
        best = f", best after {escape(report['best_step'])}" if "best_step" in report else ""
        amount = f"{escape(report.get('tokens_trained'))} tokens"
        if (pictures := report.get("pictures_trained")) is not None:
            amount = f"{escape(pictures)} pictures"
        lines.append(f"- {escape(steps)} optimizer steps{best}; {amount}")
    device = [environment.get("device_name"), environment.get("precision")]
    seconds = _number(report.get("train_seconds"))
    time = "" if seconds is None else f", {_duration(seconds)} of training"
    lines.append(f"- device: {', '.join(escape(text) for text in device if text)}{time}")
    lines.append(f"- packages: {code(environment.get('packages') or {})}")
    return [*lines, *_compute(_mapping(report.get("compute")))]


def _compute(compute: Mapping[str, Any]) -> list[str]:
    energy = _mapping(compute.get("energy"))
    flops, joules = _number(compute.get("flops")), _number(energy.get("joules"))
    if flops is None:
        return ["- compute and energy: not recorded"]
    lines = [f"- compute: {flops:.1e} operations, estimated: {escape(compute.get('how'))}"]
    if joules is not None:
        return [*lines, f"- energy: {joules:,.0f} J, {escape(energy.get('how'))}"]
    return [*lines, f"- energy: not measured: {escape(energy.get('how'))}"]


def _evaluations(provenance: Provenance) -> list[str]:
    lines: list[str] = []
    for evaluation in _newest(provenance.evaluations):
        lines += [*_evaluation(evaluation), ""]
    return lines[:-1] or [NOT_PROVIDED]


def _evaluation(evaluation: EvaluationSection) -> list[str]:
    results = evaluation.results
    scores: Mapping[str, Any] = results.get("scores") or {}
    baselines: Mapping[str, Any] = results.get("baselines") or {}
    rows, groups = results.get("rows", "?"), results.get("groups", "?")
    lines = [
        f"On {rows} held-out rows in {groups} groups (split {code(evaluation.split)}); intervals "
        "are 95 %, groups resampled.",
        "",
        *_table(
            ["", *map(escape, scores)],
            [
                ["this adapter", *(_estimate(score) for score in scores.values())],
                *(
                    [
                        f"baseline: {escape(name)}",
                        *(_estimate(estimates.get(metric)) for metric in scores),
                    ]
                    for name, estimates in baselines.items()
                ),
            ],
        ),
    ]
    if difference := results.get("difference"):
        lines += [
            "",
            f"{escape(results.get('metric'))} minus that of "
            f"{escape(results.get('best_baseline'))}: {_estimate(difference)}: "
            f"**{escape(results.get('verdict'))}** the baseline.",
        ]
    return [*lines, *_calibration(results.get("calibration")), *_slices(results)]


def _calibration(value: Any) -> list[str]:
    """How far the probabilities can be believed; empty for an uncalibrated version."""
    fitted = _mapping(value)
    if not fitted:
        return []
    return [
        "",
        f"Expected calibration error {_number_text(fitted.get('error'))}, without the temperature "
        f"of {_number_text(fitted.get('temperature'))} "
        f"{_number_text(fitted.get('error_before'))} (Guo et al. 2017).",
    ]


def _number_text(value: Any) -> str:
    number = _number(value)
    return "?" if number is None else f"{number:.3f}"


def _slices(results: Mapping[str, Any]) -> list[str]:
    sign = 1 if results.get("higher_is_better", True) else -1
    slices = sorted(results.get("slices") or (), key=lambda row: sign * row["score"])
    if not slices:
        return []
    more = len(slices) - _MAX_SLICES
    rest = f"; {more} more are in `provenance.json`" if more > 0 else ""
    return [
        "",
        f"{escape(results.get('metric'))} by slice, worst first{rest}:",
        "",
        *_table(
            ["slice", "rows", "score"],
            [
                [escape(f"{row['slice']} = {row['value']}"), str(row["rows"]), _3f(row["score"])]
                for row in slices[:_MAX_SLICES]
            ],
        ),
    ]


def _limits(manifest: Manifest, provenance: Provenance) -> list[str]:
    lines = []
    if manifest.max_length is not None:
        lines.append(
            f"- at most {manifest.max_length} tokens of prompt and answer (max_length); the end "
            "of a longer text is cut off, in training, evaluation and inference alike"
        )
    report = (provenance.run.report if provenance.run else None) or {}
    if lengths := _lengths(report.get("lengths")):
        lines.append(f"- lengths of the prompts with complete texts: {lengths}")
    if duplicates := _count(provenance, "near_duplicates"):
        lines.append(f"- {duplicates} test rows have a near-duplicate among the training rows")
    if conflicts := _count(provenance, "label_conflicts"):
        lines.append(f"- {conflicts} rows have the text of a row with another target")
    similar = provenance.dataset and provenance.dataset.counts.get("similar_labels")
    if isinstance(similar, list) and similar:
        lines.append(
            f"- {len(similar)} set(s) of labels differ only in case, white space or Unicode form: "
            f"{code(similar)}"
        )
    for evaluation in _newest(provenance.evaluations):
        verdict = evaluation.results.get("verdict")
        if verdict in ("ties", "loses"):
            lines.append(
                f"- it {verdict} against a simple baseline (split {code(evaluation.split)})"
            )
        slices = evaluation.results.get("slices") or ()
        small = sum(row["rows"] < MIN_SLICE_ROWS for row in slices)
        if small:
            lines.append(
                f"- {small} slices have fewer than {MIN_SLICE_ROWS} rows: their scores are "
                "unreliable"
            )
    if not provenance.evaluations:
        lines.append("- it was never evaluated here")
    if manifest.task["kind"] == "classification":
        lines.append("- it always answers with one of its labels, even if none is right")
    return [
        *lines,
        f"- known failures, risks, populations that it was not tested on: {NOT_PROVIDED}",
    ]


def _origin(provenance: Provenance) -> list[str]:
    imported, lines = provenance.imported, []
    if imported is not None:
        named_base = imported.get("named_base")
        lines += [
            *(
                f"- {name.replace('_', ' ')}: {code(imported[name])}"
                for name in ("source", "folder", "revision", "by", "at")
                if imported.get(name)
            ),
            f"- the base that it names: {code(named_base) if named_base else NOT_PROVIDED}; only "
            "that it fits the base above was verified, not that it was trained on it",
            f"- who trained it, on what: {NOT_PROVIDED}",
            *(f"- noted at the import: {escape(note)}" for note in _import_notes(imported)),
        ]
    lines += [
        f"- transferred from another workspace, where it was {code(transfer.origin)}"
        + (f" of run {transfer.run}" if transfer.run else "")
        + f"; by {escape(transfer.by)}, {transfer.at:%Y-%m-%d}"
        for transfer in provenance.transfers
    ]
    return ["## Origin", *lines, ""] if lines else []


def _import_notes(imported: Mapping[str, Any]) -> list[Any]:
    notes = imported.get("notes")
    return list(notes) if isinstance(notes, list | tuple) else []


# ------------------------------------------------------------------------ values and Markdown


def _newest(evaluations: Iterable[EvaluationSection]) -> list[EvaluationSection]:
    """The last evaluation of each split."""
    return list({evaluation.split: evaluation for evaluation in evaluations}.values())


def _specification(provenance: Provenance) -> Mapping[str, Any]:
    return _mapping(provenance.run and provenance.run.specification)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _lengths(value: Any) -> str:
    """Quantiles and the share of cut texts, of a ``LengthReport`` as JSON; empty without one."""
    lengths = _mapping(value)
    names = ("median", "p95", "longest", "limit", "rows", "truncated")
    if not all(type(lengths.get(name)) is int for name in names) or not lengths["rows"]:
        return ""
    truncated, rows = lengths["truncated"], lengths["rows"]
    return (
        f"median {lengths['median']:,}, 95 % {lengths['p95']:,}, longest {lengths['longest']:,} "
        f"tokens; {truncated:,} of {rows:,} texts ({truncated / rows:.1%}) were cut to fit "
        f"{lengths['limit']:,}"
    )


def _number(value: Any) -> float | None:
    valid = type(value) in (int, float) and 0 <= value < 1e30
    return float(value) if valid else None


def _count(provenance: Provenance, name: str) -> int:
    value = 0 if provenance.dataset is None else provenance.dataset.counts.get(name)
    return value if isinstance(value, int) else 0


def _recorded(text: str) -> str:
    return NOT_PROVIDED if text == UNKNOWN else escape(text)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines; the cells are Markdown."""
    return [
        f"| {' | '.join(heads)} |",
        f"{'|---' * len(heads)}|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _estimate(score: Any) -> str:
    """``0.862 [0.832, 0.891]`` for an object with value, low and high; ``-`` without a value."""
    if not isinstance(score, Mapping) or score.get("value") is None:
        return "-"
    low, high = score.get("low"), score.get("high")
    if low is None or high is None:
        return _3f(score["value"])
    return f"{_3f(score['value'])} [{_3f(low)}, {_3f(high)}]"


def _3f(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _duration(seconds: float) -> str:
    """``42 s``, ``3 min``, ``2.1 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

"""The model card of a version, trained here or made elsewhere: what a stranger must know.

Owns: the order of the card, its words and its metadata block for the Hugging Face Hub.
Must not know: the registry, or where anything is kept; everything comes from the manifest,
PEFT's configuration and the provenance.

What only people can say (intended use, license of the adapter, contact) is NOT PROVIDED: it is
never guessed, and the card that an imported adapter may have come with is not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trunkline.adapters.artifact import CROISSANT, Manifest
from trunkline.adapters.card_use import use_lines
from trunkline.adapters.markdown import code, duration, estimate, figure, table, words
from trunkline.adapters.origin import EvaluationOrigin, Provenance

NOT_PROVIDED = "NOT PROVIDED"
FEW_ROWS = 30
"""A slice with fewer rows says little."""

_SLICES = 15
_PIPELINES = {"classification": "text-classification", "generation": "text-generation"}


def model_card(
    adapter: str,
    manifest: Manifest,
    config: Mapping[str, Any],
    provenance: Provenance,
    *,
    croissant: bool = False,
) -> str:
    """Markdown with a Hugging Face metadata block.

    Args:
        adapter: ``domain/name``, with the version's number where it is known.
        manifest: of the version.
        config: PEFT's ``adapter_config.json``.
        provenance: where it comes from.
        croissant: whether a ``croissant.json`` lies beside it.
    """
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
            *use_lines(manifest),
            "",
            *_origin(provenance),
            "## License, authors, contact",
            f"- license of the adapter: {NOT_PROVIDED}",
            f"- license of the base: {NOT_PROVIDED}",
            f"- authors, contact, how to cite: {NOT_PROVIDED}",
            "",
        ]
    )


def _metadata(adapter: str, manifest: Manifest, provenance: Provenance) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    kind = manifest.task["kind"]
    dataset = provenance.dataset
    tags = ["lora", "trunkline", kind]
    if provenance.imported is not None:
        tags.append("imported")
    results = [
        EvalResult(
            task_type=_PIPELINES.get(kind, f"text-{kind}"),
            dataset_type=dataset.name,
            dataset_name=dataset.name,
            dataset_split=one.split,
            dataset_revision=dataset.fingerprint,
            metric_type=metric,
            metric_name=metric,
            metric_value=score["value"],
            metric_args={"interval_95": [score.get("low"), score.get("high")]},
        )
        for one in newest(provenance.evaluations)
        for metric, score in (one.results.get("scores") or {}).items()
        if dataset is not None and score.get("value") is not None
    ]
    return ModelCardData(
        base_model=manifest.base["name"],
        library_name="peft",
        datasets=None if dataset is None else [dataset.name],
        pipeline_tag=_PIPELINES.get(kind),
        tags=tags,
        model_name=adapter if results else None,
        eval_results=results or None,
    ).to_yaml()


def newest(evaluations: Iterable[EvaluationOrigin]) -> list[EvaluationOrigin]:
    """The last evaluation of each split."""
    return list({one.split: one for one in evaluations}.values())


def _summary(manifest: Manifest, provenance: Provenance) -> list[str]:
    base = provenance.base
    said = _specified(provenance).get("description")
    about = []
    if base.parameters:
        about.append(f"{base.parameters:,} parameters")
    about += [words(one) for one in (base.architecture, base.dtype) if one != "unknown"]
    if base.source != "unknown":
        about.append(f"from {words(base.source)}")
    lines = [f"{words(said)}.", ""] if isinstance(said, str) and said else []
    if provenance.imported is not None:
        lines += ["Made elsewhere and imported; what is not known of it is NOT PROVIDED.", ""]
    return [
        *lines,
        f"A LoRA adapter for {manifest.task['kind']}, `{manifest.digest}`.",
        "",
        f"- base: {code(manifest.base['name'])}" + (f" ({', '.join(about)})" if about else ""),
        f"- sha256 of the base: `{words(manifest.base['digest'])}`; on any other base its answers "
        "mean nothing",
    ]


def _data(provenance: Provenance, croissant: bool) -> list[str]:
    dataset = provenance.dataset
    if dataset is None:
        return [NOT_PROVIDED]
    counts = dataset.counts
    kept = {name: counts.get(name) for name in ("parts", "dropped")}
    steps = _specified(provenance).get("transforms")
    lines = [
        f"- {code(dataset.name)}: {words(dataset.description or NOT_PROVIDED)}",
        f"- source: {_known(dataset.source)}; license: {_known(dataset.license)}",
        f"- split by group: {words(dataset.grouping or NOT_PROVIDED)}",
        f"- rows: {dataset.rows:,}"
        + (f"; {code(kept['parts'])}" if kept["parts"] else "")
        + (f"; dropped: {code(kept['dropped'])}" if kept["dropped"] else ""),
        *(
            f"- transform {code(step.get('name'))} ({words(step.get('stage'))}), sha256 of "
            f"its code {code(step.get('code'))}"
            for step in map(_part, steps if isinstance(steps, list) else ())
        ),
        f"- sha256 of the rows: `{words(dataset.fingerprint)}`; of the split: "
        f"`{words(dataset.split_fingerprint)}`",
    ]
    if croissant:
        lines.append(f"- described for machines in [{CROISSANT}]({CROISSANT}) (Croissant 1.0)")
    return [*lines, f"- personal or sensitive content, consent: {NOT_PROVIDED}"]


def _training(config: Mapping[str, Any], provenance: Provenance) -> list[str]:
    targets = config.get("target_modules")
    named = ", ".join(sorted(targets)) if isinstance(targets, list) else str(targets)
    lora = f"- LoRA: rank {config.get('r')}, alpha {config.get('lora_alpha'):g}"
    lora += ", rank-stabilized" if config.get("use_rslora") else ""
    lines = [f"{lora}, on {words(named)}"]
    run = provenance.run
    if run is None:
        return [*lines, f"- everything else: {NOT_PROVIDED}"]
    specified, report, where = _specified(provenance), run.report or {}, run.environment
    if plugin := run.plugin:
        source = _part(specified.get("plugin"))
        commit = source.get("commit")
        at = f", commit `{words(commit)}`" if commit else ", commit not known"
        changed = " with uncommitted changes" if source.get("changed") else ""
        lines.append(f"- plugin: {words(plugin.distribution)} {words(plugin.version)}{at}{changed}")
    if run.started is not None:
        lines.append(f"- run {run.number}, begun {run.started:%Y-%m-%d %H:%M} UTC")
    if loss := specified.get("loss"):
        lines.append(f"- loss: {code(_part(loss).get('name'))}")
    lines.append(f"- settings: {code(run.settings)}")
    if steps := report.get("steps"):
        best = f", the best after {words(report['best_step'])}" if "best_step" in report else ""
        tokens = words(report.get("tokens_trained"))
        lines.append(f"- {words(steps)} optimizer steps{best}; {tokens} tokens")
    parts = [where.get("device_name"), where.get("precision")]
    took = _number(report.get("train_seconds"))
    lasted = "" if took is None else f", {duration(took)} of training"
    lines.append(f"- device: {', '.join(words(one) for one in parts if one)}{lasted}")
    lines.append(f"- packages: {code(where.get('packages') or {})}")
    return [*lines, *_compute(report.get("compute"))]


def _compute(said: Any) -> list[str]:
    counted = _part(said)
    energy = _part(counted.get("energy"))
    flops, joules = _number(counted.get("flops")), _number(energy.get("joules"))
    if flops is None:
        return ["- compute and energy: not recorded"]
    lines = [f"- compute: {flops:.1e} operations, estimated: {words(counted.get('how'))}"]
    if joules is not None:
        return [*lines, f"- energy: {joules:,.0f} J, {words(energy.get('how'))}"]
    return [*lines, f"- energy: not measured: {words(energy.get('how'))}"]


def _evaluations(provenance: Provenance) -> list[str]:
    lines: list[str] = []
    for one in newest(provenance.evaluations):
        lines += [*_evaluation(one), ""]
    return lines[:-1] or [NOT_PROVIDED]


def _evaluation(one: EvaluationOrigin) -> list[str]:
    results = one.results
    scores: Mapping[str, Any] = results.get("scores") or {}
    baselines: Mapping[str, Any] = results.get("baselines") or {}
    rows, groups = results.get("rows", "?"), results.get("groups", "?")
    lines = [
        f"On {rows} held-out rows in {groups} groups (split {code(one.split)}); intervals are "
        "95 %, groups resampled.",
        "",
        *table(
            ["", *map(words, scores)],
            [
                ["this adapter", *(estimate(score) for score in scores.values())],
                *(
                    [
                        f"baseline: {words(name)}",
                        *(estimate(figures.get(metric)) for metric in scores),
                    ]
                    for name, figures in baselines.items()
                ),
            ],
        ),
    ]
    if difference := results.get("difference"):
        lines += [
            "",
            f"{words(results.get('metric'))} minus that of "
            f"{words(results.get('best_baseline'))}: {estimate(difference)}: "
            f"**{words(results.get('verdict'))}** the baseline.",
        ]
    return [*lines, *_slices(results)]


def _slices(results: Mapping[str, Any]) -> list[str]:
    worst = sorted_slices(results)
    if not worst:
        return []
    more = len(worst) - _SLICES
    rest = f"; {more} more are in `provenance.json`" if more > 0 else ""
    return [
        "",
        f"{words(results.get('metric'))} by slice, the worst first{rest}:",
        "",
        *table(
            ["slice", "rows", "score"],
            [
                [words(f"{one['slice']} = {one['value']}"), str(one["rows"]), figure(one["score"])]
                for one in worst[:_SLICES]
            ],
        ),
    ]


def sorted_slices(results: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The slices of an evaluation, the worst first."""
    sign = 1 if results.get("higher_is_better", True) else -1
    return sorted(results.get("slices") or (), key=lambda one: sign * one["score"])


def _limits(manifest: Manifest, provenance: Provenance) -> list[str]:
    lines = []
    run = provenance.run
    if run is not None and (longest := run.settings.get("max_length")):
        cut = (run.report or {}).get("truncated")
        lines.append(
            f"- trained on at most {words(longest)} tokens a row"
            + (f"; {words(cut)} training rows were cut off there" if cut else "")
        )
    if provenance.dataset is not None and (copies := _count(provenance, "near_duplicates")):
        lines.append(f"- {copies} test rows have a near-copy among the training rows")
    if provenance.dataset is not None and (odd := _count(provenance, "conflicting")):
        lines.append(f"- {odd} rows share their text with a row of another target")
    for one in newest(provenance.evaluations):
        verdict = one.results.get("verdict")
        if verdict in ("ties", "loses"):
            lines.append(f"- it {verdict} against a cheap method (split {code(one.split)})")
        few = sum(part["rows"] < FEW_ROWS for part in one.results.get("slices") or ())
        if few:
            lines.append(
                f"- {few} slices have fewer than {FEW_ROWS} rows: their figures say little"
            )
    if not provenance.evaluations:
        lines.append("- it was never evaluated here")
    if manifest.task["kind"] == "classification":
        lines.append("- it always answers with one of its labels, also where none is right")
    return [
        *lines,
        f"- known failures, risks, populations that it was not tried on: {NOT_PROVIDED}",
    ]


def _origin(provenance: Provenance) -> list[str]:
    imported, lines = provenance.imported, []
    if imported is not None:
        named = imported.get("named_base")
        lines += [
            *(
                f"- {name.replace('_', ' ')}: {code(imported[name])}"
                for name in ("source", "folder", "revision", "by", "at")
                if imported.get(name)
            ),
            f"- the base that it names: {code(named) if named else NOT_PROVIDED}; that it was "
            "trained on the base above was not verified, only that it fits",
            f"- who trained it, on what: {NOT_PROVIDED}",
        ]
    lines += [
        f"- came from another workspace, where it was {code(move.origin)}"
        + (f" of run {move.run}" if move.run else "")
        + f"; brought by {words(move.by)}, {move.at:%Y-%m-%d}"
        for move in provenance.moved
    ]
    return ["## Origin", *lines, ""] if lines else []


def _specified(provenance: Provenance) -> Mapping[str, Any]:
    return _part(provenance.run and provenance.run.specification)


def _part(value: Any) -> Mapping[str, Any]:
    """A part of what a run says of itself; empty where it is not of its kind."""
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    sane = type(value) in (int, float) and 0 <= value < 1e30
    return float(value) if sane else None


def _count(provenance: Provenance, name: str) -> int:
    counts = {} if provenance.dataset is None else provenance.dataset.counts
    value = counts.get(name)
    return value if isinstance(value, int) else 0


def _known(text: str) -> str:
    return NOT_PROVIDED if text == "unknown" else words(text)

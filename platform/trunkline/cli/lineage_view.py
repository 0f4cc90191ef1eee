"""A lineage as a tree on the terminal.

Owns: what each part of a lineage says, and in which order. Must not know: where it comes from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from trunkline.cli.history import told
from trunkline.cli.output import bytes_text, duration, figure, print_drawn, took

if TYPE_CHECKING:
    from rich.tree import Tree

    from trunkline.registry.lineage import Lineage
    from trunkline.registry.records import (
        AliasMoveRecord,
        DatasetRecord,
        EvaluationRecord,
        LoadRecord,
        RequestRecord,
        RunRecord,
        VersionRecord,
    )

SLICES_SHOWN = 10
"""So many slices of an evaluation are shown, the worst."""


@dataclass(slots=True)
class Branch:
    """A line of the tree with what hangs below it."""

    text: str
    below: list[Branch] = field(default_factory=list)

    def add(self, name: str, value: object, *below: Branch) -> None:
        """Hang ``name: value`` below, unless the value is None."""
        if value is not None:
            self.below.append(Branch(f"{name}: {value}", list(below)))


def print_lineage(found: Lineage) -> None:
    """Write a lineage on stdout, folded where the terminal is narrower."""
    print_drawn(_drawn(tree(found)))


def _drawn(branch: Branch) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    drawn = Tree(Text(branch.text), guide_style="dim")
    for one in branch.below:
        drawn.children.append(_drawn(one))
    return drawn


def tree(found: Lineage) -> Branch:
    """The whole account as a tree."""
    root = Branch(_name(found))
    parts = (
        found.request and _request(found.request, found.alias_move),
        found.version and _version(found.version, found),
        found.base and _flat(f"base {found.base.name}", found.base, skip=("id", "name")),
        found.run and _run(found.run, found),
        found.dataset and _dataset(found.dataset, found.run),
        found.evaluations and Branch("evaluations", [_evaluated(one) for one in found.evaluations]),
        found.moves and Branch("alias moves", [Branch(move_text(one)) for one in found.moves]),
        found.loads and Branch("servers", [_load(one) for one in found.loads]),
        found.tags and Branch("tags", _tags(found.tags)),
        found.notes
        and Branch(
            "notes",
            [
                Branch(f"{one.subject}, {moment(one.at)}, {one.actor}: {one.detail.get('text')}")
                for one in found.notes
            ],
        ),
    )
    root.below = [part for part in parts if part]
    return root


def move_text(move: AliasMoveRecord) -> str:
    """A move in one line, with its gate and its reason below."""
    if move.new is None:
        way = f"dropped, was {move.old}"
    else:
        way = f"{move.kind} " + (f"from {move.old} " if move.old else "") + f"to {move.new}"
    forced = ", forced" if move.forced else ""
    lines = [f"{move.alias}: {way} by {move.actor} at {moment(move.at)}{forced}"]
    lines += [
        f"  {check.get('name')}: {'yes' if check.get('passed') else 'NO'} ({check.get('figures')})"
        for check in move.gate or ()
    ]
    return "\n".join([*lines, *([f"  reason: {move.reason}"] if move.reason else [])])


def moment(time: datetime) -> str:
    """To the second, in UTC."""
    return time.astimezone(UTC).isoformat(timespec="seconds")


def _name(found: Lineage) -> str:
    if found.version is not None:
        return str(found.version.ref)
    if found.run is not None:
        return f"run/{found.run.number}"
    request = found.request
    return (request and (request.version or f"({request.model})")) or "-"


def _request(request: RequestRecord, alias_move: AliasMoveRecord | None) -> Branch:
    made = Branch(f"request {request.id}")
    made.add("at", moment(request.at))
    made.add("route", request.route)
    made.add("model", request.model or "-")
    made.add("key", request.key or "-")
    made.add("status", request.status)
    made.add("tokens", f"{request.prompt_tokens:,} in, {request.new_tokens:,} out")
    made.add("took", took(request.seconds))
    made.add("text", request.text)
    made.add("output", request.output)
    made.add("version", request.version or "-")
    made.add("digest", request.digest)
    made.add("alias move", alias_move and move_text(alias_move))
    return made


def _version(version: VersionRecord, found: Lineage) -> Branch:
    made = Branch("version")
    made.add("digest", version.digest)
    made.add("task", version.task)
    made.add("aliases", ", ".join(version.aliases) or "none")
    files = version.files or {}
    named = [
        Branch(f"{name}: {bytes_text(one.get('bytes', 0))}, sha256 {one.get('sha256')}")
        for name, one in files.items()
        if isinstance(one, Mapping)
    ]
    made.add("files", f"{f'{len(files)}, ' if files else ''}{bytes_text(version.bytes)}", *named)
    made.add("template", version.template_digest or "digest not recorded")
    made.add("created", moment(version.created))
    if version.removed is not None:
        made.add("removed", f"{moment(version.removed)}, because: {version.removal_reason or '-'}")
    made.add("the same artifact", ", ".join(found.duplicates) or None)
    about = [
        one
        for one in found.history
        if one.kind not in ("alias.moved", "note.added", "tag.set", "tag.removed")
        and not one.subject.startswith("run/")
    ]
    for one in about:
        made.add(one.kind, f"by {one.actor} at {moment(one.at)}: {_one_line(told(one))}")
    return made


def _run(run: RunRecord, found: Lineage) -> Branch:
    made = Branch(f"run {run.number} of {run.recipe}: {run.status}")
    for one in reversed(found.history):
        if one.subject == f"run/{run.number}" and one.kind.startswith("run."):
            made.add(one.kind.partition(".")[2], f"{moment(one.at)} by {one.actor}")
            if "started_by" in one.detail:
                who = one.detail["started_by"] or "somebody who is not recorded"
                there = f"{moment(run.started)} by {who}, as run {one.detail.get('number')}"
                made.add("began", there)
    if run.finished is not None:
        made.add("took", duration((run.finished - run.started).total_seconds()))
    made.add("made", ", ".join(run.versions) or None)
    made.add("error", run.error)
    made.add("plugin", run.plugin)
    made.add("seed", run.seed)
    made.below.append(Branch(f"settings: {_pairs(run.settings)}"))
    specification = dict(run.specification or {})
    for name in ("dataset", "transforms"):
        specification.pop(name, None)
    made.below += _below("specification", specification)
    environment = dict(run.environment)
    packages = environment.pop("packages", None)
    made.below.append(Branch(f"environment: {_pairs(environment)}"))
    made.add("packages", _pairs(packages) if isinstance(packages, Mapping) else None)
    report = dict(run.report or {})
    compute = report.pop("compute", None)
    made.below += _below("compute", compute) if isinstance(compute, Mapping) else []
    report.pop("data", None)
    made.add("report", _pairs(report) if report else None)
    return made


def _dataset(dataset: DatasetRecord, run: RunRecord | None) -> Branch:
    made = Branch(f"dataset {dataset.name}")
    made.add("rows", dataset.fingerprint)
    made.add("split", dataset.split_fingerprint)
    made.add("count", f"{dataset.rows:,}")
    made.below += _below("counts", dataset.counts)
    made.add("license", dataset.license)
    made.add("source", dataset.source)
    specification = (run and run.specification) or {}
    steps = specification.get("transforms")
    if isinstance(steps, Sequence):
        made.add("transforms", len(steps) or "none", *(Branch(_inline(step)) for step in steps))
    if isinstance(specification.get("dataset"), Mapping):
        made.below += _below("read by", specification["dataset"])
    return made


def _evaluated(evaluation: EvaluationRecord) -> Branch:
    results = evaluation.results
    made = Branch(f"{evaluation.split}, {moment(evaluation.created)}")
    made.add("dataset", f"{evaluation.dataset}, rows {evaluation.dataset_fingerprint}")
    made.add("split", evaluation.split_fingerprint)
    if "rows" in results:
        made.add("evaluated on", f"{results['rows']} rows in {results.get('groups', '-')} groups")
    for metric, one in _mapping(results.get("scores")):
        made.add(metric, _estimate(one))
    for baseline, scores in _mapping(results.get("baselines")):
        said = ", ".join(f"{metric} {_estimate(one)}" for metric, one in _mapping(scores))
        made.add(f"baseline {baseline}", said or "-")
    if isinstance(results.get("difference"), Mapping):
        made.add(
            "verdict",
            f"{results.get('verdict')} {results.get('best_baseline')}, {results.get('metric')} "
            f"differs by {_estimate(results['difference'], sign=True)}",
        )
    slices = [one for one in results.get("slices") or () if isinstance(one, Mapping)]
    slices.sort(key=lambda one: one.get("score") or 0.0)
    if slices and results.get("higher_is_better") is False:
        slices.reverse()
    below = [
        Branch(
            f"{one.get('slice')} {one.get('value')}: {_number(one.get('score'))} "
            f"({one.get('rows')} rows)"
        )
        for one in slices[:SLICES_SHOWN]
    ]
    if slices:
        left = len(slices) - len(below)
        told = f"the {len(below)} worst first; --json has all" if left else "the worst first"
        made.add("slices", f"{len(slices)}, {told}", *below)
    made.add("gate", _pairs(results["gate"]) if isinstance(results.get("gate"), Mapping) else None)
    return made


def _load(load: LoadRecord) -> Branch:
    server = load.server
    until = moment(load.unloaded) if load.unloaded else "still held"
    if load.unloaded is None and not server.alive:
        until = f"the server was last seen {moment(server.last_seen)}"
    made = Branch(f"server/{server.number} from {moment(load.loaded)}: {until}")
    made.add("host", f"{server.host}, process {server.pid}")
    made.add("url", server.url or None)
    made.add("started", f"{moment(server.started)} by {server.actor}")
    made.add("stopped", None if server.stopped is None else moment(server.stopped))
    return made


def _tags(tags: Mapping[str, Mapping[str, str]]) -> list[Branch]:
    return [Branch(f"{subject}: {_pairs(values)}") for subject, values in tags.items()]


def _flat(title: str, record: Any, *, skip: tuple[str, ...]) -> Branch:
    made = Branch(title)
    for spec in fields(record):
        value = getattr(record, spec.name)
        if isinstance(value, datetime):
            value = moment(value)
        if spec.name not in skip:
            made.add(spec.name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value)
    return made


def _below(title: str, values: Mapping[str, Any]) -> list[Branch]:
    """One branch with a line a value; none for nothing."""
    if not values:
        return []
    made = Branch(title)
    for name, value in values.items():
        made.add(name, "-" if value is None else _inline(value))
    return [made]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_inline(value)}" for name, value in values.items())


def _inline(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return _pairs(value) or "-"
    if isinstance(value, list | tuple):
        return "; ".join(_inline(one) for one in value) or "-"
    if isinstance(value, float):
        return f"{value:g}"
    return _one_line(value if isinstance(value, str) else json.dumps(value))


def _one_line(text: str) -> str:
    return " · ".join(line.strip() for line in text.splitlines())


def _mapping(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def _estimate(value: Any, *, sign: bool = False) -> str:
    if not isinstance(value, Mapping):
        return "-"
    low, high = _number(value.get("low"), sign), _number(value.get("high"), sign)
    return f"{_number(value.get('value'), sign)} [{low}, {high}]"


def _number(value: Any, sign: bool = False) -> str:
    return figure(float(value), sign) if isinstance(value, int | float) else "-"

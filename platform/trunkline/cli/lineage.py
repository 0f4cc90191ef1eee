"""``trunkline lineage``, ``adapters diff`` and ``runs diff``: where a version or answer is from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from trunkline.cli.command import Command
from trunkline.cli.output import (
    bytes_text,
    duration,
    figure,
    heading,
    json_option,
    note,
    plain,
    print_json,
    print_renderable,
    print_table,
    took,
)
from trunkline.cli.promote import event_text
from trunkline.cli.root import GlobalOptions, pass_options, run_number
from trunkline.errors import UsageError
from trunkline.refs import BASE, Ref

if TYPE_CHECKING:
    from rich.tree import Tree

    from trunkline.registry.lineage import Lineage, LineageDiff
    from trunkline.registry.records import (
        AliasMoveRecord,
        DatasetRecord,
        EvaluationRecord,
        LoadRecord,
        MergeRecord,
        ParentRecord,
        RequestRecord,
        RunRecord,
        VersionRecord,
    )
    from trunkline.registry.registry import Registry

SLICES_SHOWN = 10
"""How many slices of an evaluation are shown, the worst first."""


@click.command(
    "lineage",
    cls=Command,
    short_help="Trace a version or an answer to its origin.",
    example='trunkline lineage --request "$REQUEST_ID"',
)
@click.argument("target", required=False, metavar="[REF|sha256:…|run/N]")
@click.option(
    "--request",
    "request",
    metavar="ID",
    help="The id of an answer, or of its x-request-id header.",
)
@json_option
@pass_options
def lineage(options: GlobalOptions, target: str | None, request: str | None, as_json: bool) -> None:
    """Trace an answer, a version, a digest or a run to its origin, as a tree.

    Shows the version, base, run with settings and environment, dataset, evaluations, alias moves,
    servers, tags and notes. Removed versions keep their lineage. Times are UTC. --json contains
    everything, including what the tree shortens.
    """
    if (target is None) == (request is None):
        raise UsageError(
            "lineage traces one thing.",
            "Name a version (domain/name@3), a digest (sha256:…), run/3, or --request ID.",
        )
    registry = options.platform.registry
    if request is not None:
        result = registry.lineage.of_request(request)
    else:
        result = _trace(registry, target or "")
    if as_json:
        print_json(result)
    else:
        print_renderable(_drawn(tree(result)))
    _print_gaps(result)


def _trace(registry: Registry, target: str) -> Lineage:
    if target.startswith("run/"):
        return registry.lineage.of_run(run_number(target))
    if target.startswith("sha256:"):
        return registry.lineage.of_digest(target)
    return registry.lineage.of_version(Ref.parse(target))


def _print_gaps(result: Lineage) -> None:
    """Print on stderr what the lineage lacks."""
    request, version = result.request, result.version
    if request is not None and request.version is None:
        note("The request ended before it reached a version.")
    elif request is not None and request.version != BASE and version is None:
        note("That version is not in this workspace's registry.")
    for part in result.truncated:
        more = ""
        if version is not None and part == "history":
            more = f": trunkline adapters history {version.ref}"
        note(f"Only the newest {part} are shown{more}.")


# ---------------------------------------------------------------------------------------- tree


@dataclass(slots=True)
class Branch:
    """A line of the tree with the branches below it."""

    text: str
    below: list[Branch] = field(default_factory=list)

    def add(self, name: str, value: object, *below: Branch) -> None:
        """Add ``name: value`` below, unless the value is None."""
        if value is not None:
            self.below.append(Branch(f"{name}: {value}", list(below)))


def _drawn(branch: Branch) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    drawn = Tree(Text(branch.text), guide_style="dim")
    for child in branch.below:
        drawn.children.append(_drawn(child))
    return drawn


def tree(lineage: Lineage) -> Branch:
    """The complete lineage as a tree."""
    root = Branch(_name(lineage))
    parts = (
        lineage.request and _request(lineage.request, lineage.alias_move),
        lineage.version and _version(lineage.version, lineage),
        lineage.base and _flat(f"base {lineage.base.name}", lineage.base, skip=("id", "name")),
        lineage.run and _run(lineage.run, lineage),
        lineage.dataset and _dataset(lineage.dataset, lineage.run),
        lineage.evaluations
        and Branch("evaluations", [evaluation_branch(one) for one in lineage.evaluations]),
        lineage.moves and Branch("alias moves", [Branch(move_text(one)) for one in lineage.moves]),
        lineage.loads and Branch("servers", [_load(one) for one in lineage.loads]),
        lineage.tags and Branch("tags", _tags(lineage.tags)),
        lineage.notes
        and Branch(
            "notes",
            [
                Branch(f"{one.subject}, {moment(one.at)}, {one.actor}: {one.detail.get('text')}")
                for one in lineage.notes
            ],
        ),
    )
    root.below = [part for part in parts if part]
    return root


def move_text(move: AliasMoveRecord) -> str:
    """A move in one line; its gate and its reason are on lines of their own."""
    if move.new is None:
        way = f"removed, pointed to {move.old}"
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
    """Time to the second, in UTC."""
    return time.astimezone(UTC).isoformat(timespec="seconds")


def _name(lineage: Lineage) -> str:
    if lineage.version is not None:
        return str(lineage.version.ref)
    if lineage.run is not None:
        return f"run/{lineage.run.number}"
    request = lineage.request
    return (request and (request.version or f"({request.model})")) or "-"


def _request(request: RequestRecord, alias_move: AliasMoveRecord | None) -> Branch:
    branch = Branch(f"request {request.id}")
    branch.add("at", moment(request.at))
    branch.add("route", request.route)
    branch.add("model", request.model or "-")
    branch.add("key", request.key or "-")
    branch.add("status", request.status)
    branch.add("tokens", f"{request.prompt_tokens:,} in, {request.new_tokens:,} out")
    branch.add("took", took(request.seconds))
    branch.add("text", request.text)
    branch.add("output", request.output)
    branch.add("version", request.version or "-")
    branch.add("digest", request.digest)
    branch.add("alias move", alias_move and move_text(alias_move))
    return branch


def _version(version: VersionRecord, lineage: Lineage) -> Branch:
    branch = Branch("version")
    branch.add("digest", version.digest)
    branch.add("task", version.task)
    branch.add("aliases", ", ".join(version.aliases) or "none")
    files = version.files or {}
    named = [
        Branch(f"{name}: {bytes_text(one.get('bytes', 0))}, sha256 {one.get('sha256')}")
        for name, one in files.items()
        if isinstance(one, Mapping)
    ]
    branch.add("files", f"{f'{len(files)}, ' if files else ''}{bytes_text(version.bytes)}", *named)
    branch.add("template", version.template_digest or "digest not recorded")
    branch.add("created", moment(version.created))
    if version.removed is not None:
        branch.add("removed", f"{moment(version.removed)}; reason: {version.removal_reason or '-'}")
    branch.add("the same artifact", ", ".join(lineage.duplicates) or None)
    if (merge := version.merge) is not None:
        branch.add(
            "merged by",
            merge_text(merge),
            *(Branch(f"{one.ref}: {weight_text(merge, one)}{one.digest}") for one in merge.parents),
        )
    branch.add("merged into", ", ".join(lineage.merged_into) or None)
    events = [
        one
        for one in lineage.history
        if one.kind not in ("alias.moved", "note.added", "tag.set", "tag.removed")
        and not one.subject.startswith("run/")
    ]
    for one in events:
        branch.add(one.kind, f"by {one.actor} at {moment(one.at)}: {_one_line(event_text(one))}")
    return branch


def weight_text(merge: MergeRecord, parent: ParentRecord) -> str:
    """``weight 0.5, ``; empty for stacking, whose coefficients are in the manifest."""
    return "" if merge.method == "stacked" else f"weight {parent.weight:g}, "


def merge_text(merge: MergeRecord) -> str:
    """A method with its settings: ``dare, density 0.5, seed 0``."""
    density = "" if merge.density is None else f", density {merge.density:g}"
    return merge.method + density + ("" if merge.seed is None else f", seed {merge.seed}")


def _run(run: RunRecord, lineage: Lineage) -> Branch:
    branch = Branch(f"run {run.number} of {run.recipe}: {run.status}")
    for one in reversed(lineage.history):
        if one.subject == f"run/{run.number}" and one.kind.startswith("run."):
            branch.add(one.kind.partition(".")[2], f"{moment(one.at)} by {one.actor}")
            if "started_by" in one.detail:
                actor = one.detail["started_by"] or "an unrecorded actor"
                start = f"{moment(run.started)} by {actor}, as run {one.detail.get('number')}"
                branch.add("started", start)
    if run.finished is not None:
        branch.add("took", duration((run.finished - run.started).total_seconds()))
    branch.add("published", ", ".join(run.versions) or None)
    branch.add("error", run.error)
    branch.add("plugin", run.plugin)
    branch.add("seed", run.seed)
    branch.below.append(Branch(f"settings: {_pairs(run.settings)}"))
    specification = dict(run.specification or {})
    for name in ("dataset", "transforms"):
        specification.pop(name, None)
    branch.below += _below("specification", specification)
    environment = dict(run.environment)
    packages = environment.pop("packages", None)
    branch.below.append(Branch(f"environment: {_pairs(environment)}"))
    branch.add("packages", _pairs(packages) if isinstance(packages, Mapping) else None)
    report = dict(run.report or {})
    compute = report.pop("compute", None)
    branch.below += _below("compute", compute) if isinstance(compute, Mapping) else []
    report.pop("data", None)
    branch.add("report", _pairs(report) if report else None)
    return branch


def _dataset(dataset: DatasetRecord, run: RunRecord | None) -> Branch:
    branch = Branch(f"dataset {dataset.name}")
    branch.add("rows", dataset.fingerprint)
    branch.add("split", dataset.split_fingerprint)
    branch.add("count", f"{dataset.rows:,}")
    branch.below += _below("counts", dataset.counts)
    branch.add("license", dataset.license)
    branch.add("source", dataset.source)
    specification = (run and run.specification) or {}
    steps = specification.get("transforms")
    if isinstance(steps, Sequence):
        branch.add("transforms", len(steps) or "none", *(Branch(_inline(step)) for step in steps))
    if isinstance(specification.get("dataset"), Mapping):
        branch.below += _below("read by", specification["dataset"])
    return branch


def evaluation_branch(evaluation: EvaluationRecord) -> Branch:
    results = evaluation.results
    branch = Branch(f"{evaluation.split}, {moment(evaluation.created)}")
    branch.add("dataset", f"{evaluation.dataset}, rows {evaluation.dataset_fingerprint}")
    branch.add("split", evaluation.split_fingerprint)
    if "rows" in results:
        branch.add("evaluated on", f"{results['rows']} rows in {results.get('groups', '-')} groups")
    for metric, one in _mapping(results.get("scores")):
        branch.add(metric, _estimate(one))
    for baseline, scores in _mapping(results.get("baselines")):
        text = ", ".join(f"{metric} {_estimate(one)}" for metric, one in _mapping(scores))
        branch.add(f"baseline {baseline}", text or "-")
    if isinstance(results.get("difference"), Mapping):
        branch.add(
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
        order = f"the {len(below)} worst first; --json has all" if left else "the worst first"
        branch.add("slices", f"{len(slices)}, {order}", *below)
    branch.add(
        "gate", _pairs(results["gate"]) if isinstance(results.get("gate"), Mapping) else None
    )
    return branch


def _load(load: LoadRecord) -> Branch:
    server = load.server
    until = moment(load.unloaded) if load.unloaded else "still loaded"
    if load.unloaded is None and not server.alive:
        until = f"the server was last seen {moment(server.last_seen)}"
    branch = Branch(f"server/{server.number} from {moment(load.loaded)}: {until}")
    branch.add("host", f"{server.host}, process {server.pid}")
    branch.add("url", server.url or None)
    branch.add("started", f"{moment(server.started)} by {server.actor}")
    branch.add("stopped", None if server.stopped is None else moment(server.stopped))
    return branch


def _tags(tags: Mapping[str, Mapping[str, str]]) -> list[Branch]:
    return [Branch(f"{subject}: {_pairs(values)}") for subject, values in tags.items()]


def _flat(title: str, record: Any, *, skip: tuple[str, ...]) -> Branch:
    branch = Branch(title)
    for spec in fields(record):
        value = getattr(record, spec.name)
        if isinstance(value, datetime):
            value = moment(value)
        if spec.name not in skip:
            branch.add(
                spec.name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value
            )
    return branch


def _below(title: str, values: Mapping[str, Any]) -> list[Branch]:
    """One branch with a line per value; none for no values."""
    if not values:
        return []
    branch = Branch(title)
    for name, value in values.items():
        branch.add(name, "-" if value is None else _inline(value))
    return [branch]


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


# ---------------------------------------------------------------------------------------- diff


@click.command(
    "diff",
    cls=Command,
    example="trunkline adapters diff finance/naics-sector@1 finance/naics-sector@2",
)
@click.argument("a")
@click.argument("b")
@json_option
@pass_options
def adapters_diff(options: GlobalOptions, a: str, b: str, as_json: bool) -> None:
    """Compare two versions: settings, data, base, environment, figures.

    Common values are left out. The difference of a figure is B minus A.
    """
    from trunkline.registry.lineage import diff

    registry = options.platform.registry
    left, right = (registry.lineage.of_version(Ref.parse(ref)) for ref in (a, b))
    print_comparison(diff(left, right), as_json)


@click.command(
    "diff",
    cls=Command,
    example="trunkline runs diff 2 4",
)
@click.argument("a", type=run_number)
@click.argument("b", type=run_number)
@json_option
@pass_options
def runs_diff(options: GlobalOptions, a: int, b: int, as_json: bool) -> None:
    """Compare two runs: settings, data, base, environment, report, figures.

    A and B are numbers of runs, written 3 or run/3. Common values are left out. The difference of
    a figure is B minus A.
    """
    from trunkline.registry.lineage import diff

    registry = options.platform.registry
    left, right = (registry.lineage.of_run(number) for number in (a, b))
    print_comparison(diff(left, right), as_json)


def print_comparison(comparison: LineageDiff, as_json: bool) -> None:
    if as_json:
        print_json(comparison)
        return
    heads = [comparison.left, comparison.right]
    if comparison.fields:
        print_table(
            ["what", *heads],
            [(one.name, _value(one.left), _value(one.right)) for one in comparison.fields],
            fold=heads,
        )
    else:
        note("No differences apart from the figures.")
    if comparison.metrics:
        heading("Figures")
        print_table(
            ["figure", *heads, "difference"],
            [
                (
                    one.name,
                    _figure(one.left),
                    _figure(one.right),
                    "-" if one.difference is None else figure(one.difference, sign=True),
                )
                for one in comparison.metrics
            ],
            right=(*heads, "difference"),
        )
    if any(one.difference is not None and not one.same_rows for one in comparison.metrics):
        note("The figures come from different rows, so they are hard to compare.")


def _figure(value: float | None) -> str:
    return "-" if value is None else figure(value)


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)

"""``trunkline runs``: what was trained when, with which settings, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import click

from trunkline.cli.adapters import limit_option
from trunkline.cli.command import Group
from trunkline.cli.options import Globals, run_number, with_globals
from trunkline.cli.output import (
    counted,
    duration,
    figure,
    heading,
    json_option,
    moment,
    note,
    plain,
    print_fields,
    print_json,
    print_table,
    short_digest,
)
from trunkline.cli.report_view import print_evaluation_report
from trunkline.contracts import Settings

if TYPE_CHECKING:
    from trunkline.registry.records import MetricRecord, RunRecord

_STEPS = 20


@click.group(
    cls=Group,
    short_help="What was trained when, and what came of it.",
    lazy={"diff": "trunkline.cli.diff:runs_diff"},
)
def runs() -> None:
    """Runs: one execution of a recipe each, whatever became of it."""


@runs.command(
    "list",
    example="trunkline runs list",
)
@click.option("--recipe", metavar="NAME", help="Only those of one recipe.")
@click.option(
    "--before", type=run_number, metavar="RUN", help="Only older ones, for the next page."
)
@limit_option
@json_option
@with_globals
def list_(said: Globals, recipe: str | None, before: int | None, limit: int, as_json: bool) -> None:
    """List the runs, newest first."""
    found = said.platform.registry.runs.list(recipe=recipe, limit=limit + 1, before=before)
    if as_json:
        print_json(found[:limit])
    elif found:
        print_table(
            ["run", "recipe", "status", "started", "took", "made"],
            [
                (
                    one.number,
                    one.recipe,
                    one.status,
                    moment(one.started),
                    _took(one),
                    ", ".join(one.versions) or "-",
                )
                for one in found[:limit]
            ],
            right=("run",),
            fold=("made",),
        )
    elif recipe is not None or before is not None:
        note("No such run.")
    else:
        note("No run yet: `trunkline recipes list`, then `trunkline train RECIPE`.")
    if len(found) > limit:
        note(f"There are more: --before {found[limit - 1].number}, or a higher --limit.")


@runs.command(
    "show",
    example="trunkline runs show 2",
)
@click.argument("number", type=run_number)
@json_option
@with_globals
def show(said: Globals, number: int, as_json: bool) -> None:
    """Show one run: settings, environment, report, and its figures over time."""
    platform = said.platform
    run = platform.registry.runs.get(number)
    metrics = platform.registry.runs.metrics(number)
    if as_json:
        print_json({**plain(run), "metrics": metrics})
        return
    packages = run.environment.get("packages", {})
    print_fields(
        [
            ("run", run.number),
            ("recipe", run.recipe),
            ("status", run.status),
            ("error", run.error),
            ("started", moment(run.started)),
            ("took", _took(run)),
            ("made", ", ".join(run.versions) or "-"),
            ("plugin", run.plugin),
            ("base", f"{run.base_name} ({short_digest(run.base_digest)})"),
            ("dataset", f"{run.dataset} (rows {run.dataset_fingerprint[:12]}, "
                        f"split {run.split_fingerprint[:12]})"),
            ("seed", run.seed),
            ("settings", _changed(run)),
            ("machine", _machine(run)),
            ("packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
        ]
    )  # fmt: skip
    if run.report:
        from trunkline.cli.train import print_report

        heading("Report")
        validated = [one.name for one in metrics if one.name.startswith("validation.")]
        try:
            print_report(run.report, validated[0].partition(".")[2] if validated else "score")
        except (AttributeError, KeyError, TypeError, ValueError):
            # An artifact made elsewhere brought its run along, with whatever stands in its report.
            note("It is not of the form that training writes: --json shows it as it is.")
    if metrics:
        heading("Figures")
        _print_metrics(metrics)
    for ref in run.versions:
        if evaluated := platform.evaluation_report(platform.resolve(ref).version):
            print_evaluation_report(evaluated[0])


def _took(run: RunRecord) -> str:
    return duration((run.finished - run.started).total_seconds()) if run.finished else "-"


def _changed(run: RunRecord) -> str:
    """The settings that are not the platform's defaults."""
    defaults = {spec.name: spec.default for spec in fields(Settings)}
    changed = [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in run.settings.items()
        if defaults.get(name) != value
    ]
    return ", ".join(changed) or "all as the platform sets them"


def _machine(run: RunRecord) -> str:
    found = run.environment
    parts = [str(found[name]) for name in ("device", "device_name", "precision") if name in found]
    if "threads" in found:
        parts.append(counted(found["threads"], "thread"))
    parts += [f"Python {found['python']}"] if "python" in found else []
    return ", ".join([*dict.fromkeys(parts), *([found["system"]] if "system" in found else [])])


def _print_metrics(metrics: Sequence[MetricRecord]) -> None:
    """A line a step, at most about twenty; the last one always."""
    names = list(dict.fromkeys(metric.name for metric in metrics))
    by_step: dict[int, dict[str, float]] = {}
    for metric in metrics:
        by_step.setdefault(metric.step, {})[metric.name] = metric.value
    steps = sorted(by_step)
    stride = -(-len(steps) // _STEPS)
    shown = [
        step
        for index, step in enumerate(steps)
        if index % stride == 0
        or step == steps[-1]
        or any(name.startswith("validation.") for name in by_step[step])
    ]
    print_table(
        ["step", *names],
        [(step, *(_cell(name, by_step[step].get(name)) for name in names)) for step in shown],
        right=("step", *names),
    )


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1e}" if name == "learning_rate" else figure(value)

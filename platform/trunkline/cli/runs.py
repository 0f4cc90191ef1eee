"""``trunkline runs``: list the training runs, and show one with its report and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Group
from trunkline.cli.eval import print_evaluation_report
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
from trunkline.cli.root import GlobalOptions, limit_option, pass_options, run_number
from trunkline.contracts import Settings

if TYPE_CHECKING:
    from trunkline.registry.records import MetricRecord, RunRecord

_STEPS = 20


@click.group(
    cls=Group,
    short_help="Training runs: settings, status, figures.",
    lazy={"diff": "trunkline.cli.lineage:runs_diff"},
)
def runs() -> None:
    """Training runs: each is one execution of a recipe, finished or not."""


@runs.command("list", example="trunkline runs list")
@click.option("--recipe", metavar="NAME", help="Only runs of this recipe.")
@click.option(
    "--before",
    type=run_number,
    metavar="RUN",
    help="Only runs older than this, for the next page.",
)
@limit_option
@json_option
@pass_options
def list_(
    options: GlobalOptions, recipe: str | None, before: int | None, limit: int, as_json: bool
) -> None:
    """List the runs, newest first."""
    records = options.platform.registry.runs.list(recipe=recipe, limit=limit + 1, before=before)
    page = records[:limit]
    if as_json:
        print_json(page)
    elif page:
        print_table(
            ["run", "recipe", "status", "started", "took", "published"],
            [
                (
                    one.number,
                    one.recipe,
                    one.status,
                    moment(one.started),
                    _took(one),
                    ", ".join(one.versions) or "-",
                )
                for one in page
            ],
            right=("run",),
            fold=("started", "published"),
        )
    elif recipe is not None or before is not None:
        note("No matching run.")
    else:
        note("No runs yet: `trunkline recipes list`, then `trunkline train RECIPE`.")
    if len(records) > limit:
        note(f"There are more: --before {page[-1].number}, or a higher --limit.")


@runs.command("show", example="trunkline runs show 2")
@click.argument("number", type=run_number)
@json_option
@pass_options
def show(options: GlobalOptions, number: int, as_json: bool) -> None:
    """Show a run's settings, environment, report, and figures over time."""
    platform = options.platform
    run = platform.registry.runs.get(number)
    metrics = platform.registry.runs.metrics(number)
    if as_json:
        print_json({**plain(run), "metrics": metrics})
        return
    packages = run.environment.get("packages", {})
    fingerprints = f"rows {run.dataset_fingerprint[:12]}, split {run.split_fingerprint[:12]}"
    print_fields(
        [
            ("run", run.number),
            ("recipe", run.recipe),
            ("status", run.status),
            ("error", run.error),
            ("started", moment(run.started)),
            ("took", _took(run)),
            ("published", ", ".join(run.versions) or "-"),
            ("plugin", run.plugin),
            ("base", f"{run.base_name} ({short_digest(run.base_digest)})"),
            ("dataset", f"{run.dataset} ({fingerprints})"),
            ("seed", run.seed),
            ("settings", _changed_settings(run)),
            ("machine", _machine(run)),
            ("packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
        ]
    )
    if run.report:
        from trunkline.cli.train import print_report

        heading("Report")
        validated = [one.name for one in metrics if one.name.startswith("validation.")]
        try:
            print_report(run.report, validated[0].partition(".")[2] if validated else "score")
        except (AttributeError, KeyError, TypeError, ValueError):
            # The run of an imported artifact may have a report of any form.
            note("The report has an unknown form; --json prints it unchanged.")
    if metrics:
        heading("Figures")
        _print_metrics(metrics)
    for ref in run.versions:
        if evaluated := platform.evaluation_report(platform.resolve(ref).version):
            print_evaluation_report(evaluated[0])


def _took(run: RunRecord) -> str:
    return duration((run.finished - run.started).total_seconds()) if run.finished else "-"


def _changed_settings(run: RunRecord) -> str:
    """The settings that differ from the platform's defaults."""
    defaults = {spec.name: spec.default for spec in fields(Settings)}
    changed = [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in run.settings.items()
        if defaults.get(name) != value
    ]
    return ", ".join(changed) or "the platform's defaults"


def _machine(run: RunRecord) -> str:
    environment = run.environment
    names = ("device", "device_name", "precision")
    parts = [str(environment[name]) for name in names if name in environment]
    if "threads" in environment:
        parts.append(counted(environment["threads"], "thread"))
    if "python" in environment:
        parts.append(f"Python {environment['python']}")
    if "system" in environment:
        parts.append(environment["system"])
    return ", ".join(dict.fromkeys(parts))


def _print_metrics(metrics: Sequence[MetricRecord]) -> None:
    """One line per step, about twenty at most, with each validation and the last step."""
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

"""``trunkline runs``: list the training runs, and show one with its report and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Example, Group
from trunkline.cli.eval import print_evaluation_report
from trunkline.cli.output import (
    check_output,
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
from trunkline.errors import DataError, NotFoundError, UsageError, reason_of

if TYPE_CHECKING:
    from trunkline.registry.records import MetricRecord, RunRecord

Curve = dict[int, float]
"""Step → value of a metric."""

_STEPS = 20
_BARS = "▁▂▃▄▅▆▇█"
_PLOTTED = ("loss", "validation")


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
        for name, curve in curves(metrics).items():
            click.echo(f"{name:<20} {sparkline(list(curve.values()))}  {_extremes(name, curve)}")
        _print_metrics(metrics)
    for ref in run.versions:
        if evaluated := platform.evaluation_report(platform.resolve(ref).version):
            print_evaluation_report(evaluated[0])


@runs.command("stop", example=Example("trunkline runs stop 2", "fails"))
@click.argument("number", type=run_number)
@json_option
@pass_options
def stop(options: GlobalOptions, number: int, as_json: bool) -> None:
    """Stop a training that another process runs; it ends after its step and can be resumed."""
    from trunkline.training.stopping import request_stop

    platform = options.platform
    run = request_stop(platform.workspace, platform.registry, number)
    if as_json:
        print_json({"run": number, "stop_requested": True})
        return
    note(f"Run {number} stops after its step; `trunkline runs show {number}` shows its status.")
    note(f"Resume it: trunkline train {run.recipe} --resume {number}")


@runs.command("plot", example=Example("trunkline runs plot 2 --out run.png", "writes"))
@click.argument("numbers", type=run_number, nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The picture: .png or .svg; replaced if it exists.",
)
@click.option(
    "--metric",
    "names",
    multiple=True,
    metavar="NAME",
    help="Only this metric; may be repeated.  [default: loss and validation]",
)
@json_option
@pass_options
def plot(
    options: GlobalOptions,
    numbers: tuple[int, ...],
    out: Path,
    names: tuple[str, ...],
    as_json: bool,
) -> None:
    """Draw the figures of one or several runs over their steps, as a picture."""
    if out.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"{str(out)!r} is not a picture.", "Name a file.png or a file.svg.")
    check_output(out)
    registry = options.platform.registry
    drawn = {}
    for number in dict.fromkeys(numbers):
        run = registry.runs.get(number)
        drawn[f"run {number}, {run.recipe}"] = curves(registry.runs.metrics(number))
    available = list(dict.fromkeys(name for one in drawn.values() for name in one))
    for name in names:
        if name not in available:
            raise NotFoundError.named(
                "metric of these runs", name, available, f"They have: {', '.join(available)}."
            )
    chosen = list(names) or [name for name in available if name.partition(".")[0] in _PLOTTED]
    if not chosen:
        raise DataError("These runs have no figures to draw.", "Name runs that took steps.")
    _draw(drawn, chosen, out)
    if as_json:
        print_json({"out": out, "runs": list(dict.fromkeys(numbers)), "metrics": chosen})
        return
    note(f"{counted(len(chosen), 'metric')} of {counted(len(drawn), 'run')} in {out}")


def _draw(drawn: Mapping[str, Mapping[str, Curve]], names: Sequence[str], out: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "Drawing needs the package matplotlib.", "Run: pip install 'trunkline[plot]'"
        ) from None
    size = (8, 3 * len(names))
    picture = Figure(figsize=size, layout="constrained")
    for axes, name in zip(picture.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
        for label, all_curves in drawn.items():
            curve = all_curves.get(name, {})
            axes.plot(list(curve), list(curve.values()), label=label, marker=".", markersize=3)
        axes.set_title(name, loc="left")
        axes.grid(alpha=0.3)
        axes.set_xlabel("optimizer step")
    axes.legend(loc="best", fontsize="small")
    try:
        picture.savefig(out, dpi=120, metadata={"Date": None} if out.suffix == ".svg" else None)
    except OSError as error:
        raise UsageError(
            f"{str(out)!r} can't be written: {reason_of(error)}.", "Name a file elsewhere."
        ) from error


def curves(metrics: Sequence[MetricRecord]) -> dict[str, Curve]:
    """Metric → step → value."""
    result: dict[str, Curve] = {}
    for metric in metrics:
        result.setdefault(metric.name, {})[metric.step] = metric.value
    return result


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """Values as bars of eight heights, thinned out to a width; what is not finite is a blank."""
    stride = max(1, -(-len(values) // width))
    shown = list(values[::stride])
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return " " * len(shown)
    # Halved, so that the difference of two large numbers is finite
    low, span = min(finite) / 2, (max(finite) / 2 - min(finite) / 2) or 1.0
    return "".join(
        _BARS[min(7, int(8 * ((value / 2 - low) / span)))] if math.isfinite(value) else " "
        for value in shown
    )


def _extremes(name: str, curve: Curve) -> str:
    """First and last value, and the lowest and highest with their steps."""
    first, *_, last = (*curve.values(), *curve.values())
    finite = {step: value for step, value in curve.items() if math.isfinite(value)}
    if not finite:
        return f"{first} to {last}"
    low, high = min(finite, key=finite.__getitem__), max(finite, key=finite.__getitem__)
    return (
        f"{_cell(name, first)} to {_cell(name, last)}; lowest {_cell(name, finite[low])} at {low}, "
        f"highest {_cell(name, finite[high])} at {high}"
    )


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
    from trunkline.registry.records import TOKENS

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
        [
            (
                step,
                *(_cell(name, by_step[step].get(name), is_count=name == TOKENS) for name in names),
            )
            for step in shown
        ],
        right=("step", *names),
    )


def _cell(name: str, value: float | None, *, is_count: bool = False) -> str:
    if value is None:
        return ""
    if is_count:
        return f"{value:,.0f}"
    return f"{value:.1e}" if name == "learning_rate" else figure(value)

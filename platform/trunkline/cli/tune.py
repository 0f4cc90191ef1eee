"""``trunkline tune``: search for better settings of a recipe."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.output import (
    check_output,
    figure,
    heading,
    json_option,
    note,
    plain,
    print_json,
    print_table,
)
from trunkline.cli.progress import stop_on_interrupt, working
from trunkline.cli.recipes import parse_settings, set_option
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.errors import UsageError
from trunkline.files import output_file

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Duration(click.ParamType[float]):
    """A duration such as ``90s``, ``30m`` or ``2h``, in seconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh])", str(value))
        if match is None or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a duration; write 90s, 30m or 2h.", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


@click.command(
    "tune",
    cls=Command,
    short_help="Search for better settings of a recipe.",
    example=Example("trunkline tune finance/naics-sector --trials 2 --set max_steps=4", "writes"),
)
@click.argument("recipe", required=False)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A recipe in YAML instead of a plugin's.",
)
@click.option(
    "--trials",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    metavar="N",
    help="Trainings in all, those of an interrupted search included.",
)
@click.option(
    "--budget", type=Duration(), metavar="TIME", help="Stop after this time: 90s, 30m, 2h."
)
@click.option(
    "--space",
    multiple=True,
    metavar="KEY=VALUES",
    help="What to search: learning_rate=1e-4:2e-3:log or r=8,16,32; may be repeated.  "
    "[default: learning_rate, r, weight_decay, lora_dropout]",
)
@click.option(
    "--together",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    metavar="N",
    help="Trials at once, on one copy of the base.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the recipe with the best settings as YAML.",
)
@set_option
@json_option
@pass_options
def tune(
    options: GlobalOptions,
    recipe: str | None,
    config: Path | None,
    trials: int,
    budget: float | None,
    space: tuple[str, ...],
    together: int,
    out: Path | None,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Search for the settings with the best score on the validation rows.

    Trial 1 is the recipe as it is. Trials share one copy of the base, some at a time. One that
    loses to the best so far or to one beside it, by the interval of the paired difference, is
    stopped. The test rows are not read, and nothing is published.
    Trials are kept: the same command goes on with an interrupted search.
    """
    from trunkline.training.config import config_of_job, read_config

    if (recipe is None) == (config is None):
        raise UsageError(
            "Name a recipe, or pass --config FILE, and not both.",
            "`trunkline recipes list` shows the recipes.",
        )
    if out is not None and out.exists():
        raise UsageError(f"{str(out)!r} already exists.", "Name another file.")
    if out is not None:
        check_output(out)
    chosen = read_config(config) if config is not None else recipe or ""
    settings = parse_settings(assignments)
    platform = options.with_plugins
    job = platform.training_job(chosen, settings)
    with working() as listener, stop_on_interrupt(listener) as should_stop:
        listener.stage("opening the base")
        result = platform.tune(
            chosen,
            trials=trials,
            seconds=budget,
            space=parse_settings(space, "--space") or None,
            together=together,
            listener=listener,
            should_stop=should_stop,
            **settings,
        )
    best = result.best
    if out is not None and best is not None:
        with output_file(out, overwrite=False) as file:
            file.write(config_of_job(job, best.settings).to_yaml(out.absolute().parent))
    if as_json:
        print_json({"recipe": job.recipe.name, **plain(result)})
        return
    heading(f"{job.recipe.name}: {len(result.trials)} trials, {result.metric} on validation rows")
    names = list(dict.fromkeys(name for trial in result.trials for name in trial.settings))
    print_table(
        ["trial", result.metric, "state", "of its steps", *names],
        [
            (
                trial.number + 1,
                "-" if trial.score is None else figure(trial.score),
                trial.state,
                f"{trial.share:.0%}",
                *(_value(trial.settings.get(name)) for name in names),
            )
            for trial in result.trials
        ],
        right=("trial", result.metric, "of its steps"),
        fold=("state",),
    )
    for trial in result.trials:
        if trial.error is not None:
            note(f"Trial {trial.number + 1} failed: {trial.error}")
    if result.rows:
        click.echo(
            f"Trained on {result.rows:,} rows; without stopping {result.full_rows:,} "
            f"({result.full_rows / result.rows:.1f} times)."
        )
    if best is None:
        note("No trial is complete yet: give it more --budget, or more --trials.")
        return
    note(f"Best: trial {best.number + 1}. Train it with:")
    source = ["--config", str(config)] if config is not None else [str(recipe)]
    for name, value in {**settings, **best.settings}.items():
        source += ["--set", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    click.echo(shlex.join(["trunkline", "train", *source]))
    if out is not None:
        note(f"The recipe with these settings is in {out}.")


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

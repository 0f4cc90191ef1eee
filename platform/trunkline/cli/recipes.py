"""``trunkline recipes``: the recipes of the plugins, and the ``--set`` option for settings."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Group
from trunkline.cli.output import (
    heading,
    json_option,
    note,
    print_fields,
    print_json,
    print_table,
)
from trunkline.cli.root import GlobalOptions, pass_options, run_number
from trunkline.errors import UsageError
from trunkline.files import output_file

if TYPE_CHECKING:
    from trunkline.contracts import Gate, MetricSpec
    from trunkline.training.job import TrainingJob

set_option = click.option(
    "--set",
    "assignments",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a setting of the recipe; may be repeated (`recipes show` lists them).",
)


def parse_settings(assignments: tuple[str, ...], option: str = "--set") -> dict[str, str]:
    """The values of ``--set`` or a similar option by setting, still as text."""
    from trunkline.training.job import parse_assignment

    settings: dict[str, str] = {}
    for name, value in (parse_assignment(one, option) for one in assignments):
        if name in settings:
            raise UsageError(f"{option} {name} is given twice.", "Leave out one of them.")
        settings[name] = value
    return settings


@click.group(cls=Group, short_help="The plugins' recipes and their settings.")
def recipes() -> None:
    """Recipes: how an adapter is trained, from dataset and template to loss and gate."""


@recipes.command("list", example="trunkline recipes list")
@json_option
@pass_options
def list_(options: GlobalOptions, as_json: bool) -> None:
    """List the recipes of all plugins."""
    specs = options.with_plugins.catalog.recipes()
    if as_json:
        names = ("name", "description", "task", "dataset", "loss", "metrics", "gate")
        print_json([{name: getattr(spec, name) for name in names} for spec in specs])
        return
    if not specs:
        note("No plugin has a recipe: `trunkline plugins list`.")
        return
    print_table(
        ["recipe", "task", "gate metric", "description"],
        [(spec.name, spec.task, spec.gate.metric, spec.description) for spec in specs],
        fold=("description",),
    )


@recipes.command("show", example="trunkline recipes show medical/icd10-chapter")
@click.argument("name")
@json_option
@pass_options
def show(options: GlobalOptions, name: str, as_json: bool) -> None:
    """Show a recipe with all its settings; `train --set` changes them."""
    job = options.with_plugins.training_job(name, {})
    if as_json:
        print_json(asdict(job.recipe))
        return
    print_recipe(job)


@recipes.command("export", example="trunkline recipes export retail/department")
@click.argument("name", metavar="NAME_OR_RUN")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the recipe to this file.  [default: stdout]",
)
@json_option
@pass_options
def export(options: GlobalOptions, name: str, output: Path | None, as_json: bool) -> None:
    """Write a recipe as YAML, which `train --config` reads.

    NAME is a plugin's recipe, and the YAML names its dataset. Of a number, as in `runs list`, the
    recipe of that run is written, with its settings and the columns of your own files.
    """
    from trunkline.training.config import config_of, config_of_run

    platform = options.with_plugins
    if "/" in name and not name.startswith("run/"):
        config = config_of(platform.catalog.recipe(name))
    else:
        config = config_of_run(platform.registry.runs.get(run_number(name)), platform.catalog)
    if output is not None:
        with output_file(output, overwrite=False) as file:
            file.write(config.to_yaml(output.absolute().parent))
        note(f"{output}: {config.name}")
    if as_json:
        print_json(config.to_json())
    elif output is None:
        click.echo(config.to_yaml(), nl=False)


def _options(job: TrainingJob) -> str | None:
    """The loss options that differ from their defaults."""
    given = job.recipe.loss_options.items()
    changed = [f"{key} {value}" for key, value in given if value != job.loss.options[key]]
    return ", ".join(changed) or None


_OF_TEXTS = ("max_length", "use_dora", "layers_to_transform", "frozen_cache_mib")
"""Settings that have no effect on a training of pictures, or are refused there."""


def print_recipe(job: TrainingJob) -> None:
    """Write a job's recipe and settings on stdout."""
    recipe, template = job.recipe, job.recipe.template
    shape = f"as a chat, {template.prompt!r}" if template.chat else repr(template.prompt)
    hidden = _OF_TEXTS if job.dataset.modality == "image" else ()
    print_fields(
        [
            ("recipe", recipe.name),
            ("description", recipe.description),
            ("task", recipe.task),
            ("dataset", recipe.dataset),
            (
                "template",
                f"{shape}; text: {', '.join(template.clean) or 'unchanged'}"
                if job.dataset.modality == "text"
                else None,
            ),
            ("system", template.system),
            ("loss", recipe.loss),
            ("loss options", _options(job)),
            ("metrics", ", ".join(dict.fromkeys((recipe.gate.metric, *recipe.metrics)))),
            ("gate", _gate(recipe.gate, job.deciding_metric)),
            ("more baselines", ", ".join(recipe.baselines) or None),
            ("transforms", ", ".join(recipe.transforms) or None),
            ("scale", recipe.scale if recipe.task == "regression" else None),
            ("new tokens", recipe.max_new_tokens if recipe.task == "generation" else None),
        ]
    )
    heading("Settings (* differs from the platform's default)")
    settings = recipe.settings
    print_table(
        ["setting", "value", "", "meaning"],
        [
            (
                spec.name,
                _value(getattr(settings, spec.name)),
                "*" if getattr(settings, spec.name) != spec.default else "",
                spec.metadata["help"],
            )
            for spec in fields(settings)
            if spec.name not in hidden
        ],
        fold=("meaning",),
    )


def _gate(gate: Gate, metric: MetricSpec) -> str:
    """``accuracy: beats the best baseline, at least 0.8``."""
    parts = ["beats the best baseline"] if gate.beats_baseline else []
    bound = "at least" if metric.higher_is_better else "at most"
    if gate.at_least is not None:
        parts.append(f"{bound} {gate.at_least:g}")
    if gate.beats_champion:
        parts.append("beats the champion")
    if gate.champion_margin is not None:
        parts.append(f"at most {gate.champion_margin:g} worse than the champion")
    if gate.slices_at_least is not None:
        parts.append(f"every slice {bound} {gate.slices_at_least:g}")
    if gate.two_persons:
        parts.append("promoted by someone other than the trainer")
    return f"{gate.metric}: {', '.join(parts) or 'no condition'}"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)

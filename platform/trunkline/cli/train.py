"""``trunkline train``: train a recipe and publish the version, or estimate the cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.errors import report
from trunkline.cli.eval import print_evaluation_report
from trunkline.cli.file_options import column_options, make_own_recipe, option_name, own_name
from trunkline.cli.merge import print_fusion
from trunkline.cli.output import (
    bytes_text,
    counts,
    duration,
    figure,
    heading,
    json_option,
    note,
    print_fields,
    print_json,
    short_digest,
)
from trunkline.cli.progress import stop_on_interrupt, working
from trunkline.cli.recipes import parse_settings, print_recipe, set_option
from trunkline.cli.root import GlobalOptions, pass_options, run_number
from trunkline.contracts import FUSION_METHODS, FusionMethod, NoProgress
from trunkline.data.lengths import lengths_text
from trunkline.errors import TrunklineError, UsageError
from trunkline.threads import contention_warning
from trunkline.training.distributed import StepsTakenError, is_first, processes

if TYPE_CHECKING:
    from trunkline.api import Platform
    from trunkline.training.config import RecipeConfig
    from trunkline.training.job import TrainingJob
    from trunkline.training.plan import TrainingPlan
    from trunkline.training.run import TrainingResult


@click.command(
    "train",
    cls=Command,
    short_help="Train a recipe, evaluate it, publish a version.",
    example=(
        Example("trunkline train finance/naics-sector --set max_steps=20", "writes"),
        Example(
            "trunkline train --data claims.csv --text description --label category "
            "--name claims/category --set max_steps=20",
            "writes",
        ),
    ),
)
@click.argument("recipes", nargs=-1, metavar="[RECIPE]...")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Train on your own rows: CSV, TSV, JSON lines, JSON, Parquet, a folder of texts or "
    "pictures, a saved data set, or hf:owner/name of the Hugging Face hub.",
)
@click.option("--name", metavar="NAME", help="With --data: domain/name of the adapter.")
@column_options
@click.option(
    "--template",
    metavar="TEXT",
    help="With --data: the prompt, such as 'Claim: {text}'.  [default: the text alone]",
)
@click.option(
    "--fuse",
    type=click.Choice(("text+image",)),
    help="With --data: train an adapter on the text and one on the picture of the same rows, and "
    "fuse them. --set text.KEY=VALUE and image.KEY=VALUE are for one of them.",
)
@click.option(
    "--method",
    type=click.Choice(FUSION_METHODS),
    help="With --fuse: average the probabilities, or stack them.  [default: average]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Train a recipe in YAML; see `recipes export`.",
)
@set_option
@click.option(
    "--dry-run", is_flag=True, help="Only show the resolved recipe and an estimate of its cost."
)
@click.option(
    "--report-to",
    type=click.Choice(("tensorboard",)),
    multiple=True,
    help="Also write the figures for this tracker, into the workspace.",
)
@click.option("--resume", type=run_number, metavar="RUN", help="Continue an unfinished run.")
@json_option
@pass_options
def train(
    options: GlobalOptions,
    recipes: tuple[str, ...],
    data: Path | None,
    name: str | None,
    columns: dict[str, Any],
    template: str | None,
    fuse: str | None,
    method: str | None,
    config: Path | None,
    assignments: tuple[str, ...],
    dry_run: bool,
    report_to: tuple[str, ...],
    resume: int | None,
    as_json: bool,
) -> None:
    """Train an adapter, verify it, evaluate it against the baselines, and publish a version.

    What is trained is the recipe of a plugin, a recipe in YAML (--config), or your own file of
    rows (--data), which `datasets check` examines first. Several recipes are trained at once on
    one copy of the base.

    The version is published whatever the verdict; `adapters promote` applies the gate. Ctrl-C
    stops after the current step and keeps the run for --resume. Several processes train together
    with `torchrun --nproc-per-node 2 --no-python trunkline train …`.
    """
    settings = parse_settings(assignments)
    platform = options.with_plugins
    if method is not None and fuse is None:
        raise UsageError("--method needs --fuse.", "It says how two adapters are fused.")
    if fuse is not None:
        if recipes or config is not None or dry_run or resume is not None or report_to:
            raise UsageError(
                "--fuse is for --data alone, without a recipe, --config, --dry-run, --resume and "
                "--report-to.",
                "Train both adapters on their own, then `trunkline adapters merge TEXT IMAGE "
                "--name NAME --fuse text+image`.",
            )
        _train_fused(
            platform, data, name, columns, template, method or "average", settings, as_json
        )
        return
    if len(recipes) > 1:
        alone = {"--data": data, "--config": config, "--dry-run": dry_run, "--resume": resume}
        if given := next((option for option, value in alone.items() if value), None):
            raise UsageError(f"{given} is for one training.", "Name one recipe, or none.")
        _train_together(platform, recipes, report_to, settings, as_json)
        return
    recipe = recipes[0] if recipes else None
    chosen = _chosen_recipe(recipe, data, config, name, template, columns)
    if dry_run and resume is not None:
        raise UsageError("--dry-run and --resume can't be combined.", "Leave out one of them.")
    if resume is None:
        _note_restrictions(platform.training_job(chosen, settings))
        _note_reads(chosen)
    if dry_run:
        _dry_run(platform, chosen, settings, as_json)
        return
    if not is_first():
        with suppress(StepsTakenError):
            platform.train(
                chosen,
                resume=resume,
                listener=NoProgress(),
                should_stop=lambda: False,
                report_to=(),
                **settings,
            )
        return
    if processes() == 1 and (warning := contention_warning()) is not None:
        note(warning)
    with working() as listener, stop_on_interrupt(listener) as should_stop:
        listener.stage("opening the base")
        run = platform.train(
            chosen,
            resume=resume,
            listener=listener,
            should_stop=should_stop,
            report_to=report_to,
            **settings,
        )
    if as_json:
        print_json(_values(run))
        return
    _print_result(run)


def _train_together(
    platform: Platform,
    recipes: Sequence[str],
    report_to: tuple[str, ...],
    settings: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Train several recipes at once and print each; exit with 1 if one of them failed."""
    _note_restrictions(*(platform.training_job(recipe, settings) for recipe in recipes))
    if (warning := contention_warning()) is not None:
        note(warning)
    with working() as listener, stop_on_interrupt(listener) as should_stop:
        listener.stage("opening the base")
        outcomes = platform.train_together(
            recipes, listener=listener, should_stop=should_stop, report_to=report_to, **settings
        )
    done = [one for one in outcomes if not isinstance(one, Exception)]
    failed = [one for one in outcomes if isinstance(one, Exception)]
    if as_json:
        print_json([_values(run) for run in done])
    else:
        for run in done:
            heading(run.version.ref.adapter)
            _print_result(run)
    for error in failed:
        if error is failed[-1] or not isinstance(error, TrunklineError):
            raise error
        report(error)


def _train_fused(
    platform: Platform,
    data: Path | None,
    name: str | None,
    columns: dict[str, Any],
    template: str | None,
    method: str,
    settings: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Train NAME-text and NAME-image on the same rows, and print them and their fusion."""
    if data is None or name is None:
        raise UsageError(
            "--fuse needs --data and --name.", "Name rows that have a text and a picture."
        )
    columns = {"text": "text", **columns}
    text = make_own_recipe(f"{name}-text", data, {**columns, "reads": "text"}, template)
    image = make_own_recipe(f"{name}-image", data, {**columns, "reads": "image"})
    own = _settings_of_halves(settings)
    platform.training_job(text, own["text"])  # refuse wrong settings before anything is trained
    platform.training_job(image, own["image"])
    if (warning := contention_warning()) is not None:
        note(warning)
    with working() as listener, stop_on_interrupt(listener) as should_stop:
        listener.stage("opening the bases")
        *runs, fused = platform.files.train_fused(
            text,
            image,
            name,
            method=cast("FusionMethod", method),
            listener=listener,
            should_stop=should_stop,
            text_settings=own["text"],
            image_settings=own["image"],
        )
    if not as_json:
        for run in runs:
            heading(run.version.ref.adapter)
            _print_result(run)
        heading(str(fused.version.ref))
    print_fusion(fused, as_json)
    if not as_json:
        note(f'Try it:     trunkline predict {fused.version.ref} "a text" picture.jpg')
        note(f"Promote it: trunkline adapters promote {fused.version.ref}")


def _settings_of_halves(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of both adapters: ``text.r`` is for one, ``r`` for both."""
    own: dict[str, dict[str, Any]] = {"text": {}, "image": {}}
    for key, value in settings.items():
        half, dot, name = key.partition(".")
        if dot and half in own:
            own[half][name] = value
        else:
            for one in own.values():
                one.setdefault(key, value)
    return own


def _note_reads(recipe: str | RecipeConfig) -> None:
    """Say which half of rows with a text and a picture is read."""
    if isinstance(recipe, str) or (data := recipe.data) is None or data.image is None:
        return
    if not is_first():
        return
    if data.reads is not None:
        read, unread = ("text", "picture") if data.reads == "text" else ("picture", "text")
        note(f"The adapter reads the {read} of each row, not the {unread}; --fuse reads both.")
        return
    from trunkline.data.readers import read_columns

    if "text" in read_columns(Path(data.file), data.options):
        note("The column 'text' is not read: the adapter reads the pictures; --fuse reads both.")


def _note_restrictions(*jobs: TrainingJob) -> None:
    """Say once what the licenses of the datasets forbid."""
    for job in {job.dataset.name: job for job in jobs}.values():
        if is_first() and (license := job.dataset.restricted_license) is not None:
            note(f"{job.dataset.name} is {license}")


def _values(run: TrainingResult) -> dict[str, Any]:
    return {
        "run": run.number,
        "version": run.version,
        "adapter": str(run.version.ref),
        "report": run.report,
        "evaluation_report": run.evaluation_report,
    }


def _print_result(run: TrainingResult) -> None:
    print_report(run.report, run.evaluation_report.metric)
    print_evaluation_report(run.evaluation_report)
    heading(f"Run {run.number} published {run.version.ref} ({short_digest(run.version.digest)})")
    verb = "generate" if run.version.task == "generation" else "predict"
    ranked = " --candidate A --candidate B" if run.version.task == "ranking" else ""
    example = "picture.jpg" if run.report["lengths"] is None else '"a text"'
    note(f"Try it:     trunkline {verb} {run.version.ref} {example}{ranked}")
    note(f"Promote it: trunkline adapters promote {run.version.ref}")


def _chosen_recipe(
    recipe: str | None,
    data: Path | None,
    config: Path | None,
    name: str | None,
    template: str | None,
    columns: dict[str, Any],
) -> str | RecipeConfig:
    """The name of a plugin's recipe, or the recipe that the options describe."""
    from trunkline.training.config import read_config

    only_data = [option_name(field) for field in columns]
    only_data += [
        f"--{key}" for key, value in {"name": name, "template": template}.items() if value
    ]
    if data is None and only_data:
        raise UsageError(f"{only_data[0]} needs --data.", "It describes your own file of rows.")
    given = [value for value in (recipe, data, config) if value is not None]
    if len(given) != 1:
        raise UsageError(
            "RECIPE, --data and --config can't be combined."
            if given
            else "What is to be trained is missing.",
            "Name a recipe (`trunkline recipes list`), --data FILE or --config FILE.",
        )
    if config is not None:
        return read_config(config)
    if recipe is not None:
        return recipe
    assert data is not None
    if name is None:
        raise UsageError("--data needs --name.", f"For example --name {own_name(data)}.")
    return make_own_recipe(name, data, columns, template)


def print_report(report: Mapping[str, Any], metric: str) -> None:
    """Write what a run read, dropped and trained on, and how long it took."""
    data, proof = report["data"], report["proof"]
    steps = f"{report['steps']:,} of {report['total_steps']:,}"
    if report["steps"] < report["total_steps"]:
        steps += " (stopped early)"
    if report["best_score"] is not None:
        steps += (
            f"; best at {report['best_step']:,}: {metric} "
            f"{figure(report['best_score'])} on validation"
        )
    print_fields(
        [
            ("rows", rows_text(data)),
            ("near-duplicates", f"{data['near_duplicates']:,} test rows have one in train"),
            ("parts", f"{counts(data['parts'])} (groups: {counts(data['groups'])})"),
            ("augmented", f"{data['augmented']:,} rows" if data["augmented"] else None),
            _amount(report, "_trained", " trained on"),
            ("prompts", lengths_text(report["lengths"]) if report["lengths"] else None),
            ("steps", steps),
            (
                "proof",
                f"reloaded, {proof['rows']} rows: {proof['to_trained']:.2%} from the trained "
                f"model, {proof['to_base']:.2%} from the base"
                if proof
                else None,
            ),
            (
                "took",
                f"{duration(report['seconds'])}, training {duration(report['train_seconds'])}",
            ),
        ]
    )


def _amount(counted: Mapping[str, Any], end: str = "", suffix: str = "") -> tuple[str, str]:
    """The line on the tokens or the pictures of a run or a plan."""
    if (size := counted.get("picture_size")) is not None:
        pictures = counted[f"pictures{end}"]
        return "pictures", f"{pictures:,}{suffix}; {size[1]:,} × {size[0]:,} pixels"
    tokens = counted[f"tokens{end}"]
    return "tokens", f"{tokens:,}{suffix}; longest example {counted['longest']:,}"


def rows_text(data: Mapping[str, Any]) -> str:
    """``65 read, 63 kept; dropped: empty text 1; 1 duplicate; 0 label conflicts``."""
    dropped = f"dropped: {counts(data['dropped'])}" if data["dropped"] else "dropped 0"
    return (
        f"{data['read']:,} read, {data['kept']:,} kept; {dropped}; "
        f"duplicates {data['duplicated']:,}; label conflicts {data['label_conflicts']:,}"
        + (f"; cleaned labels {data['labels_cleaned']:,}" if data["labels_cleaned"] else "")
        + (f"; similar labels {len(data['similar_labels']):,}" if data["similar_labels"] else "")
    )


def _dry_run(
    platform: Platform, recipe: str | RecipeConfig, settings: Mapping[str, Any], as_json: bool
) -> None:
    with working() as listener:
        listener.stage("reading data, building the adapter, timing a step")
        plan = platform.plan(recipe, **settings)
    if as_json:
        print_json(plan)
        return
    print_recipe(platform.training_job(recipe, settings))
    _print_plan(plan)


def _print_plan(plan: TrainingPlan) -> None:
    heading("Estimated cost; nothing was trained or written")
    parts = plan.data["parts"]
    print_fields(
        [
            ("base", plan.base),
            ("rows", rows_text(plan.data)),
            ("parts", f"{counts(parts)} (groups: {counts(plan.data['groups'])})"),
            ("steps", f"{plan.steps:,}"),
            _amount(plan.to_json()),
            ("prompts", lengths_text(plan.lengths) if plan.lengths else None),
            (
                "adapter",
                f"{plan.trainable_parameters:,} parameters, {bytes_text(plan.adapter_bytes)}",
            ),
            (
                "computation",
                f"at most {plan.training_flops:.2g} FLOPs" if plan.training_flops else None,
            ),
            (
                "time",
                f"about {duration(plan.seconds)}, from this recipe's last run in this workspace"
                if plan.measured == "run"
                else f"about {duration(plan.seconds)} for the steps, from one timed step; "
                "validation and evaluation come on top",
            ),
        ]
    )

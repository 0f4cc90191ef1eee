"""``trunkline eval``: evaluate a version again, or a recipe over folds."""

from __future__ import annotations

import click

from trunkline.cli.command import Command
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import figure, heading, json_option, plain, print_json, print_table
from trunkline.cli.progress import stop_on_interrupt, working
from trunkline.cli.report_view import print_evaluation_report
from trunkline.cli.train import parsed, set_option
from trunkline.errors import UsageError


@click.command(
    "eval",
    cls=Command,
    short_help="Evaluate a version again, or a recipe over folds.",
    example="trunkline eval medical/icd10-chapter",
)
@click.argument("name", metavar="REF_OR_RECIPE")
@click.option(
    "--folds",
    type=int,
    metavar="N",
    help="Train the recipe N times, each group held out once; publishes nothing.",
)
@set_option
@json_option
@with_globals
def evaluate(
    said: Globals, name: str, folds: int | None, assignments: tuple[str, ...], as_json: bool
) -> None:
    """Evaluate a version on its held-out rows again, or a recipe over folds, beside the
    baselines."""
    if folds is None:
        if assignments:
            raise UsageError(
                "A version keeps the settings that it was trained with.",
                "--set goes with --folds; or train anew with `trunkline train`.",
            )
        _version(said, name, as_json)
        return
    _folds(said, name, folds, assignments, as_json)


def _version(said: Globals, name: str, as_json: bool) -> None:
    version = said.version(name)
    platform = said.with_plugins
    with working() as listener:
        listener.stage("opening the base")
        evaluation_report = platform.evaluate(str(version.ref), listener=listener)
    if as_json:
        print_json(
            {
                "adapter": str(version.ref),
                "digest": version.digest,
                "evaluation_report": evaluation_report,
            }
        )
        return
    print_evaluation_report(evaluation_report, slices=True)


def _folds(
    said: Globals, recipe: str, folds: int, assignments: tuple[str, ...], as_json: bool
) -> None:
    if "@" in recipe:
        raise UsageError(
            f"Folds are of a recipe, and {recipe!r} names a version.",
            f"`trunkline eval {recipe.partition('@')[0]} --folds {folds}`",
        )
    settings = parsed(assignments)
    platform = said.with_plugins
    platform.training_job(recipe, settings)
    with working() as listener, stop_on_interrupt(listener) as asked:
        listener.stage("opening the base")
        result = platform.cross_validate(
            recipe, folds, listener=listener, should_stop=asked, **settings
        )
    if as_json:
        print_json({"recipe": recipe, **plain(result)})
        return
    heading(f"{recipe}, {folds} folds; each group was held out once")
    print_table(
        ["fold", "test rows", "steps", "best step", "best on validation"],
        [
            (
                number,
                f"{fold['test_rows']:,}",
                fold["steps"],
                fold["best_step"],
                "-" if fold["best_score"] is None else figure(fold["best_score"]),
            )
            for number, fold in enumerate(result.per_fold, start=1)
        ],
        right=("fold", "test rows", "steps", "best step", "best on validation"),
    )
    print_evaluation_report(result.evaluation_report, slices=True)

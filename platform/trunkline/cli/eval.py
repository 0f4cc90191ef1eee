"""``trunkline eval``, and the evaluation report that other commands print too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Command
from trunkline.cli.output import (
    figure,
    heading,
    interval,
    json_option,
    plain,
    print_json,
    print_table,
    width,
)
from trunkline.cli.progress import stop_on_interrupt, working
from trunkline.cli.recipes import parse_settings, set_option
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.errors import UsageError

if TYPE_CHECKING:
    from trunkline.evaluation.intervals import Estimate
    from trunkline.evaluation.report import EvaluationReport
    from trunkline.registry.records import ScoreSummary

_WIDE = 120
_VERDICTS = {
    "beats": "beats the baseline",
    "ties": "ties with the baseline",
    "loses": "loses to the baseline",
}


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
    help="Cross-validate: train the recipe N times, each group held out once; publish nothing.",
)
@set_option
@json_option
@pass_options
def evaluate(
    options: GlobalOptions,
    name: str,
    folds: int | None,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Evaluate a version on its held-out rows, or a recipe over folds, against the baselines."""
    if folds is None:
        if assignments:
            raise UsageError(
                "A version keeps the settings that it was trained with.",
                "Use --set with --folds, or train again with `trunkline train`.",
            )
        _evaluate_version(options, name, as_json)
        return
    _evaluate_folds(options, name, folds, assignments, as_json)


def _evaluate_version(options: GlobalOptions, name: str, as_json: bool) -> None:
    version = options.version(name)
    platform = options.with_plugins
    with working() as listener:
        listener.stage("opening the base")
        report = platform.evaluate(str(version.ref), listener=listener)
    if as_json:
        print_json(
            {
                "adapter": str(version.ref),
                "digest": version.digest,
                "evaluation_report": report,
            }
        )
        return
    print_evaluation_report(report, slices=True)


def _evaluate_folds(
    options: GlobalOptions, recipe: str, folds: int, assignments: tuple[str, ...], as_json: bool
) -> None:
    if "@" in recipe:
        raise UsageError(
            f"--folds needs a recipe, and {recipe!r} names a version.",
            f"`trunkline eval {recipe.partition('@')[0]} --folds {folds}`",
        )
    settings = parse_settings(assignments)
    platform = options.with_plugins
    platform.training_job(recipe, settings)
    with working() as listener, stop_on_interrupt(listener) as should_stop:
        listener.stage("opening the base")
        result = platform.cross_validate(
            recipe, folds, listener=listener, should_stop=should_stop, **settings
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


def print_evaluation_report(report: EvaluationReport, *, slices: bool = False) -> None:
    """Write the scores next to the baselines, the verdict, and optionally the slices."""
    heading(
        f"Evaluated on {report.rows:,} held-out rows in {report.groups:,} groups "
        "(95 % intervals, groups resampled)"
    )
    metrics = list(report.scores)
    lines = {"this adapter": report.scores} | {
        f"baseline {name}": scores for name, scores in report.baselines.items()
    }
    print_table(
        ["", *metrics],
        [[name, *cells] for name, cells in zip(lines, _cells(list(lines.values())), strict=True)],
        fold=metrics,
    )
    for name, detail in report.baseline_details.items():
        if detail:
            click.echo(f"baseline {name}: {detail}")
    click.echo(verdict_sentence(report))
    if slices and report.slices:
        heading(f"Slices, by {report.metric}")
        print_table(
            ["slice", "value", "rows", report.metric],
            [(one.slice, one.value, f"{one.rows:,}", figure(one.score)) for one in report.slices],
            right=("rows", report.metric),
            fold=("value",),
        )


def verdict_sentence(report: EvaluationReport) -> str:
    """``It beats the baseline tfidf: accuracy 0.905 against 0.763, difference +0.142 [...].``"""
    from trunkline.evaluation.intervals import MIN_GROUPS

    score = report.score.value
    baseline = report.baselines[report.best_baseline][report.metric].value
    direction = "" if report.higher_is_better else " (lower is better)"
    few = ""
    if report.groups < MIN_GROUPS:
        few = f" There are {report.groups} groups; a verdict needs {MIN_GROUPS}."
    return (
        f"It {_VERDICTS[report.verdict]} {report.best_baseline}: {report.metric} "
        f"{figure(score)} against {figure(baseline)}{direction}, "
        f"difference {interval(report.difference, sign=True)}.{few}"
    )


def score_text(score: ScoreSummary | None) -> str:
    """The deciding metric in a listing: ``accuracy 0.905 [0.862, 0.941]``."""
    if score is None:
        return "-"
    between = " " if width() >= _WIDE else "\n"
    return f"{score.metric} {interval(score, between=between)}"


def _cells(lines: list[dict[str, Estimate]]) -> list[list[str]]:
    """Each cell on one line if the table fits, else with the interval below its figure."""
    flat = [[interval(score) for score in scores.values()] for scores in lines]
    columns = [
        max(len(name), *(len(cell) for cell in cells)) + 2
        for name, cells in zip(lines[0], zip(*flat, strict=True), strict=True)
    ]
    if sum(columns) + 20 <= width():
        return flat
    return [[interval(score, between="\n") for score in scores.values()] for scores in lines]

"""``trunkline eval``, and the evaluation report that other commands print too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trunkline.cli.command import Command
from trunkline.cli.output import (
    counted,
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
    from trunkline.evaluation.calibration import CalibrationReport
    from trunkline.evaluation.intervals import Estimate
    from trunkline.evaluation.report import EvaluationReport
    from trunkline.registry.records import ScoreSummary
    from trunkline.training.config import RecipeConfig

_FLIPPED = 5
_WIDE = 120
_HEADED = (
    "Its head answers its own task only, so no answer is affected by this. The figures compare the "
    "language-model head, which reads the hidden states that the adapter changes."
)
_VERBS = {"beats": "beats", "ties": "ties with", "loses": "loses to"}
_VERDICTS = {verdict: f"{verb} the baseline" for verdict, verb in _VERBS.items()}


@click.command(
    "eval",
    cls=Command,
    short_help="Evaluate a version again, or a recipe over folds.",
    example=(
        "trunkline eval medical/icd10-chapter",
        "trunkline eval medical/icd10-chapter --retention",
    ),
)
@click.argument("name", metavar="[REF_OR_RECIPE]", required=False)
@click.option(
    "--against",
    metavar="REF|BASELINE",
    help="Compare the version with another one, with the best `baseline`, or with a baseline by "
    "name; on the same rows.",
)
@click.option(
    "--ensemble",
    multiple=True,
    metavar="REF",
    help="Evaluate the average with another version of the same rows; may be repeated.",
)
@click.option(
    "--retention",
    is_flag=True,
    help="Measure what the version changes in general English, not its own task.",
)
@click.option(
    "--folds",
    type=int,
    metavar="N",
    help="Cross-validate: train the recipe N times, each group held out once; publish nothing.",
)
@click.option(
    "--seeds",
    type=int,
    metavar="N",
    help="Train the recipe with N seeds and show the spread; publish nothing.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --folds or --seeds: a recipe in YAML.",
)
@set_option
@json_option
@pass_options
def evaluate(
    options: GlobalOptions,
    name: str | None,
    against: str | None,
    ensemble: tuple[str, ...],
    retention: bool,
    folds: int | None,
    seeds: int | None,
    config: Path | None,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Evaluate a version on its held-out rows, or a recipe over folds or seeds.

    Either is compared with the baselines. With --retention, the base with the version and the bare
    base read the same general texts; nothing is recorded.
    """
    modes = {
        "--against": against, "--ensemble": ensemble or None, "--retention": retention or None,
        "--folds": folds, "--seeds": seeds,
    }  # fmt: skip
    given = [option for option, value in modes.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} can't be combined.", "Use one of them.")
    if folds is None and seeds is None:
        if name is None or config is not None:
            raise UsageError(
                "--config needs --folds or --seeds." if config else "REF_OR_RECIPE is missing.",
                "Name a version: `trunkline eval REF`.",
            )
        if assignments:
            raise UsageError(
                "A version keeps the settings that it was trained with.",
                "Use --set with --folds or --seeds, or train again with `trunkline train`.",
            )
        if retention:
            _print_retention(options, name, as_json)
        elif against is None:
            _evaluate_version(options, name, ensemble, as_json)
        else:
            _compare(options, name, against, as_json)
        return
    recipe = _recipe(name, config, given[0])
    settings = parse_settings(assignments)
    if folds is not None:
        _evaluate_folds(options, recipe, folds, settings, as_json)
    elif seeds is not None:
        _repeat_seeds(options, recipe, seeds, settings, as_json)


def _recipe(name: str | None, config: Path | None, option: str) -> str | RecipeConfig:
    from trunkline.training.config import read_config

    if (name is None) == (config is None):
        raise UsageError(
            f"{option} needs a recipe: its name, or a file in YAML.",
            f"`trunkline eval RECIPE {option} 5` or `trunkline eval --config FILE {option} 5`",
        )
    if name is None:
        assert config is not None
        return read_config(config)
    if "@" in name:
        raise UsageError(
            f"{option} needs a recipe, and {name!r} names a version.",
            f"`trunkline eval {name.partition('@')[0]} {option} 5`",
        )
    return name


def _print_retention(options: GlobalOptions, name: str, as_json: bool) -> None:
    """Measure the retention of a version and write the report."""
    from trunkline.evaluation.general_texts import GENERAL_TEXTS
    from trunkline.evaluation.retention import measure_retention

    version = options.version(name)
    platform = options.platform
    with working("texts") as listener:
        listener.stage("opening the base")
        artifact = platform.resolve(str(version.ref)).artifact()
        assert artifact is not None
        engine = platform.engine
        listener.stage("reading general texts")
        report = measure_retention(
            engine,
            artifact,
            on_done=lambda done: listener.progress(done, len(GENERAL_TEXTS), {}),
        )
    headed = version.task != "generation"
    if as_json:
        print_json(
            {
                "adapter": str(version.ref),
                "digest": version.digest,
                "task": version.task,
                **plain(report),
            }
        )
        return
    heading(
        f"{version.ref} on {report.texts} general English texts, {report.tokens:,} tokens "
        "(95 % intervals, texts resampled)"
    )
    base = report.base_perplexity
    print_table(
        ["per token", "base", "adapter", "adapter minus base"],
        [
            (
                "log likelihood",
                figure(report.base_log_likelihood.value),
                interval(report.log_likelihood),
                interval(report.difference, sign=True),
            ),
            ("perplexity", figure(base.value), interval(report.perplexity), "-"),
            ("same most likely token", "-", interval(report.agreement), "-"),
            ("KL divergence, nats", "-", interval(report.kl_divergence), "-"),
        ],
        right=("base",),
    )
    click.echo(
        "It changes nothing: both distributions are equal."
        if report.kl_divergence.value == 0
        else f"The adapter's perplexity is {report.perplexity.value / base.value:.3g} times the "
        "base's."
    )
    if headed:
        click.echo(_HEADED)


def _evaluate_version(
    options: GlobalOptions, name: str, ensemble: tuple[str, ...], as_json: bool
) -> None:
    version = options.version(name)
    platform = options.with_plugins
    with working() as listener:
        listener.stage("opening the base")
        report = platform.evaluate(str(version.ref), ensemble=ensemble, listener=listener)
    if as_json:
        print_json(
            {
                "adapter": str(version.ref),
                "digest": version.digest,
                **({"ensemble": list(ensemble)} if ensemble else {}),
                "evaluation_report": report,
            }
        )
        return
    print_evaluation_report(report, slices=True)


def _compare(options: GlobalOptions, name: str, against: str, as_json: bool) -> None:
    version = options.version(name)
    with working() as listener:
        listener.stage("comparing")
        result = options.with_plugins.compare(str(version.ref), against, listener=listener)
    if as_json:
        print_json({"adapter": str(version.ref), **plain(result)})
        return
    heading(
        f"{version.ref} against {result.against}, {result.rows:,} rows in {result.groups:,} groups "
        "(95 % intervals, groups resampled)"
    )
    print_table(
        ["metric", "this", "other", "difference"],
        [
            (
                metric,
                figure(result.scores[metric].value),
                figure(result.other_scores[metric].value),
                interval(difference, sign=True),
            )
            for metric, difference in result.differences.items()
        ],
        right=("this", "other"),
    )
    if (test := result.mcnemar) is not None:
        click.echo(
            f"McNemar: {counted(test.gained, 'row')} only this one has right, "
            f"{counted(test.lost, 'row')} only the other; p = {test.p_value:.3g}, taking the rows "
            "as independent."
        )
        for label, rows in (("gained", result.gained), ("lost", result.lost)):
            if rows:
                more = f" and {len(rows) - _FLIPPED:,} more" if len(rows) > _FLIPPED else ""
                click.echo(f"{label}: {', '.join(rows[:_FLIPPED])}{more}")
    click.echo(f"It {_VERBS[result.verdict]} {result.against} by {result.metric}.")


def _evaluate_folds(
    options: GlobalOptions,
    recipe: str | RecipeConfig,
    folds: int,
    settings: Mapping[str, Any],
    as_json: bool,
) -> None:
    platform = options.with_plugins
    job = platform.training_job(recipe, settings)
    with working() as listener, stop_on_interrupt(listener) as should_stop:
        listener.stage("opening the base")
        result = platform.cross_validate(
            recipe, folds, listener=listener, should_stop=should_stop, **settings
        )
    if as_json:
        print_json({"recipe": job.recipe.name, **plain(result)})
        return
    heading(f"{job.recipe.name}, {folds} folds; each group was held out once")
    columns = ("fold", "test rows", "steps", "best step", "best on validation")
    print_table(
        list(columns),
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
        right=columns,
    )
    print_evaluation_report(result.evaluation_report, slices=True)


def _repeat_seeds(
    options: GlobalOptions,
    recipe: str | RecipeConfig,
    seeds: int,
    settings: Mapping[str, Any],
    as_json: bool,
) -> None:
    platform = options.with_plugins
    job = platform.training_job(recipe, settings)
    with working() as listener, stop_on_interrupt(listener) as should_stop:
        listener.stage("opening the base")
        result = platform.repeat(
            recipe, seeds, listener=listener, should_stop=should_stop, **settings
        )
    if as_json:
        print_json({"recipe": job.recipe.name, **plain(result)})
        return
    first = result.reports[0]
    best = first.baselines[first.best_baseline]
    heading(f"{job.recipe.name}, seeds 0 to {seeds - 1} on one split of {first.rows:,} test rows")
    print_table(
        ["metric", "mean", "deviation", "lowest", "highest", f"baseline {first.best_baseline}"],
        [
            (
                metric,
                *(figure(value) for value in (one.mean, one.deviation, one.low, one.high)),
                figure(best[metric].value),
            )
            for metric, one in result.spread.items()
        ],
        right=("mean", "deviation", "lowest", "highest", f"baseline {first.best_baseline}"),
    )
    verdicts = Counter(report.verdict for report in result.reports)
    shown = ", ".join(f"{_VERDICTS[name]} {verdicts[name]} times" for name in _VERDICTS)
    click.echo(f"Of {seeds} trainings: {shown}.")


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
    for line in calibration_lines(report.calibration):
        click.echo(line)
    if slices and report.slices:
        heading(f"Slices, by {report.metric}")
        print_table(
            ["slice", "value", "rows", report.metric],
            [(one.slice, one.value, f"{one.rows:,}", figure(one.score)) for one in report.slices],
            right=("rows", report.metric),
            fold=("value",),
        )


def calibration_lines(calibration: CalibrationReport | None) -> Iterator[str]:
    """How far the probabilities can be believed, in sentences; none for an uncalibrated version."""
    if calibration is None:
        return
    yield (
        f"Expected calibration error {figure(calibration.error)}, without the temperature of "
        f"{calibration.temperature:.2f} {figure(calibration.error_before)}."
    )
    for one in calibration.abstention:
        reached = "-" if one.precision is None else f"{one.precision:.3f}"
        yield (
            f"--abstain {one.wanted:g}: {one.answered:.0%} of the rows get a label, of which "
            f"{reached} are right."
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

"""A evaluation on the terminal: one table, one sentence, the slices.

Owns: how a verdict reads; train, eval, adapters show and runs show share it.
Must not know: where the evaluation comes from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from trunkline.cli.output import figure, heading, interval, print_table, width
from trunkline.evaluation.intervals import MIN_GROUPS

if TYPE_CHECKING:
    from trunkline.evaluation.intervals import Estimate
    from trunkline.evaluation.report import EvaluationReport
    from trunkline.registry.records import ScoreSummary

_WIDE = 120
_WORDS = {
    "beats": "beats the baseline",
    "ties": "ties with the baseline",
    "loses": "loses to the baseline",
}


def print_evaluation_report(report: EvaluationReport, *, slices: bool = False) -> None:
    """Write the scores beside the baselines, the verdict, and if wanted the slices."""
    heading(
        f"Evaluated on {report.rows:,} held-out rows in {report.groups:,} groups "
        "(95 % intervals, groups resampled)"
    )
    names = list(report.scores)
    lines = {"this adapter": report.scores} | {
        f"baseline {name}": scores for name, scores in report.baselines.items()
    }
    heads = ["", *names]
    print_table(
        heads,
        [[name, *cells] for name, cells in zip(lines, _cells(list(lines.values())), strict=True)],
        fold=names,
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
    ours = report.score.value
    theirs = report.baselines[report.best_baseline][report.metric].value
    direction = "" if report.higher_is_better else " (lower is better)"
    few = ""
    if report.groups < MIN_GROUPS:
        few = f" There are {report.groups} groups; a verdict needs {MIN_GROUPS}."
    return (
        f"It {_WORDS[report.verdict]} {report.best_baseline}: {report.metric} "
        f"{figure(ours)} against {figure(theirs)}{direction}, "
        f"difference {interval(report.difference, sign=True)}.{few}"
    )


def standing_text(standing: ScoreSummary | None) -> str:
    """The deciding metric in a listing: ``accuracy 0.905 [0.862, 0.941]``."""
    if standing is None:
        return "-"
    between = " " if width() >= _WIDE else "\n"
    return f"{standing.metric} {interval(standing, between=between)}"


def _cells(lines: list[dict[str, Estimate]]) -> list[list[str]]:
    """One line a cell if the table fits, else the interval below its figure."""
    flat = [[interval(score) for score in scores.values()] for scores in lines]
    columns = [max(len(name), *(len(cell) for cell in cells)) + 2 for name, cells in
               zip(lines[0], zip(*flat, strict=True), strict=True)]  # fmt: skip
    if sum(columns) + 20 <= width():
        return flat
    return [[interval(score, between="\n") for score in scores.values()] for scores in lines]

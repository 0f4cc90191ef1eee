"""A judgement on the terminal: one table, one sentence, the slices.

Owns: how a verdict reads; train, eval, adapters show and runs show share it.
Must not know: where the judgement comes from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from trunkline.cli.output import figure, heading, interval, print_table, width
from trunkline.evaluation.intervals import LEAST_GROUPS

if TYPE_CHECKING:
    from trunkline.evaluation.intervals import Estimate
    from trunkline.evaluation.judgement import Judgement
    from trunkline.registry.records import Standing

_WIDE = 120
_WORDS = {"beats": "beats the floor", "ties": "ties with the floor", "loses": "loses to the floor"}


def print_judgement(judgement: Judgement, *, slices: bool = False) -> None:
    """Write the scores beside the floors, the verdict, and if wanted the slices."""
    heading(
        f"Judged on {judgement.rows:,} held-out rows in {judgement.groups:,} groups "
        "(95 % intervals, groups resampled)"
    )
    names = list(judgement.scores)
    lines = {"this adapter": judgement.scores} | {
        f"floor {name}": scores for name, scores in judgement.floors.items()
    }
    heads = ["", *names]
    print_table(
        heads,
        [[name, *cells] for name, cells in zip(lines, _cells(list(lines.values())), strict=True)],
        fold=names,
    )
    for name, detail in judgement.floor_details.items():
        if detail:
            click.echo(f"floor {name}: {detail}")
    click.echo(verdict_sentence(judgement))
    if slices and judgement.slices:
        heading(f"Slices, by {judgement.metric}")
        print_table(
            ["slice", "value", "rows", judgement.metric],
            [
                (one.slice, one.value, f"{one.rows:,}", figure(one.score))
                for one in judgement.slices
            ],
            right=("rows", judgement.metric),
            fold=("value",),
        )


def verdict_sentence(judgement: Judgement) -> str:
    """``It beats the floor tfidf: accuracy 0.905 against 0.763, difference +0.142 [...].``"""
    ours = judgement.score.value
    theirs = judgement.floors[judgement.best_floor][judgement.metric].value
    direction = "" if judgement.higher_is_better else " (lower is better)"
    few = ""
    if judgement.groups < LEAST_GROUPS:
        few = f" There are {judgement.groups} groups; a verdict needs {LEAST_GROUPS}."
    return (
        f"It {_WORDS[judgement.verdict]} {judgement.best_floor}: {judgement.metric} "
        f"{figure(ours)} against {figure(theirs)}{direction}, "
        f"difference {interval(judgement.difference, sign=True)}.{few}"
    )


def standing_text(standing: Standing | None) -> str:
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

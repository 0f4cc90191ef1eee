"""``adapters diff`` and ``runs diff``: what differs between two versions or two runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from trunkline.cli.command import Command
from trunkline.cli.options import Globals, run_number, with_globals
from trunkline.cli.output import (
    figure,
    heading,
    json_option,
    note,
    plain,
    print_json,
    print_table,
)
from trunkline.refs import Ref

if TYPE_CHECKING:
    from trunkline.registry.lineage import LineageDiff


@click.command(
    "diff",
    cls=Command,
    example="trunkline adapters diff finance/naics-sector@1 finance/naics-sector@2",
)
@click.argument("a")
@click.argument("b")
@json_option
@with_globals
def adapters_diff(said: Globals, a: str, b: str, as_json: bool) -> None:
    """Tell what differs between two versions: settings, data, base, environment, figures.

    What both have in common is left out. The difference of a figure is B minus A.
    """
    from trunkline.registry.lineage import diff

    registry = said.platform.registry
    left, right = (registry.lineage.of_version(Ref.parse(ref)) for ref in (a, b))
    _tell(diff(left, right), as_json)


@click.command(
    "diff",
    cls=Command,
    example="trunkline runs diff 1 2",
)
@click.argument("a", type=run_number)
@click.argument("b", type=run_number)
@json_option
@with_globals
def runs_diff(said: Globals, a: int, b: int, as_json: bool) -> None:
    """Tell what differs between two runs: settings, data, base, environment, report, figures.

    A and B are numbers of runs, written 3 or run/3. What both have in common is left out. The
    difference of a figure is B minus A.
    """
    from trunkline.registry.lineage import diff

    registry = said.platform.registry
    left, right = (registry.lineage.of_run(number) for number in (a, b))
    _tell(diff(left, right), as_json)


def _tell(found: LineageDiff, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    heads = [found.left, found.right]
    if found.fields:
        print_table(
            ["what", *heads],
            [(one.name, _value(one.left), _value(one.right)) for one in found.fields],
            fold=heads,
        )
    else:
        note("Nothing differs but the figures, if they do.")
    if found.metrics:
        heading("Figures")
        print_table(
            ["figure", *heads, "difference"],
            [
                (
                    one.name,
                    _figure(one.left),
                    _figure(one.right),
                    "-" if one.difference is None else figure(one.difference, sign=True),
                )
                for one in found.metrics
            ],
            right=(*heads, "difference"),
        )
    if any(one.difference is not None and not one.same_rows for one in found.metrics):
        note("The figures are of different rows, so their difference says little.")


def _figure(value: float | None) -> str:
    return "-" if value is None else figure(value)


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)

"""``trunkline adapters promote``: letting a version go live, and taking that back."""

from __future__ import annotations

import click

from trunkline.cli.command import Command
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import json_option, note, plain, print_json


@click.command(
    "promote",
    cls=Command,
    example="""
    $ trunkline adapters promote medical/icd10-chapter
    yes  beats the floor  (accuracy minus that of tfidf: +0.061 [+0.012, +0.103])
    medical/icd10-chapter  champion: none → 2

    $ trunkline adapters promote finance/naics-sector@1
    Error: The gate refuses finance/naics-sector@1: beats the floor: no (accuracy minus that of
    tfidf: +0.095 [+0.000, +0.188]).
    Hint: Train a better one, or `trunkline adapters promote finance/naics-sector@1 --force --reason
    "…"`.
    """,
)
@click.argument("ref")
@click.option("--alias", default="champion", show_default=True, help="The alias to move.")
@click.option("--force", is_flag=True, help="Move it though the gate says no; needs --reason.")
@click.option("--reason", default="", metavar="TEXT", help="Why; kept in the registry's events.")
@json_option
@with_globals
def promote(said: Globals, ref: str, alias: str, force: bool, reason: str, as_json: bool) -> None:
    """Move an alias to a version, if the gate of its recipe allows it.

    Without @ the newest version is meant.
    """
    moved = said.platform.promote(ref, alias, force=force, reason=reason)
    if as_json:
        print_json({"adapter": str(moved.version.ref), **plain(moved)})
        return
    for check in moved.checks:
        click.echo(f"{'yes' if check.passed else 'NO '}  {check.name}  ({check.figures})")
    if moved.forced:
        note(f"The gate says no; forced, because: {reason}")
    step = f"{moved.old or 'none'} → {moved.new}"
    if moved.old == moved.new:
        step = f"{moved.new} already"
    click.echo(f"{moved.version.ref.adapter}  {moved.alias}: {step}")

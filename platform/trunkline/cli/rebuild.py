"""``trunkline db rebuild``: a registry that was lost, made again from the artifacts.

Owns: its words and exit code. Must not know: what is read from an artifact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import counted, json_option, note, plain, print_fields, print_json
from trunkline.cli.progress import working
from trunkline.errors import IntegrityError

if TYPE_CHECKING:
    from trunkline.adapters.rebuild import RebuildResult


@click.command(
    "rebuild",
    cls=Command,
    example=Example("trunkline db rebuild", "writes"),
)
@json_option
@with_globals
def rebuild(said: Globals, as_json: bool) -> None:
    """Make a lost registry again out of what stands in the artifacts.

    Bases, datasets, runs' summaries, versions and cards come back. What only the database knew is
    lost, and the command says what that is. What is damaged is left out and named, the rest comes
    back, and the command exits 1. A registry that holds anything is left alone: if it is only
    damaged, `trunkline db restore` of a backup brings back everything.
    """
    from trunkline.adapters.rebuild import LOST, rebuild_registry

    platform = said.platform
    with working("artifacts") as listener:
        done = rebuild_registry(platform.store, listener=listener)
    for sentence in done.notes:
        note(sentence)
    note(f"Lost for good: {LOST}.")
    if as_json:
        print_json({**plain(done), "lost": LOST})
    else:
        print_fields(
            [
                ("bases", done.bases),
                ("datasets", done.datasets),
                ("runs", done.runs),
                ("versions", done.versions),
                ("left out", counted(len(done.skipped), "artifact") if done.skipped else None),
                ("cards", f"{done.cards} written anew"),
            ]
        )
    if done.skipped:
        _fail(done)


def _fail(done: RebuildResult) -> NoReturn:
    count = len(done.skipped)
    out_of = counted(done.versions + count, "artifact")
    raise IntegrityError(
        f"{count} of {out_of} {'was' if count == 1 else 'were'} left out; the rest was rebuilt.",
        "What was said above tells why. Bring those back from a copy and rebuild once more into an "
        "empty registry.",
    )

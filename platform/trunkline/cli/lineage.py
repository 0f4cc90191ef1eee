"""``trunkline lineage``: from an answer or a version back to everything that it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Command
from trunkline.cli.options import Globals, run_number, with_globals
from trunkline.cli.output import json_option, note, print_json
from trunkline.errors import UsageError
from trunkline.refs import BASE, Ref

if TYPE_CHECKING:
    from trunkline.registry.lineage import Lineage
    from trunkline.registry.registry import Registry


@click.command(
    "lineage",
    cls=Command,
    short_help="From an answer or a version back to everything behind it.",
    example="""
    $ trunkline lineage --request 5b0f6f0c0a6b4dd0a1f5a37d2c9b8e41
    medical/icd10-chapter@2
    ├── request 5b0f6f0c0a6b4dd0a1f5a37d2c9b8e41
    │   ├── at: 2026-11-21T22:10:03+00:00
    │   ├── asked: medical/icd10-chapter
    │   └── let live: champion: promoted from 1 to 2 by system:ada at 2026-11-21T22:05:31+00:00
    ├── version
    │   ├── digest: sha256:374e8fcf29327efbacd672f15de7f347042e651c4c5de9fe62ec7456dc2c21f5
    │   └── files: 3, 19.6 MB
    ├── base smollm2-135m
    ├── run 2 of medical/icd10-chapter: finished
    │   ├── settings: num_train_epochs=2, max_steps=150, …
    │   └── plugin: trunkline-medical 0.1.0
    ├── dataset medical/icd10-chapter
    │   ├── rows: bc376fb50efd47c8682aaa02b230adb51c1ab57afd88f610b9daece8c53a28c8
    │   └── split: f57aa57c0862e319dd4442cb23ec6d1abc06aab2393df41e773495193bdb336f
    ├── evaluations
    │   └── test, 2026-11-21T22:00:12+00:00
    │       └── accuracy: 0.853 [0.811, 0.892]
    ├── alias moves
    └── deployments
    …
    """,
)
@click.argument("what", required=False, metavar="[REF|sha256:…|run/N]")
@click.option(
    "--request",
    "request",
    metavar="ID",
    help="The id that came with an answer: its own, or that of the header x-request-id.",
)
@json_option
@with_globals
def lineage(said: Globals, what: str | None, request: str | None, as_json: bool) -> None:
    """Tell what stands behind an answer, a version, a digest or a run, as a tree.

    Version, base, run with settings and environment, dataset, evaluations, moves of aliases,
    deployments, tags and notes. Removed versions have their lineage still. Times are UTC. --json
    has everything, also what the tree shortens.
    """
    if (what is None) == (request is None):
        raise UsageError(
            "lineage wants one thing to trace.",
            "Name a version (domain/name@3), a digest (sha256:…), run/3, or --request ID.",
        )
    registry = said.platform.registry
    if request is not None:
        found = registry.lineage.of_request(request)
    else:
        found = _traced(registry, what or "")
    if as_json:
        print_json(found)
    else:
        from trunkline.cli.lineage_view import print_lineage

        print_lineage(found)
    _tell(found)


def _traced(registry: Registry, what: str) -> Lineage:
    if what.startswith("run/"):
        return registry.lineage.of_run(run_number(what))
    if what.startswith("sha256:"):
        return registry.lineage.of_digest(what)
    return registry.lineage.of_version(Ref.parse(what))


def _tell(found: Lineage) -> None:
    """What is missing, on stderr."""
    request, version = found.request, found.version
    if request is not None and request.version is None:
        note("No version was reached: the request ended before.")
    elif request is not None and request.version != BASE and version is None:
        note("This workspace's registry does not know that version.")
    for part in found.cut:
        known = version.ref if version is not None else None
        more = f": trunkline adapters history {known}" if known and part == "history" else ""
        note(f"There are more {part} than the newest that are told{more}.")

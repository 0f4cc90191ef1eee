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
    example='trunkline lineage --request "$REQUEST_ID"',
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
    for part in found.truncated:
        known = version.ref if version is not None else None
        more = f": trunkline adapters history {known}" if known and part == "history" else ""
        note(f"There are more {part} than the newest that are told{more}.")

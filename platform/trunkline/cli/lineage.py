"""``trunkline lineage``: from an answer back to the version, the run and the rows behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Command
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import json_option, moment, note, print_fields, print_json, took
from trunkline.errors import NotFoundError
from trunkline.refs import BASE, Ref

if TYPE_CHECKING:
    from trunkline.registry.records import RequestRecord, RunRecord, VersionRecord
    from trunkline.registry.store import Registry


@dataclass(frozen=True, slots=True)
class Lineage:
    """A request with what is known of its answer's origin; None where nothing is."""

    request: RequestRecord
    version: VersionRecord | None
    run: RunRecord | None


@click.command(
    "lineage",
    cls=Command,
    short_help="From an answer to its version, run and data.",
    example="""
    $ trunkline lineage --request 5b0f6f0c0a6b4dd0a1f5a37d2c9b8e41
    request  5b0f6f0c0a6b4dd0a1f5a37d2c9b8e41
    at       2026-11-21T22:10:03+00:00
    route    /v1/classify
    asked    medical/icd10-chapter
    key      4k2mw0qz
    status   200
    tokens   14 in, 0 out
    took     82 ms
    version  medical/icd10-chapter@2
    digest   sha256:374e8fcf29327efbacd672f15de7f347042e651c4c5de9fe62ec7456dc2c21f5
    aliases  champion
    run      2 of medical/icd10-chapter, finished, 2026-11-21 21:58
    plugin   trunkline-medical 0.1.0
    dataset  medical/icd10-chapter
    rows     bc376fb50efd47c8682aaa02b230adb51c1ab57afd88f610b9daece8c53a28c8
    split    f57aa57c0862e319dd4442cb23ec6d1abc06aab2393df41e773495193bdb336f
    base     smollm2-135m (81e285c179b0f7eafa4000990cbe8916e9fb16bd07206c3660276c13c3f712f0)
    """,
)
@click.option(
    "--request",
    "request",
    metavar="ID",
    required=True,
    help="The id that came with the answer: its own, or that of the header x-request-id.",
)
@json_option
@with_globals
def lineage(said: Globals, request: str, as_json: bool) -> None:
    """Say which version gave an answer, what it was trained on, and what points at it now."""
    found = _traced(said.platform.registry, request)
    if as_json:
        print_json(found)
        return
    _print(found)
    if found.request.version is None:
        note("No version was reached: the request ended before.")
    elif found.version is None and found.request.version != BASE:
        note("This workspace's registry does not know that version.")


def _request(registry: Registry, id: str) -> RequestRecord:
    """The request of an id, which an answer's body words as ``chatcmpl-…`` or ``cmpl-…``."""
    try:
        return registry.request(id)
    except NotFoundError:
        kind, dash, rest = id.partition("-")
        if not dash or kind not in ("chatcmpl", "cmpl"):
            raise
    return registry.request(rest)


def _traced(registry: Registry, id: str) -> Lineage:
    request = _request(registry, id)
    version = None
    if request.version is not None and request.version != BASE:
        try:
            version, _ = registry.resolve(Ref.parse(request.version))
        except NotFoundError:
            version = None
        if version is not None and request.digest not in (None, version.digest):
            version = None
    run = None if version is None or version.run is None else registry.run(version.run)
    return Lineage(request, version, run)


def _print(found: Lineage) -> None:
    request, version, run = found.request, found.version, found.run
    fields: list[tuple[str, object]] = [
        ("request", request.id),
        ("at", request.at.isoformat(timespec="seconds")),
        ("route", request.route),
        ("asked", request.asked or "-"),
        ("key", request.key or "-"),
        ("status", request.status),
        ("tokens", f"{request.prompt_tokens:,} in, {request.new_tokens:,} out"),
        ("took", took(request.seconds)),
        ("text", request.text),
        ("output", request.output),
        ("version", request.version or "-"),
        ("digest", request.digest),
    ]
    if version is not None:
        fields += [
            ("aliases", ", ".join(version.aliases) or "none"),
            ("run", run and f"{run.number} of {run.recipe}, {run.status}, {moment(run.started)}"),
            ("plugin", run and run.plugin),
            ("dataset", version.dataset),
            ("rows", version.dataset_fingerprint),
            ("split", version.split_fingerprint),
            ("base", f"{version.base_name} ({version.base_digest})"),
        ]
    print_fields(fields)

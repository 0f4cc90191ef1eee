"""``trunkline adapters history``: what happened to an adapter or a version, and who did it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from trunkline.cli.command import Command
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import json_option, note, print_json, print_table, short_digest
from trunkline.refs import Ref

if TYPE_CHECKING:
    from trunkline.registry.records import EventRecord


@click.command(
    "history",
    cls=Command,
    example="trunkline adapters history medical/icd10-chapter",
)
@click.argument("ref")
@click.option(
    "--limit",
    type=click.IntRange(min=1, max=10_000),
    default=50,
    show_default=True,
    metavar="N",
    help="List so many at most.",
)
@click.option("--before", type=int, metavar="EVENT", help="Only what is older than this event.")
@json_option
@with_globals
def history(said: Globals, ref: str, limit: int, before: int | None, as_json: bool) -> None:
    """Tell what happened to an adapter, or to one version of it, newest first.

    Publications, moves of aliases with their gate and reason, removals, signatures, exports, tags
    and notes. Removed versions have their history still. Times are UTC; events are ordered by
    number.
    """
    found = said.platform.registry.events.history(Ref.parse(ref), limit=limit + 1, before=before)
    page = found[:limit]
    if as_json:
        print_json(page)
    elif page:
        print_table(
            ["event", "at", "who", "what", "to"],
            [
                (
                    one.seq,
                    one.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    one.actor,
                    told(one),
                    one.subject,
                )
                for one in page
            ],
            right=("event",),
            fold=("who", "what", "to"),
        )
    else:
        earlier = "" if before is None else " before that"
        note(f"Nothing is known to have happened to {ref}{earlier}.")
    if len(found) > limit:
        note(f"There are more; --before {page[-1].seq} shows them.")


def told(event: EventRecord) -> str:
    """An event in words, with one line more for its gate and its reason."""
    detail = event.detail
    match event.kind:
        case "version.published" | "version.abandoned" | "version.removed":
            text = f"version{_number(detail)} {event.kind.partition('.')[2]}"
            if detail.get("digest"):
                text += f", {short_digest(str(detail['digest']))}"
        case "alias.moved":
            text = _moved(detail)
        case "note.added":
            text = str(detail.get("text", ""))
        case "tag.set":
            text = f"tag {detail.get('key')}={detail.get('value')}"
        case "tag.removed":
            text = f"tag {detail.get('key')} removed"
        case "version.signed" | "version.imported" | "version.exported":
            text = f"version{_number(detail)} {event.kind.partition('.')[2]}{_by_which(detail)}"
        case _:
            text = event.kind.replace(".", " ")
    lines = [text, *_gate(detail.get("gate"))]
    if detail.get("reason"):
        lines.append(f"reason: {detail['reason']}")
    return "\n".join(lines)


def _number(detail: Mapping[str, Any]) -> str:
    return f" {detail['number']}" if detail.get("number") else ""


def _by_which(detail: Mapping[str, Any]) -> str:
    """The archive that a version came or went with, and the key that signed it."""
    archive = f", {detail['archive']}" if detail.get("archive") else ""
    key = detail.get("signed_by")
    return archive + (f", signed by {short_digest(str(key))}" if key else "")


def _moved(detail: Mapping[str, Any]) -> str:
    alias, old, new = detail.get("alias"), detail.get("old"), detail.get("new")
    if new is None:
        return f"{alias} dropped, which was {old}"
    came = "set to" if old is None else f"moved from {old} to"
    back = ", rolled back" if detail.get("kind") == "rolled-back" else ""
    forced = ", forced" if detail.get("forced") else ""
    return f"{alias} {came} {new}{back}{forced}"


def _gate(checks: Any) -> list[str]:
    if not isinstance(checks, list):
        return []
    return [
        f"{check.get('name')}: {'yes' if check.get('passed') else 'NO'} ({check.get('figures')})"
        for check in checks
        if isinstance(check, Mapping)
    ]

"""``adapters promote``, ``rollback``, ``unalias`` and ``history``: move aliases, see what moved."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.output import json_option, note, plain, print_json, print_table, short_digest
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.refs import Ref

if TYPE_CHECKING:
    from trunkline.promotion import AliasChange
    from trunkline.registry.records import EventRecord

url_option = click.option(
    "--url",
    metavar="URL",
    help="Send the request to a running server, with the key in TRUNKLINE_API_KEY.",
)
reason_option = click.option(
    "--reason", default="", metavar="TEXT", help="Why; recorded in the alias's history."
)


@click.command(
    "promote",
    cls=Command,
    example=(
        Example("trunkline adapters promote finance/naics-sector@1", "writes"),
        Example("trunkline adapters promote medical/icd10-chapter", "fails"),
    ),
)
@click.argument("ref")
@click.option("--alias", default="champion", show_default=True, help="The alias to move.")
@click.option("--force", is_flag=True, help="Move it even if the gate refuses; needs --reason.")
@reason_option
@url_option
@json_option
@pass_options
def promote(
    options: GlobalOptions,
    ref: str,
    alias: str,
    force: bool,
    reason: str,
    url: str | None,
    as_json: bool,
) -> None:
    """Move an alias to a version, if the gates of its recipe and of the workspace pass.

    A ref without @ selects the newest version. Each condition is printed with its figures; if one
    fails, the exit code is 1. Without --url you act as the user of this machine, who is not
    authenticated; a gate that requires two persons can only pass with --url.
    """
    from trunkline.promotion import GateRefusedError

    request = {"ref": ref, "alias": alias, "force": force, "reason": reason}
    try:
        move = _promote_locally(options, request) if url is None else _send(url, "promote", request)
    except GateRefusedError as refused:
        if as_json:
            print_json({"promoted": False, "checks": refused.checks})
        else:
            _print_checks([asdict(check) for check in refused.checks])
        raise
    if as_json:
        print_json({"promoted": True, **move})
        return
    _print_checks(move["checks"])
    if move["forced"] and move["old"] != move["new"]:
        note(f"The gate refused; forced, because: {reason}")
    _print_move(move)


@click.command(
    "rollback",
    cls=Command,
    example=Example(
        'trunkline adapters rollback finance/naics-sector --reason "wrong since noon"',
        "writes",
    ),
)
@click.argument("name")
@click.option("--alias", default="champion", show_default=True, help="The alias to move.")
@reason_option
@url_option
@json_option
@pass_options
def rollback(
    options: GlobalOptions, name: str, alias: str, reason: str, url: str | None, as_json: bool
) -> None:
    """Move an alias back to its previous version, without a gate.

    Each rollback goes one step further back. Removed versions are skipped.
    """
    if url is None:
        move = _move_fields(options.platform.rollback(name, alias, reason=reason))
    else:
        move = _send(url, "rollback", {"ref": name, "alias": alias, "reason": reason})
    if as_json:
        print_json(move)
    else:
        _print_move(move)


@click.command(
    "unalias",
    cls=Command,
    example=Example("trunkline adapters unalias finance/naics-sector canary", "writes"),
)
@click.argument("name")
@click.argument("alias")
@reason_option
@json_option
@pass_options
def unalias(options: GlobalOptions, name: str, alias: str, reason: str, as_json: bool) -> None:
    """Remove an alias; `adapters rollback` restores it.

    Without a champion the newest version answers, so removing `champion` needs --reason.
    """
    move = _move_fields(options.platform.unalias(name, alias, reason=reason))
    if as_json:
        print_json(move)
    else:
        _print_move(move)


def _promote_locally(options: GlobalOptions, request: Mapping[str, Any]) -> dict[str, Any]:
    promotion = options.platform.promote(
        request["ref"], request["alias"], force=request["force"], reason=request["reason"]
    )
    ref = promotion.version.ref
    return {"ref": str(ref), "adapter": ref.adapter, **plain(promotion)}


def _move_fields(change: AliasChange) -> dict[str, Any]:
    return {**plain(change.move), "head": change.head}


def _send(url: str, verb: str, request: dict[str, Any]) -> dict[str, Any]:
    """The validated reply of a running server to an administrator."""
    from trunkline.cli.http_client import Server
    from trunkline.promotion import GateRefusedError
    from trunkline.serving.admin_schemas import Promotion, Rollback

    with Server(url) as server:
        try:
            reply = server.post(f"/admin/{verb}", request)
        except GateRefusedError as refused:
            message, hint = (_with_url(text, url) for text in (refused.message, refused.hint))
            raise GateRefusedError(message, hint or None, refused.checks) from None
        return server.parse(Promotion if verb == "promote" else Rollback, reply).model_dump()


def _with_url(text: str | None, url: str) -> str:
    """A server's text, with ``--url`` added to the commands in it."""
    return re.sub(
        r"trunkline adapters promote [a-z0-9/@-]+",
        lambda command: f"{command[0]} --url {shlex.quote(url)}",
        (text or "").replace(" --url URL", ""),
    )


def _print_checks(checks: Sequence[Mapping[str, Any]]) -> None:
    for check in checks:
        click.echo(f"{'yes' if check['passed'] else 'NO '}  {check['name']}  ({check['figures']})")


def _print_move(move: Mapping[str, Any]) -> None:
    old, new = move["old"] or "none", move["new"] or "none"
    step = f"{new} already" if old == new else f"{old} → {new}"
    click.echo(f"{move['adapter']}  {move['alias']}: {step}")
    note(f"Head of the events: {move['head']}")


# ------------------------------------------------------------------------------------- history


@click.command("history", cls=Command, example="trunkline adapters history finance/naics-sector")
@click.argument("ref")
@click.option(
    "--limit",
    type=click.IntRange(min=1, max=10_000),
    default=50,
    show_default=True,
    metavar="N",
    help="List at most N.",
)
@click.option("--before", type=int, metavar="EVENT", help="Only events older than this one.")
@json_option
@pass_options
def history(
    options: GlobalOptions, ref: str, limit: int, before: int | None, as_json: bool
) -> None:
    """List the events of an adapter or of one version, newest first.

    Publications, alias moves with their gate and reason, removals, signatures, exports, tags and
    notes. Removed versions keep their history. Times are UTC; events are ordered by number.
    """
    events = options.platform.registry.events.history(
        Ref.parse(ref), limit=limit + 1, before=before
    )
    page = events[:limit]
    if as_json:
        print_json(page)
    elif page:
        print_table(
            ["event", "at", "actor", "what", "subject"],
            [
                (
                    event.seq,
                    event.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    event.actor,
                    event_text(event),
                    event.subject,
                )
                for event in page
            ],
            right=("event",),
            fold=("actor", "what", "subject"),
        )
    else:
        earlier = "" if before is None else f" before event {before}"
        note(f"No events of {ref}{earlier}.")
    if len(events) > limit:
        note(f"There are more; --before {page[-1].seq} shows them.")


def event_text(event: EventRecord) -> str:
    """An event in a few words; its gate and its reason are on lines of their own."""
    detail = event.detail
    match event.kind:
        case "version.published" | "version.abandoned" | "version.removed":
            text = f"version{_number(detail)} {event.kind.partition('.')[2]}"
            if detail.get("digest"):
                text += f", {short_digest(str(detail['digest']))}"
        case "alias.moved":
            text = _alias_move(detail)
        case "note.added":
            text = str(detail.get("text", ""))
        case "tag.set":
            text = f"tag {detail.get('key')}={detail.get('value')}"
        case "tag.removed":
            text = f"tag {detail.get('key')} removed"
        case "version.signed" | "version.imported" | "version.exported" | "version.probed":
            action = event.kind.partition(".")[2]
            text = f"version{_number(detail)} {action}{_archive_and_key(detail)}"
        case _:
            text = event.kind.replace(".", " ")
    lines = [text, *_gate(detail.get("gate"))]
    if detail.get("reason"):
        lines.append(f"reason: {detail['reason']}")
    return "\n".join(lines)


def _number(detail: Mapping[str, Any]) -> str:
    return f" {detail['number']}" if detail.get("number") else ""


def _archive_and_key(detail: Mapping[str, Any]) -> str:
    """The archive that a version came from or went to, and the key that signed it."""
    archive = f", {detail['archive']}" if detail.get("archive") else ""
    key = detail.get("signed_by")
    return archive + (f", signed by {short_digest(str(key))}" if key else "")


def _alias_move(detail: Mapping[str, Any]) -> str:
    alias, old, new = detail.get("alias"), detail.get("old"), detail.get("new")
    if new is None:
        return f"{alias} removed, pointed to {old}"
    start = "set to" if old is None else f"moved from {old} to"
    back = ", rolled back" if detail.get("kind") == "rolled-back" else ""
    forced = ", forced" if detail.get("forced") else ""
    return f"{alias} {start} {new}{back}{forced}"


def _gate(checks: Any) -> list[str]:
    if not isinstance(checks, list):
        return []
    return [
        f"{check.get('name')}: {'yes' if check.get('passed') else 'NO'} ({check.get('figures')})"
        for check in checks
        if isinstance(check, Mapping)
    ]

"""``trunkline adapters promote``, ``rollback`` and ``unalias``: what is live, and undoing that."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import json_option, note, plain, print_json

if TYPE_CHECKING:
    from trunkline.promotion import AliasChange

url_option = click.option(
    "--url",
    metavar="URL",
    help="Ask a running server, as the owner of the key in TRUNKLINE_API_KEY.",
)
reason_option = click.option(
    "--reason", default="", metavar="TEXT", help="Why; kept in the alias's history."
)


@click.command(
    "promote",
    cls=Command,
    example=(
        Example("trunkline adapters promote medical/icd10-chapter", "writes"),
        Example("trunkline adapters promote finance/naics-sector@1", "fails"),
    ),
)
@click.argument("ref")
@click.option("--alias", default="champion", show_default=True, help="The alias to move.")
@click.option("--force", is_flag=True, help="Move it though the gate says no; needs --reason.")
@reason_option
@url_option
@json_option
@with_globals
def promote(
    said: Globals, ref: str, alias: str, force: bool, reason: str, url: str | None, as_json: bool
) -> None:
    """Move an alias to a version, if the gates of its recipe and of the workspace allow it.

    Without @ the newest version is meant. Each condition is printed with its figures; one that
    says no ends the command with exit code 1. Here you are the system's user, whom nobody checked;
    a gate that wants two persons is met only with --url.
    """
    from trunkline.promotion import GateRefusedError

    asked = {"ref": ref, "alias": alias, "force": force, "reason": reason}
    try:
        told = _promoted_here(said, asked) if url is None else _there(url, "promote", asked)
    except GateRefusedError as refused:
        if as_json:
            print_json({"promoted": False, "checks": refused.checks})
        else:
            _print_checks([asdict(check) for check in refused.checks])
        raise
    if as_json:
        print_json({"promoted": True, **told})
        return
    _print_checks(told["checks"])
    if told["forced"] and told["old"] != told["new"]:
        note(f"The gate says no; forced, because: {reason}")
    _print_step(told)


@click.command(
    "rollback",
    cls=Command,
    example=Example(
        'trunkline adapters rollback medical/icd10-chapter --reason "wrong codes since noon"',
        "writes",
    ),
)
@click.argument("name")
@click.option("--alias", default="champion", show_default=True, help="The alias to move.")
@reason_option
@url_option
@json_option
@with_globals
def rollback(
    said: Globals, name: str, alias: str, reason: str, url: str | None, as_json: bool
) -> None:
    """Let an alias go back to its previous version; no gate is asked.

    Each rollback goes one step further back. Versions that were removed are passed over.
    """
    if url is None:
        told = _changed(said.platform.rollback(name, alias, reason=reason))
    else:
        told = _there(url, "rollback", {"ref": name, "alias": alias, "reason": reason})
    if as_json:
        print_json(told)
    else:
        _print_step(told)


@click.command(
    "unalias",
    cls=Command,
    example=Example("trunkline adapters unalias medical/icd10-chapter canary", "writes"),
)
@click.argument("name")
@click.argument("alias")
@reason_option
@json_option
@with_globals
def unalias(said: Globals, name: str, alias: str, reason: str, as_json: bool) -> None:
    """Take an alias away; `adapters rollback` brings it back.

    Without a champion the newest version answers, so dropping that one needs --reason.
    """
    told = _changed(said.platform.unalias(name, alias, reason=reason))
    if as_json:
        print_json(told)
    else:
        _print_step(told)


def _promoted_here(said: Globals, asked: Mapping[str, Any]) -> dict[str, Any]:
    moved = said.platform.promote(
        asked["ref"], asked["alias"], force=asked["force"], reason=asked["reason"]
    )
    told: dict[str, Any] = plain(moved)
    return {"ref": str(moved.version.ref), "adapter": moved.version.ref.adapter, **told}


def _changed(change: AliasChange) -> dict[str, Any]:
    return {**plain(change.move), "head": change.head}


def _there(url: str, verb: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What a running server answers to an administrator."""
    from trunkline.cli.remote import Remote, not_understood
    from trunkline.promotion import GateRefusedError

    with Remote(url) as remote:
        try:
            told = remote.post(f"/admin/{verb}", asked)
        except GateRefusedError as refused:
            message, hint = (_by_server(text, url) for text in (refused.message, refused.hint))
            raise GateRefusedError(message, hint or None, refused.checks) from None
    wanted = {"adapter", "alias", "old", "new", "head"} | (
        {"checks", "forced"} if verb == "promote" else set()
    )
    if not wanted <= told.keys():
        raise not_understood(url)
    return told


def _by_server(text: str | None, url: str) -> str:
    """What a server says, with commands that ask that server too, and not the registry here."""
    return re.sub(
        r"trunkline adapters promote [a-z0-9/@-]+",
        lambda command: f"{command[0]} --url {shlex.quote(url)}",
        (text or "").replace(" --url URL", ""),
    )


def _print_checks(checks: Sequence[Mapping[str, Any]]) -> None:
    for check in checks:
        click.echo(f"{'yes' if check['passed'] else 'NO '}  {check['name']}  ({check['figures']})")


def _print_step(told: Mapping[str, Any]) -> None:
    old, new = told["old"] or "none", told["new"] or "none"
    step = f"{new} already" if old == new else f"{old} → {new}"
    click.echo(f"{told['adapter']}  {told['alias']}: {step}")
    note(f"Head of the events: {told['head']}")

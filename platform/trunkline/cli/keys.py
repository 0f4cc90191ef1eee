"""``trunkline keys``: who may ask the server, for which adapters, and until when."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Example, Group
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import json_option, moment, note, plain, print_json, print_table
from trunkline.errors import UsageError

if TYPE_CHECKING:
    from trunkline.registry.records import KeyRecord

_SPAN = re.compile(r"([1-9][0-9]{0,5})([hdw])", re.ASCII)
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@click.group(cls=Group, short_help="Who may ask the server, and for what.")
def keys() -> None:
    """Keys of the server's clients; only a hash of each is kept."""


@keys.command(
    "create",
    example=Example("trunkline keys create billing --adapter 'finance/*' --expires 30d", "writes"),
)
@click.argument("owner")
@click.option(
    "--adapter",
    "adapters",
    metavar="PATTERN",
    multiple=True,
    help="May be used: domain/name, 'domain/*', base or '*'; may be repeated.  [default: '*']",
)
@click.option("--admin", is_flag=True, help="Opens the admin routes too.")
@click.option("--expires", metavar="SPAN", help="End after 12h, 30d or 4w.  [default: never]")
@json_option
@with_globals
def create(
    said: Globals,
    owner: str,
    adapters: tuple[str, ...],
    admin: bool,
    expires: str | None,
    as_json: bool,
) -> None:
    """Make a key for OWNER and print it, alone on stdout; it can't be shown again."""
    until = None if expires is None else _end_of(expires)
    record, secret = said.platform.registry.keys.create(owner, adapters, admin=admin, expires=until)
    if as_json:
        print_json({**plain(record), "key": secret})
        return
    for name, value in (
        ("id", record.id),
        ("owner", record.owner),
        ("adapters", ", ".join(record.adapters)),
        ("admin", "yes" if record.admin else "no"),
        ("expires", moment(record.expires) if record.expires else "never"),
    ):
        note(f"{name:8}  {value}")
    note("The key is shown this once:")
    click.echo(secret)


@keys.command(
    "list",
    example="trunkline keys list",
)
@json_option
@with_globals
def list_(said: Globals, as_json: bool) -> None:
    """List the keys, newest first, with those that no longer open anything."""
    found = said.platform.registry.keys.list()
    if as_json:
        print_json(found)
        return
    if not found:
        note("No key yet: `trunkline keys create OWNER`. The server is for this machine alone.")
        return
    print_table(
        ["id", "owner", "adapters", "admin", "created", "state"],
        [
            (
                one.id,
                one.owner,
                ", ".join(one.adapters),
                "yes" if one.admin else "no",
                moment(one.created),
                _state(one),
            )
            for one in found
        ],
        fold=("owner", "adapters"),
    )


@keys.command(
    "rm",
    example=Example('trunkline keys rm "$KEY_ID"', "writes"),
)
@click.argument("id")
@json_option
@with_globals
def rm(said: Globals, id: str, as_json: bool) -> None:
    """Take a key away; a running server refuses it from then on."""
    record = said.platform.registry.keys.remove(id)
    if as_json:
        print_json(record)
    else:
        click.echo(f"Removed the key {record.id} of {record.owner}.")


def _end_of(span: str) -> datetime:
    match = _SPAN.fullmatch(span)
    if match is None:
        raise UsageError(f"--expires can't be {span!r}.", "Write 12h, 30d or 4w.")
    try:
        return datetime.now(UTC) + int(match[1]) * _UNITS[match[2]]
    except OverflowError:
        raise UsageError(f"--expires {span!r} is too far off.", "Leave it away: never.") from None


def _state(key: KeyRecord) -> str:
    if key.removed is not None:
        return f"removed {moment(key.removed)}"
    if key.expires is None:
        return "in use"
    over = key.expires <= datetime.now(UTC)
    return f"{'expired' if over else 'until'} {moment(key.expires)}"

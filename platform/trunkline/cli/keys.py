"""``trunkline keys``: API keys of the server's clients: create, list, remove."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Example, Group
from trunkline.cli.output import json_option, moment, note, plain, print_json, print_table
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.errors import UsageError

if TYPE_CHECKING:
    from trunkline.registry.records import KeyRecord

ROLES = ("viewer", "tester", "promoter", "admin")

_SPAN = re.compile(r"([1-9][0-9]{0,5})([hdw])", re.ASCII)
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@click.group(cls=Group, short_help="API keys of the server's clients.")
def keys() -> None:
    """API keys of the server's clients; only a hash of each is stored."""


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
    help="An allowed adapter: domain/name, 'domain/*', base or '*'; may be repeated.  "
    "[default: '*']",
)
@click.option(
    "--role",
    type=click.Choice(ROLES),
    help="What the key permits; each role includes those before it.  [default: tester]",
)
@click.option("--admin", is_flag=True, help="Short for --role admin: also allow the admin routes.")
@click.option("--expires", metavar="SPAN", help="Expire after 12h, 30d or 4w.  [default: never]")
@json_option
@pass_options
def create(
    options: GlobalOptions,
    owner: str,
    adapters: tuple[str, ...],
    role: str | None,
    admin: bool,
    expires: str | None,
    as_json: bool,
) -> None:
    """Create a key for OWNER and print it, alone on stdout; it can't be shown again.

    A viewer only reads; a tester also sends requests to adapters; a promoter also moves aliases;
    an admin may do everything.
    """
    if admin and role not in (None, "admin"):
        raise UsageError(f"--admin and --role {role} can't be combined.", "Use one of them.")
    expiry = None if expires is None else _expiry(expires)
    record, secret = options.platform.registry.keys.create(
        owner, adapters, role="admin" if admin else role or "tester", expires=expiry
    )
    if as_json:
        print_json({**plain(record), "key": secret})
        return
    for name, value in (
        ("id", record.id),
        ("owner", record.owner),
        ("adapters", ", ".join(record.adapters)),
        ("role", record.role),
        ("expires", moment(record.expires) if record.expires else "never"),
    ):
        note(f"{name:8}  {value}")
    note("The key, which is shown only once:")
    click.echo(secret)


@keys.command("list", example="trunkline keys list")
@json_option
@pass_options
def list_(options: GlobalOptions, as_json: bool) -> None:
    """List the keys, newest first, including expired and removed ones."""
    records = options.platform.registry.keys.list()
    if as_json:
        print_json(records)
        return
    if not records:
        note("No keys yet: `trunkline keys create OWNER`. The server only answers this machine.")
        return
    print_table(
        ["id", "owner", "adapters", "role", "created", "state"],
        [
            (
                one.id,
                one.owner,
                ", ".join(one.adapters),
                one.role,
                moment(one.created),
                _state(one),
            )
            for one in records
        ],
        fold=("owner", "adapters", "created", "state"),
    )


@keys.command("rm", example=Example('trunkline keys rm "$KEY_ID"', "writes"))
@click.argument("id")
@json_option
@pass_options
def rm(options: GlobalOptions, id: str, as_json: bool) -> None:
    """Remove a key; running servers refuse it from then on."""
    record = options.platform.registry.keys.remove(id)
    if as_json:
        print_json(record)
    else:
        click.echo(f"Removed the key {record.id} of {record.owner}.")


def _expiry(span: str) -> datetime:
    match = _SPAN.fullmatch(span)
    if match is None:
        raise UsageError(f"--expires can't be {span!r}.", "Write 12h, 30d or 4w.")
    try:
        return datetime.now(UTC) + int(match[1]) * _UNITS[match[2]]
    except OverflowError:
        raise UsageError(
            f"--expires {span!r} is too far in the future.", "Leave it out for a key without end."
        ) from None


def _state(key: KeyRecord) -> str:
    if key.removed is not None:
        return f"removed {moment(key.removed)}"
    if key.expires is None:
        return "active"
    expired = key.expires <= datetime.now(UTC)
    return f"{'expired' if expired else 'until'} {moment(key.expires)}"

"""``trunkline requests``: what was asked of the server, and which version answered."""

from __future__ import annotations

import click

from trunkline.cli.adapters import limit_option
from trunkline.cli.command import Group
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import json_option, moment, note, print_json, print_table, took


@click.group(cls=Group, short_help="What was asked of the server, and what answered.")
def requests() -> None:
    """The server's request log, which only ever grows."""


@requests.command(
    "list",
    example="trunkline requests list --limit 2",
)
@click.option("--adapter", metavar="NAME", help="Only what one adapter, or base, answered.")
@click.option("--key", metavar="ID", help="Only what came with one key.")
@click.option("--before", metavar="ID", help="Only older ones than this, for the next page.")
@limit_option
@json_option
@with_globals
def list_(
    said: Globals,
    adapter: str | None,
    key: str | None,
    before: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the requests, newest first, with the version that answered; ( ) asked in vain.

    Tokens are those of the prompt and the new ones. --json has everything, the key too.
    """
    registry = said.platform.registry
    until = None if before is None else registry.requests.get(before).seq
    found = registry.requests.list(limit + 1, before=until, adapter=adapter, key=key)
    if as_json:
        print_json(found[:limit])
    elif found:
        print_table(
            ["id", "at", "adapter", "status", "tokens", "took"],
            [
                (
                    one.id,
                    moment(one.at),
                    one.version or f"({one.model})",
                    one.status,
                    f"{one.prompt_tokens}+{one.new_tokens}",
                    took(one.seconds),
                )
                for one in found[:limit]
            ],
            right=("status",),
            fold=("adapter",),
        )
    elif (adapter, key, before) != (None, None, None):
        note("No such request.")
    else:
        note("No request in the log. `trunkline serve` writes it.")
    if len(found) > limit:
        note(f"There are more: --before {found[limit - 1].id}, or a higher --limit.")

"""``trunkline requests``: the server's request log."""

from __future__ import annotations

import click

from trunkline.cli.command import Group
from trunkline.cli.output import json_option, moment, note, print_json, print_table, took
from trunkline.cli.root import GlobalOptions, limit_option, pass_options


@click.group(cls=Group, short_help="The server's request log.")
def requests() -> None:
    """The server's request log, which is append-only."""


@requests.command("list", example="trunkline requests list --limit 2")
@click.option("--adapter", metavar="NAME", help="Only requests answered by this adapter, or base.")
@click.option("--key", metavar="ID", help="Only requests with this key.")
@click.option("--before", metavar="ID", help="Only requests older than this, for the next page.")
@limit_option
@json_option
@pass_options
def list_(
    options: GlobalOptions,
    adapter: str | None,
    key: str | None,
    before: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the requests, newest first, with the version that answered.

    A name in parentheses was requested, but not answered. Tokens are prompt + new tokens. --json
    contains everything, including the key.
    """
    registry = options.platform.registry
    until = None if before is None else registry.requests.get(before).seq
    records = registry.requests.list(limit + 1, before=until, adapter=adapter, key=key)
    page = records[:limit]
    if as_json:
        print_json(page)
    elif page:
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
                for one in page
            ],
            right=("status",),
            fold=("at", "adapter"),
        )
    elif (adapter, key, before) != (None, None, None):
        note("No matching request.")
    else:
        note("The request log is empty. `trunkline serve` writes it.")
    if len(records) > limit:
        note(f"There are more: --before {page[-1].id}, or a higher --limit.")

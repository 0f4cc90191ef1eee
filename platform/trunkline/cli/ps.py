"""``trunkline ps``: what a running server holds and does."""

from __future__ import annotations

from typing import Any

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.output import (
    bytes_text,
    counted,
    duration,
    json_option,
    print_fields,
    print_json,
    print_table,
)


@click.command(
    "ps",
    cls=Command,
    short_help="What a running server holds and does.",
    example=Example("trunkline ps", "server"),
)
@click.option(
    "--url",
    envvar="TRUNKLINE_URL",
    metavar="URL",
    help="Of the server.  [default: $TRUNKLINE_URL, else http://127.0.0.1:8000]",
)
@json_option
def ps(url: str | None, as_json: bool) -> None:
    """Show a running server's adapters and its load; with keys, TRUNKLINE_API_KEY is an admin's."""
    from trunkline.cli.remote import DEFAULT_URL, Remote, not_understood

    with Remote(url or DEFAULT_URL) as remote:
        state = remote.get("/admin/state")
        residents = remote.get("/admin/residents")
    if as_json:
        print_json({"url": remote.url, "state": state, **residents})
        return
    try:
        fields, rows = _fields(state, residents), [_row(one) for one in residents["data"]]
    except (KeyError, TypeError, ValueError) as error:
        raise not_understood(remote.url) from error
    print_fields([("server", remote.url), *fields])
    if rows:
        click.echo()
        print_table(
            ["adapter", "tier", "size", "rank", "pinned", "running", "requests", "idle"],
            rows,
            right=("rank", "running", "requests"),
            fold=("idle",),
        )


def _fields(state: dict[str, Any], residents: dict[str, Any]) -> list[tuple[str, object]]:
    load = f"{state['running']} of {counted(state['rows'], 'row')} running"
    used, room = f"{state['kv_tokens_used']:,}", f"{state['kv_tokens']:,}"
    held, budget = bytes_text(residents["total_bytes"]), bytes_text(residents["budget_bytes"])
    return [
        ("state", "draining: takes no new requests" if state["draining"] else None),
        ("requests", f"{load}, {state['waiting']:,} waiting"),
        ("kv cache", f"{used} of {room} tokens in use, "
                     f"{state['cached_tokens']:,} kept for prompts to come"),
        ("adapters", f"{len(residents['data']):,}, {held} of {budget}"),
    ]  # fmt: skip


def _row(one: dict[str, Any]) -> tuple[object, ...]:
    return (
        one["name"],
        one["tier"],
        bytes_text(one["bytes"]),
        one["rank"],
        "yes" if one["pinned"] else "no",
        one["in_use"],
        f"{one['requests']:,}",
        duration(one["idle_seconds"]),
    )

"""``trunkline ps``: the state of a running server."""

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
    short_help="Show a running server's adapters and load.",
    example=Example("trunkline ps", "server"),
)
@click.option(
    "--url",
    envvar="TRUNKLINE_URL",
    metavar="URL",
    help="The server.  [default: $TRUNKLINE_URL, else http://127.0.0.1:8000]",
)
@json_option
def ps(url: str | None, as_json: bool) -> None:
    """Show a running server's adapters and load.

    If the server has keys, TRUNKLINE_API_KEY must hold an admin's key.
    """
    from trunkline.cli.http_client import DEFAULT_URL, Server, unexpected_response

    with Server(url or DEFAULT_URL) as server:
        state = server.get("/admin/state")
        residents = server.get("/admin/residents")
    if as_json:
        print_json({"url": server.url, "state": state, **residents})
        return
    try:
        fields, rows = _fields(state, residents), [_row(one) for one in residents["data"]]
    except (KeyError, TypeError, ValueError) as error:
        raise unexpected_response(server.url) from error
    print_fields([("server", server.url), *fields])
    if rows:
        click.echo()
        print_table(
            ["adapter", "tier", "size", "rank", "pinned", "running", "requests", "idle"],
            rows,
            right=("rank", "running", "requests"),
            fold=("adapter", "idle"),
        )


def _fields(state: dict[str, Any], residents: dict[str, Any]) -> list[tuple[str, object]]:
    running = f"{state['running']} of {counted(state['rows'], 'row')} running"
    used, capacity = f"{state['kv_tokens_used']:,}", f"{state['kv_tokens']:,}"
    resident, budget = bytes_text(residents["total_bytes"]), bytes_text(residents["budget_bytes"])
    return [
        ("state", "draining: accepts no new requests" if state["draining"] else None),
        ("requests", f"{running}, {state['waiting']:,} waiting"),
        (
            "kv cache",
            f"{used} of {capacity} tokens in use, {state['cached_tokens']:,} cached for prefixes",
        ),
        ("adapters", f"{len(residents['data']):,}, {resident} of {budget}"),
    ]


def _row(resident: dict[str, Any]) -> tuple[object, ...]:
    return (
        resident["name"],
        resident["tier"],
        bytes_text(resident["bytes"]),
        resident["rank"],
        "yes" if resident["pinned"] else "no",
        resident["in_use"],
        f"{resident['requests']:,}",
        duration(resident["idle_seconds"]),
    )

"""``trunkline ps``: the state of a running server."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from trunkline.serving.admin_schemas import (
        EngineLoad,
        ResidentAdapter,
        Residents,
        ServerState,
    )

_NAMES = {"text": "texts", "image": "pictures"}


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
    from trunkline.cli.http_client import DEFAULT_URL, Server
    from trunkline.serving.admin_schemas import Residents, ServerState

    with Server(url or DEFAULT_URL) as server:
        state = server.parse(ServerState, server.get("/admin/state"))
        residents = server.parse(Residents, server.get("/admin/residents"))
    if as_json:
        replies = {"state": state.model_dump(), **residents.model_dump()}
        print_json({"url": server.url, **replies})
        return
    print_fields([("server", server.url), *_fields(state, residents)])
    if residents.data:
        click.echo()
        print_table(
            ["adapter", "tier", "size", "rank", "pinned", "running", "requests", "idle"],
            [_row(one) for one in residents.data],
            right=("rank", "running", "requests"),
            fold=("adapter", "idle"),
        )


def _fields(state: ServerState, residents: Residents) -> list[tuple[str, object]]:
    several = len(state.engines) > 1
    tokens = f"{state.kv_tokens_used:,} of {state.kv_tokens:,} tokens in use"
    memory = f"{bytes_text(residents.total_bytes)} of {bytes_text(residents.budget_bytes)}"
    return [
        ("state", "draining: accepts no new requests" if state.draining else None),
        *((_NAMES[one.modality] if several else "requests", _load(one)) for one in state.engines),
        ("kv cache", f"{tokens}, {state.cached_tokens:,} cached for prefixes")
        if state.kv_tokens
        else ("kv cache", None),
        ("adapters", f"{len(residents.data):,}, {memory}"),
    ]


def _load(engine: EngineLoad) -> str:
    running = f"{engine.running} of {counted(engine.rows, 'row')} running"
    return f"{running}, {engine.waiting:,} waiting"


def _row(resident: ResidentAdapter) -> tuple[object, ...]:
    return (
        resident.name,
        resident.tier,
        bytes_text(resident.bytes),
        resident.rank,
        "yes" if resident.pinned else "no",
        resident.in_use,
        f"{resident.requests:,}",
        duration(resident.idle_seconds),
    )

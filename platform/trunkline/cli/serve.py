"""``trunkline serve``: the platform behind HTTP, until it is told to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import note
from trunkline.errors import NotFoundError, UsageError
from trunkline.threads import contention_warning

if TYPE_CHECKING:
    from trunkline.api import Platform

_COUNT = click.IntRange(min=1)


@click.command(
    "serve",
    cls=Command,
    short_help="Answer over HTTP, as OpenAI's clients ask.",
    example=Example("trunkline serve --preload medical/icd10-chapter", "serves"),
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one."
)
@click.option("--rows", type=_COUNT, metavar="N", help="Requests computed at once at most.")
@click.option("--kv-mib", type=_COUNT, metavar="N", help="Memory for keys and values, in MiB.")
@click.option("--adapter-mib", type=_COUNT, metavar="N", help="Memory for adapters, in MiB.")
@click.option("--slots", type=_COUNT, metavar="N", help="Adapters stacked beside the base at once.")
@click.option("--chunk-tokens", type=_COUNT, metavar="N", help="Prompt tokens a step at most.")
@click.option("--queue", type=_COUNT, metavar="N", help="Requests waiting at most; then 429.")
@click.option("--no-prefix-cache", is_flag=True, help="Compute every prompt from its beginning.")
@click.option("--no-request-log", is_flag=True, help="Keep no log of the requests.")
@click.option("--log-text", is_flag=True, help="Keep prompts and answers in the request log too.")
@click.option(
    "--limit",
    "limits",
    metavar="NAME=N",
    multiple=True,
    help="Another limit, such as request_timeout=60 (seconds); may be repeated. An unknown name "
    "lists them all.",
)
@click.option(
    "--preload", metavar="REF", multiple=True, help="Load before listening; may be repeated."
)
@with_globals
def serve(
    said: Globals,
    host: str,
    port: int,
    rows: int | None,
    kv_mib: int | None,
    adapter_mib: int | None,
    slots: int | None,
    chunk_tokens: int | None,
    queue: int | None,
    no_prefix_cache: bool,
    no_request_log: bool,
    log_text: bool,
    limits: tuple[str, ...],
    preload: tuple[str, ...],
) -> None:
    """Serve the base and every adapter of this workspace until Ctrl-C or SIGTERM.

    What is running then is finished first.
    """
    if log_text and no_request_log:
        raise UsageError(
            "--log-text and --no-request-log exclude each other.", "Leave one of them away."
        )
    from trunkline.inference.settings import EngineSettings
    from trunkline.serving.settings import ServerSettings, is_loopback

    sizes = {
        "rows": rows,
        "kv_mib": kv_mib,
        "adapter_mib": adapter_mib,
        "slots": slots,
        "chunk_tokens": chunk_tokens,
        "queue": queue,
    }
    given = {name: value for name, value in sizes.items() if value is not None}
    said.engine = EngineSettings(prefix_cache=not no_prefix_cache, **given)
    settings = ServerSettings(
        host=host,
        port=port,
        log_requests=not no_request_log,
        log_text=log_text,
        **_read_limits(limits),
    )
    platform = said.platform
    has_keys = platform.registry.keys.has_any()
    if has_keys or is_loopback(host):  # else the server says why it does not start
        if not has_keys:
            note(
                "No key is in force, so only this machine is answered: "
                "`trunkline keys create OWNER` makes one."
            )
        if (warning := contention_warning()) is not None:
            note(warning)
        _preload(platform, preload)
    from trunkline.serving.run import serve as serve_until_told

    serve_until_told(platform, settings, _teller(has_keys))


def _read_limits(said: tuple[str, ...]) -> dict[str, Any]:
    """``NAME=N`` as fields of the server's settings, which check the ranges."""
    from trunkline.serving.settings import RANGES

    limits: dict[str, Any] = {}
    for pair in said:
        name, _, text = pair.partition("=")
        if name not in RANGES or name == "port":
            known = [one for one in RANGES if one != "port"]
            raise NotFoundError.named("limit", name, known, f"There are: {', '.join(known)}.")
        kind = RANGES[name][0]
        try:
            limits[name] = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise UsageError(
                f"The limit {name} can't be {text!r}.", f"Give {what}, as in {name}=60."
            ) from None
    return limits


def _preload(platform: Platform, refs: tuple[str, ...]) -> None:
    """Read adapters into memory; a wrong ref or a damaged artifact ends the program here."""
    models = {model.name: model for model in map(platform.resolve, refs)}
    for name, model in models.items():
        note(f"loading {name}")
        platform.engine.pool.load(platform.store.fetch(model.version), name)


def _teller(has_keys: bool) -> Callable[[str], None]:
    """What tells that the server can be asked now, and how."""

    def tell(url: str) -> None:
        key = ' -H "Authorization: Bearer $TRUNKLINE_API_KEY"' if has_keys else ""
        said = '[{"role": "user", "content": "Hello"}]'
        note(f"Listening on {url}; Ctrl-C ends it. Ask it with:")
        note(f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\")
        note(f"""    -d '{{"model": "base", "temperature": 0, "messages": {said}}}'""")

    return tell

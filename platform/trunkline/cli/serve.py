"""``trunkline serve``: the HTTP server for the base and all adapters of a workspace."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.output import note
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.errors import NotFoundError, UsageError
from trunkline.threads import contention_warning

if TYPE_CHECKING:
    from trunkline.api import Platform

_COUNT = click.IntRange(min=1)


@click.command(
    "serve",
    cls=Command,
    short_help="Serve the base and all adapters over HTTP.",
    example=Example("trunkline serve --preload medical/icd10-chapter", "serves"),
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 chooses a free one.",
)
@click.option("--rows", type=_COUNT, metavar="N", help="Run at most N requests at once.")
@click.option("--kv-mib", type=_COUNT, metavar="N", help="Memory of the KV cache, in MiB.")
@click.option("--adapter-mib", type=_COUNT, metavar="N", help="Memory for adapters, in MiB.")
@click.option("--slots", type=_COUNT, metavar="N", help="Adapters on the device at once.")
@click.option(
    "--chunk-tokens", type=_COUNT, metavar="N", help="Prefill at most N prompt tokens per step."
)
@click.option(
    "--queue", type=_COUNT, metavar="N", help="Let at most N requests wait; refuse more with 429."
)
@click.option("--no-prefix-cache", is_flag=True, help="Don't reuse the KV cache of prefixes.")
@click.option("--no-request-log", is_flag=True, help="Don't write the request log.")
@click.option("--log-text", is_flag=True, help="Also log prompts and answers.")
@click.option(
    "--cors-origin",
    "cors_origins",
    metavar="URL",
    multiple=True,
    help="Let web pages of this origin use the server, such as https://chat.example.org; may be "
    "repeated.",
)
@click.option(
    "--limit",
    "limits",
    metavar="NAME=N",
    multiple=True,
    help="Change another limit, such as request_timeout=60 (seconds); may be repeated. An unknown "
    "name lists them all.",
)
@click.option(
    "--preload",
    metavar="REF",
    multiple=True,
    help="Load this adapter before listening; may be repeated.",
)
@pass_options
def serve(
    options: GlobalOptions,
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
    cors_origins: tuple[str, ...],
    limits: tuple[str, ...],
    preload: tuple[str, ...],
) -> None:
    """Serve the base and every adapter of this workspace until Ctrl-C or SIGTERM.

    Running requests are finished first. The workspace is shown to browsers at /console, behind
    the same keys.
    """
    if log_text and no_request_log:
        raise UsageError(
            "--log-text and --no-request-log can't be combined.", "Leave out one of them."
        )
    from trunkline.inference.settings import EngineSettings
    from trunkline.serving.settings import ANY_ORIGIN, ServerSettings, is_loopback

    sizes = {
        "rows": rows,
        "kv_mib": kv_mib,
        "adapter_mib": adapter_mib,
        "slots": slots,
        "chunk_tokens": chunk_tokens,
        "queue": queue,
    }
    given = {name: value for name, value in sizes.items() if value is not None}
    options.engine = EngineSettings(prefix_cache=not no_prefix_cache, **given)
    settings = ServerSettings(
        host=host,
        port=port,
        log_requests=not no_request_log,
        log_text=log_text,
        cors_origins=cors_origins,
        **_parse_limits(limits),
    )
    platform = options.platform
    has_keys = platform.registry.keys.has_any()
    private = is_loopback(host) and ANY_ORIGIN not in settings.cors_origins
    if has_keys or private:  # otherwise the server refuses to start and says why
        if not has_keys:
            note(
                "There are no active keys, so the server only answers this machine: "
                "`trunkline keys create OWNER` makes a key."
            )
        if (warning := contention_warning()) is not None:
            note(warning)
        _preload(platform, preload)
    from trunkline.console.app import create_app
    from trunkline.serving.run import serve as run_server

    announce = _announcer(has_keys, images=platform.engines.serves_images_only)
    run_server(platform, settings, announce, create=create_app)


def _parse_limits(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``NAME=N`` as fields of the server's settings, which check the ranges."""
    from trunkline.serving.settings import RANGES

    limits: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in RANGES or name == "port":
            names = [one for one in RANGES if one != "port"]
            raise NotFoundError.named("limit", name, names, f"Limits: {', '.join(names)}.")
        kind = RANGES[name][0]
        try:
            limits[name] = kind(text)
        except ValueError:
            expected = "an integer" if kind is int else "a number"
            raise UsageError(
                f"The limit {name} can't be {text!r}.", f"Give {expected}, as in {name}=60."
            ) from None
    return limits


def _preload(platform: Platform, refs: tuple[str, ...]) -> None:
    """Load adapters into memory; a wrong ref or a damaged artifact is an error."""
    models = {model.name: model for model in map(platform.resolve, refs)}
    for name, model in models.items():
        note(f"loading {name}")
        pool = platform.engines.of(model.modality).pool
        pool.load(platform.store.fetch(model.version), name)


def _announcer(has_keys: bool, *, images: bool) -> Callable[[str], None]:
    """A function that prints the URL and an example request once the server listens."""

    def announce(url: str) -> None:
        key = ' -H "Authorization: Bearer $TRUNKLINE_API_KEY"' if has_keys else ""
        messages = '[{"role": "user", "content": "Hello"}]'
        note(f"Listening on {url}; Ctrl-C stops the server.")
        note(f"The console, for a browser: {url}/console. For a program:")
        if images:
            note(f"  curl {url}/v1/classify -H 'Content-Type: application/json'{key} \\")
            picture = '"data:image/jpeg;base64,$(base64 -w0 photo.jpg)"'
            note(f"""    -d @- <<< '{{"model": "domain/name", "input": {picture}}}'""")
            return
        note(f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\")
        note(f"""    -d '{{"model": "base", "temperature": 0, "messages": {messages}}}'""")

    return announce

"""``trunkline serve``: the HTTP server for the base and all adapters of a workspace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from trunkline.cli.command import Command, Example
from trunkline.cli.output import note
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.errors import NotFoundError, UsageError
from trunkline.threads import contention_warning
from trunkline.workspace import CONFIGURATION_FILE, Workspace

if TYPE_CHECKING:
    from trunkline.api import Platform
    from trunkline.inference.settings import EngineSettings
    from trunkline.serving.settings import ServerSettings

_SIZES = ("rows", "kv_mib", "adapter_mib", "slots", "chunk_tokens", "queue")
_COUNT = click.IntRange(min=1)

VARIABLES = "TRUNKLINE_SERVE"
"""Prefix of the environment variables that set options: ``TRUNKLINE_SERVE_KV_MIB``."""


class ServeCommand(Command):
    """A command whose options may also be set in ``[serve]`` of ``trunkline.toml``.

    An option of the command line wins over an environment variable, and that over the file.
    """

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **settings: Any,
    ) -> click.Context:
        options = None if parent is None else parent.find_object(GlobalOptions)
        if options is not None and not {"-h", "--help"}.intersection(args):
            configured = Workspace.locate(options.workspace).configuration.serve
            settings.setdefault("default_map", _as_options(configured))
        try:
            return super().make_context(info_name, args, parent, **settings)
        except click.BadParameter as error:
            raise _with_source(error) from None


def _as_options(configured: Mapping[str, Any]) -> dict[str, Any]:
    """``[serve]`` as click's defaults: the table of limits becomes ``NAME=N`` texts."""
    limits = [f"{name}={value}" for name, value in configured.get("limits", {}).items()]
    return {**configured, "limits": limits}


def _with_source(error: click.BadParameter) -> Exception:
    """The error of a value that the user did not give on the command line, with its place."""
    name = None if error.param is None else error.param.name
    source = None if error.ctx is None or name is None else error.ctx.get_parameter_source(name)
    if name is None or source not in (ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP):
        return error
    place = f"The variable {VARIABLES}_{name.upper()}"
    if source is ParameterSource.DEFAULT_MAP:
        place = f"The setting {name} in [serve] of {CONFIGURATION_FILE}"
    reason = error.message.rstrip(".")
    return UsageError(f"{place} can't be used: {reason}.", "Correct it, or remove it.")


@click.command(
    "serve",
    cls=ServeCommand,
    context_settings={"auto_envvar_prefix": VARIABLES},
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
    "--open-metrics", is_flag=True, help="Answer GET /metrics without a key, for routers."
)
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
def serve(options: GlobalOptions, /, preload: tuple[str, ...], **values: Any) -> None:
    """Serve the base and every adapter of this workspace until Ctrl-C or SIGTERM.

    Running requests are finished first. The workspace is shown to browsers at /console, behind
    the same keys. Each option is also a variable, such as TRUNKLINE_SERVE_KV_MIB, and a key in
    [serve] of trunkline.toml, such as kv_mib.
    """
    options.engine, settings = _settings(values)
    from trunkline.serving.settings import ANY_ORIGIN, is_loopback

    platform = options.platform
    has_keys = platform.registry.keys.has_any()
    private = is_loopback(settings.host) and ANY_ORIGIN not in settings.cors_origins
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


def read_settings(context: click.Context) -> tuple[EngineSettings, ServerSettings]:
    """The settings of a server that is started without options, from variables and the file.

    Args:
        context: of another command in the same workspace.

    Raises:
        UsageError: a value can't be used.
    """
    with serve.make_context("serve", [], parent=context.find_root()) as served:
        return _settings(served.params)


def _settings(values: Mapping[str, Any]) -> tuple[EngineSettings, ServerSettings]:
    """The options of ``serve`` as settings."""
    from trunkline.inference.settings import EngineSettings
    from trunkline.serving.settings import ServerSettings

    if values["log_text"] and values["no_request_log"]:
        raise UsageError(
            "--log-text and --no-request-log can't be combined.", "Leave out one of them."
        )
    sizes = {name: values[name] for name in _SIZES if values[name] is not None}
    engine = EngineSettings(prefix_cache=not values["no_prefix_cache"], **sizes)
    server = ServerSettings(
        host=values["host"],
        port=values["port"],
        log_requests=not values["no_request_log"],
        log_text=values["log_text"],
        open_metrics=values["open_metrics"],
        cors_origins=values["cors_origins"],
        **_parse_limits(values["limits"]),
    )
    return engine, server


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
        for modality, ref, artifact in model.adapters():
            platform.engines.of(modality).pool.load(artifact, ref)


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

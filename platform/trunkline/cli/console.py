"""``trunkline console``: the workspace in a browser, without a base in memory."""

from __future__ import annotations

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.output import note
from trunkline.cli.root import GlobalOptions, pass_options


@click.command(
    "console",
    cls=Command,
    short_help="Show the workspace in a browser.",
    example=Example("trunkline console", "serves"),
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 chooses a free one.",
)
@pass_options
def console(options: GlobalOptions, host: str, port: int) -> None:
    """Show the workspace in a browser until Ctrl-C or SIGTERM; no base is loaded.

    `trunkline serve` shows the same console beside the API, with the state of its engine. Without
    keys the console only answers this machine; otherwise a browser signs in with a key.
    """
    from trunkline.console.app import create_console_app
    from trunkline.serving.run import serve
    from trunkline.serving.settings import ServerSettings

    settings = ServerSettings(host=host, port=port, log_requests=False)
    platform = options.platform
    if not platform.registry.keys.has_any():
        note(
            "There are no active keys, so the console only answers this machine: "
            "`trunkline keys create OWNER` makes a key."
        )

    def announce(url: str) -> None:
        note(f"Listening on {url}; Ctrl-C stops the server.")
        note(f"The console, for a browser: {url}/console")

    serve(platform, settings, announce, create=create_console_app)

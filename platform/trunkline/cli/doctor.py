"""``trunkline doctor``: check a deployment from inside."""

from __future__ import annotations

import click

from trunkline.cli.command import Command
from trunkline.cli.output import counted, json_option, note, print_json, print_table
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.errors import TrunklineError


@click.command(
    "doctor",
    cls=Command,
    short_help="Check a deployment: registry, store, base, memory, keys.",
    example="trunkline doctor",
)
@json_option
@click.pass_context
@pass_options
def doctor(options: GlobalOptions, context: click.Context, as_json: bool) -> None:
    """Check from inside what a server needs; the exit code is 1 if there is an error.

    Run it where the server runs, with the same options and variables: its container, its user,
    its workspace. It migrates and loads nothing; the store gets a small file, which is deleted.
    """
    from trunkline.cli.serve import read_settings
    from trunkline.doctor import diagnose
    from trunkline.serving.settings import is_loopback
    from trunkline.threads import limit_spinning

    limit_spinning()  # as the server does
    public, problem = False, None
    try:
        options.engine, server = read_settings(context)
        public = not is_loopback(server.host)
    except TrunklineError as error:
        problem = error
    checks = list(diagnose(options.platform, public=public, problem=problem))
    errors = [one for one in checks if one.state == "error"]
    if as_json:
        print_json(checks)
    else:
        print_table(
            ["check", "state", "detail", "what to do"],
            [(one.name, one.state, one.detail, one.hint or "") for one in checks],
            fold=("detail", "what to do"),
        )
    if errors:
        note(f"{counted(len(errors), 'check')} failed: {', '.join(one.name for one in errors)}.")
        context.exit(1)

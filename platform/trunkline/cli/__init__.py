"""The command line: one file a noun, over :class:`~trunkline.api.Platform`.

Owns: words, tables, progress, exit codes. Must not know: how anything is done. Nothing heavy is
imported before a command runs: click alone is enough for every ``--help``.

``command`` holds the kinds of commands, ``root`` the program, ``tell`` what an error becomes,
``options`` the global options, ``output`` and ``progress`` what is written where.
"""

from __future__ import annotations


def main() -> None:
    """The program ``trunkline``."""
    import os
    import sys

    from trunkline.cli.root import trunkline
    from trunkline.threads import limit_spinning

    limit_spinning()
    if sys.stdout is None:  # it was closed; no database may get its number
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    trunkline.main(prog_name="trunkline")

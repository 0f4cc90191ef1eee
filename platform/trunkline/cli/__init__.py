"""The command line: one file a noun, over :class:`~trunkline.api.Platform`.

Owns: words, tables, progress, exit codes. Must not know: how anything is done. Nothing heavy is
imported before a command runs: click alone is enough for every ``--help``.

``command`` holds the kinds of commands, ``root`` the program, ``tell`` what an error becomes,
``options`` the global options, ``output`` and ``progress`` what is written where.
"""

from __future__ import annotations


def main() -> None:
    """The program ``trunkline``."""
    from trunkline.cli.root import trunkline

    trunkline.main(prog_name="trunkline")

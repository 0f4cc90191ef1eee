"""The command line: one module per noun, over :class:`~trunkline.api.Platform`.

``root`` holds the program and its global options, ``command`` the click classes, ``output`` and
``progress`` what is written on stdout and stderr, ``errors`` how exceptions are reported, and
``client`` the choice between this process and a running server. Commands may import every layer
below; until a command runs, only click is imported.
"""

from __future__ import annotations


def main() -> None:
    """The program ``trunkline``."""
    import os
    import sys
    from contextlib import suppress

    from trunkline.cli.errors import report_side_errors
    from trunkline.cli.root import trunkline
    from trunkline.process import ignore_unreadable_entry_points, keep_exit_code
    from trunkline.threads import limit_spinning

    limit_spinning()
    # A stream that was closed at the start gets a file, so that no database reuses its number.
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    report_side_errors()
    ignore_unreadable_entry_points()
    try:
        trunkline.main(prog_name="trunkline")
    finally:  # what a plugin does when the process ends is no result
        keep_exit_code()
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            os.dup2(2, 1)

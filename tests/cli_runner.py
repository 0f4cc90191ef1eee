"""Runs the command line inside the test's own process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from trunkline.cli.root import trunkline


def invoke(*arguments: str, input: str | None = None) -> Result:
    """Run ``trunkline`` with arguments; the result has stdout, stderr and the exit code."""
    return CliRunner().invoke(trunkline, arguments, input=input, prog_name="trunkline")

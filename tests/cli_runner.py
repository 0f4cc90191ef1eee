"""The program run inside the test's own process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from trunkline.cli.root import trunkline


def invoke(*args: str, input: str | None = None) -> Result:
    """Run ``trunkline`` with these args; stdout, stderr and exit code are in the result."""
    return CliRunner().invoke(trunkline, args, input=input, prog_name="trunkline")

"""The program run inside the test's own process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from trunkline.cli.root import trunkline


def invoke(*words: str, input: str | None = None) -> Result:
    """Run ``trunkline`` with these words; stdout, stderr and exit code are in the result."""
    return CliRunner().invoke(trunkline, words, input=input, prog_name="trunkline")

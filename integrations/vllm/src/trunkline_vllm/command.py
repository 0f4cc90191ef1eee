"""The command ``trunkline-vllm``."""

from __future__ import annotations

import sys

import click

from trunkline.errors import TrunklineError


@click.group()
def main() -> None:
    """Serve adapters from vLLM; see docs/vllm.md."""


@main.command()
@click.argument("ref")
@click.option("--workspace", help="The folder with registry.db; by default the current one.")
@click.option("--base", help="The base; by default smollm2-135m.")
@click.option("--count", default=4, show_default=True, help="How many probes to store.")
@click.option("--fixed", is_flag=True, help="Store fixed texts instead of test rows.")
def probe(ref: str, workspace: str | None, base: str | None, count: int, fixed: bool) -> None:
    """Store prompts with the published answers of a version, which vLLM must repeat."""
    import trunkline
    from trunkline_vllm.probes import record_probes

    try:
        platform = trunkline.open(workspace, base=base)
        stored = record_probes(platform, ref, count, fixed=fixed)
    except TrunklineError as error:
        click.echo(f"Error: {error.message}", err=True)
        if error.hint:
            click.echo(f"Hint: {error.hint}", err=True)
        sys.exit(error.exit_code)
    click.echo(f"{ref}: {stored} probes stored.")

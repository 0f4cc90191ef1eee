"""The program: global options, and the list of commands.

Owns: which commands there are and where they live. Must not know: what they do.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click

from trunkline import __version__
from trunkline.cli.command import Group
from trunkline.cli.errors import exit_code_of
from trunkline.cli.options import Globals, with_globals

COMMANDS = {
    "plugins": "trunkline.cli.plugins:plugins",
    "base": "trunkline.cli.base:base",
    "datasets": "trunkline.cli.datasets:datasets",
    "recipes": "trunkline.cli.recipes:recipes",
    "train": "trunkline.cli.train:train",
    "eval": "trunkline.cli.evaluate:evaluate",
    "predict": "trunkline.cli.predict:predict",
    "generate": "trunkline.cli.generate:generate",
    "chat": "trunkline.cli.chat:chat",
    "serve": "trunkline.cli.serve:serve",
    "ps": "trunkline.cli.ps:ps",
    "adapters": "trunkline.cli.adapters:adapters",
    "runs": "trunkline.cli.runs:runs",
    "keys": "trunkline.cli.keys:keys",
    "requests": "trunkline.cli.requests:requests",
    "lineage": "trunkline.cli.lineage:lineage",
    "tag": "trunkline.cli.tags:tag",
    "note": "trunkline.cli.tags:note_",
    "audit": "trunkline.cli.audit:audit",
    "gc": "trunkline.cli.upkeep:gc",
    "db": "trunkline.cli.db:db",
}


class Program(Group):
    """The root group: whatever is raised below becomes two lines on stderr and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        said = Globals()
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")

        def work() -> Any:
            return super(Program, self).main(
                args,
                prog_name,
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                obj=said,
                **extra,
            )

        if not standalone_mode:
            return work()
        sys.exit(exit_code_of(work, debug=lambda: said.debug))


@click.group(
    "trunkline",
    cls=Program,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Names of adapters are domain/name, domain/name@3 or domain/name@champion; `base` is "
    "the bare base. `ls` is short for `list`. Results go to stdout, everything else to stderr.",
)
@click.option(
    "--workspace",
    metavar="DIR",
    help="Folder of registry.db and adapters/.  [default: $TRUNKLINE_WORKSPACE, else here]",
)
@click.option("--base", metavar="NAME", help="The base: a name, hf:<repo>[@revision], or a folder.")
@click.option("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:1 or mps.")
@click.option(
    "--dtype",
    "--base-dtype",
    "dtype",
    metavar="NAME",
    default="auto",
    help="Of the base: auto, fp32, bf16, fp16, int8 or nf4.",
)
@click.option("--no-plugins", is_flag=True, help="Load no plugin.")
@click.option(
    "--no-plugin", "block", metavar="NAME", multiple=True, help="Leave one out; may be repeated."
)
@click.option("--strict", is_flag=True, help="A plugin that fails is an error, not set aside.")
@click.option("--debug", is_flag=True, help="Show tracebacks and warnings.")
@click.version_option(__version__, message="%(prog)s %(version)s")
@with_globals
def trunkline(said: Globals, /, **options: Any) -> None:
    """One foundation model, many trades: train LoRA adapters on one base, evaluate them, swap them.

    \b
    A first round:
      trunkline base pull
      trunkline recipes list
      trunkline train RECIPE --dry-run
      trunkline train RECIPE
      trunkline predict RECIPE "a text"
    """
    for name, value in options.items():
        setattr(said, name, value)
    if not said.debug and not sys.warnoptions:
        warnings.simplefilter("ignore")

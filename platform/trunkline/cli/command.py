"""The click classes that all commands use: examples in ``--help``, lazy groups and aliases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from textwrap import indent
from typing import Any, Literal

import click

ALIASES = {"ls": "list", "rm": "uninstall"}
"""Short verbs. They work in each group that has the long verb and no command of the short name."""

Mark = Literal["writes", "server", "serves", "fails", "network"]
"""What running an example takes: it ``writes`` to the workspace or a file; it needs a running
``server``; it is a server and ``serves`` until it is stopped; it ``fails`` on purpose; it needs
the ``network``."""


@dataclass(frozen=True, slots=True, init=False)
class Example:
    """A shell command line that ``--help`` shows with its recorded output.

    The output is in ``examples.json``; see :mod:`trunkline.cli.examples`. Values that differ from
    run to run are written as shell variables: ``$KEY_ID``, ``$REQUEST_ID`` and ``$HEAD``.
    """

    line: str
    marks: frozenset[Mark]

    def __init__(self, line: str, *marks: Mark) -> None:
        object.__setattr__(self, "line", line)
        object.__setattr__(self, "marks", frozenset(marks))


def asks_for_json(args: Sequence[str]) -> bool:
    """Whether ``--json`` is among the options of a command line."""
    return "--json" in takewhile(lambda arg: arg != "--", args)


class Command(click.Command):
    """A command whose help shows examples with their output.

    Args:
        example: one or several command lines; a plain string is one without marks.
    """

    def __init__(
        self,
        *args: Any,
        example: str | Example | Sequence[str | Example],
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        examples = (example,) if isinstance(example, str | Example) else example
        self.examples = tuple(
            Example(entry) if isinstance(entry, str) else entry for entry in examples
        )

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **settings: Any,
    ) -> click.Context:
        takes_json = any(option.name == "as_json" for option in self.params)
        if not (takes_json and asks_for_json(args)):
            return super().make_context(info_name, args, parent, **settings)
        from trunkline.cli.output import json_only

        with json_only():
            return super().make_context(info_name, args, parent, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        if not ctx.params.get("as_json"):
            return super().invoke(ctx)
        from trunkline.cli.output import json_only

        with json_only():
            return super().invoke(ctx)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from trunkline.cli.examples import recorded_outputs

        super().format_help_text(ctx, formatter)
        outputs = recorded_outputs()
        sessions = [
            "\n".join([f"$ {example.line}", *outputs.get(example.line, ())])
            for example in self.examples
        ]
        formatter.write_paragraph()
        formatter.write("Example:\n")
        formatter.write(indent("\n\n".join(sessions), "  ") + "\n")


class Group(click.Group):
    """A group of commands, some of which are imported only when they are used.

    Args:
        lazy: name → ``module:attribute``.
    """

    command_class = Command

    def __init__(self, *args: Any, lazy: Mapping[str, str] | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *self._lazy]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        names = self.list_commands(ctx)
        if cmd_name not in names and ALIASES.get(cmd_name) in names:
            cmd_name = ALIASES[cmd_name]
        if cmd_name in self._lazy:
            module, _, attribute = self._lazy[cmd_name].partition(":")
            command: click.Command = getattr(import_module(module), attribute)
            return command
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            names = self.list_commands(ctx)
            raise click.NoSuchCommand(error.command_name, possibilities=names, ctx=ctx) from None

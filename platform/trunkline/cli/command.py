"""The kinds of commands that the others are made of.

Owns: the example in every ``--help``, groups that import their commands when asked, aliases.
Must not know: any noun.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from textwrap import dedent, indent
from typing import Any

import click

ALIASES = {"ls": "list", "rm": "uninstall"}
"""Short words for verbs, in every group that has the verb and none of that very name."""


class Command(click.Command):
    """A command whose help shows an example with its output, after the first sentence."""

    def __init__(self, *args: Any, example: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.example = dedent(example).strip("\n")

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        formatter.write_paragraph()
        formatter.write("Example:\n")
        formatter.write(indent(self.example, "  ") + "\n")


class Group(click.Group):
    """Commands by name, some of them imported only when they are asked for.

    Args:
        lazy: name → ``module:attribute``.
    """

    command_class = Command

    def __init__(self, *args: Any, lazy: Mapping[str, str] | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._lazy, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = self.list_commands(ctx)
        if cmd_name not in known and ALIASES.get(cmd_name) in known:
            cmd_name = ALIASES[cmd_name]
        if cmd_name in self._lazy:
            module, _, attribute = self._lazy[cmd_name].partition(":")
            found: click.Command = getattr(import_module(module), attribute)
            return found
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            known = self.list_commands(ctx)
            raise click.NoSuchCommand(error.command_name, possibilities=known, ctx=ctx) from None

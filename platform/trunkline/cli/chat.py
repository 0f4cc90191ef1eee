"""``trunkline chat``: a talk in which the adapter may be swapped between two sentences."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import click

from trunkline.cli.answering import Client, Voice, answering
from trunkline.cli.command import Command
from trunkline.cli.errors import tell
from trunkline.cli.generate import sampling_options
from trunkline.cli.options import Globals, url_option, with_globals
from trunkline.cli.output import note, print_table
from trunkline.cli.predict import chance_text, likeliest, value_text
from trunkline.errors import NotFoundError, TrunklineError
from trunkline.refs import BASE

HELP = {
    "/use REF": "let another adapter answer from here on; the talk goes on",
    "/base": "let the bare base answer",
    "/adapters": "list the adapters",
    "/reset": "forget the talk",
    "/help": "show this",
    "/quit": "end (or Ctrl-D)",
}


@dataclass
class Talk:
    """What was said, and who answers next."""

    client: Client
    sampling: dict[str, Any]
    voice: Voice = field(default_factory=Voice)
    messages: list[dict[str, str]] = field(default_factory=list)

    def use(self, ref: str) -> None:
        """Swap the voice; what was said stays. Raises before anything changes."""
        self.voice = self.client.find(ref)

    def answer(self, line: str) -> None:
        """Write the answer to a line on stdout, and remember both if it is part of the talk."""
        if not self.voice.generates:
            answer = self.client.predict(self.voice, [line])[0]
            if answer.value is not None:
                click.echo(value_text(answer))
            else:
                label, chance = next(iter(likeliest(answer, 1).items()))
                click.echo(f"{label}  {chance_text(chance)}")
            return
        asked = {"role": "user", "content": line}
        text, finish = "", None
        with closing(self.client.stream(self.voice, [*self.messages, asked], self.sampling)) as (
            pieces
        ):
            try:
                for piece in pieces:
                    text += piece.text
                    finish = piece.finish or finish
                    click.echo(piece.text, nl=False)
            finally:
                if text or finish:
                    click.echo()
        if finish == "length":
            note("(cut off; --max-new-tokens allows more)")
        self.messages += [asked, {"role": "assistant", "content": text}]


@click.command(
    "chat",
    cls=Command,
    short_help="Talk, and swap adapters in the middle of the talk.",
    example=(
        "trunkline chat <<'END'\n"
        "What is the capital of France?\n"
        "/use medical/icd10-chapter\n"
        "Acute appendicitis\n"
        "/base\n"
        "And of Spain?\n"
        "END"
    ),
)
@click.argument("ref", required=False)
@sampling_options
@url_option
@with_globals
def chat(said: Globals, /, ref: str | None, url: str | None, **sampling: Any) -> None:
    """Talk with the base or an adapter, and swap adapters in the middle of the talk."""
    with answering(said, url) as client:
        _talk(Talk(client, sampling), ref or BASE)


def _talk(talk: Talk, ref: str) -> None:
    talk.use(ref)
    interactive = sys.stdin.isatty()
    if interactive:
        note("/help lists the commands.")
    for line in _lines(talk, interactive):
        try:
            if line.startswith("/"):
                if not _command(talk, line):
                    return
            else:
                talk.answer(line)
        except TrunklineError as error:
            tell(error)
        except KeyboardInterrupt:
            note("(stopped)")


def _lines(talk: Talk, interactive: bool) -> Iterator[str]:
    if not interactive:
        for line in sys.stdin:
            if line.strip():
                yield line.strip()
        return
    import readline  # noqa: F401  # gives input() a history

    while True:
        try:
            line = input(f"{talk.voice.name}> ").strip()
        except EOFError:
            click.echo(err=True)
            return
        if line:
            yield line


def _command(talk: Talk, line: str) -> bool:
    """Obey a line that begins with a slash; False ends the talk."""
    word, _, rest = line.partition(" ")
    if word == "/use":
        talk.use(rest.strip())
    elif word == "/base":
        talk.use(BASE)
    elif word == "/adapters":
        _list_adapters(talk)
    elif word == "/reset":
        talk.messages.clear()
        note("The talk is forgotten.")
    elif word == "/help":
        for command, meaning in HELP.items():
            note(f"{command:10} {meaning}")
    elif word == "/quit":
        return False
    else:
        raise NotFoundError.named(
            "command", word, [command.split()[0] for command in HELP], "/help lists them."
        )
    return True


def _list_adapters(talk: Talk) -> None:
    found = talk.client.adapters()
    if not found:
        note("No adapter yet: `trunkline train RECIPE`.")
    print_table(["", ""], found)

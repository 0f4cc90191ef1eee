"""``trunkline chat``: a conversation in which you can switch between adapters."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import click

from trunkline.cli.client import TRUNCATED, Client, Messages, Model, open_client
from trunkline.cli.command import Command
from trunkline.cli.errors import report
from trunkline.cli.output import note, print_table
from trunkline.cli.predict import print_answers, sampling_options
from trunkline.cli.root import GlobalOptions, pass_options, url_option
from trunkline.errors import NotFoundError, SingleTextError, TrunklineError, UsageError
from trunkline.refs import BASE

HELP = {
    "/use REF": "switch to another adapter; the conversation continues",
    "/base": "switch to the bare base",
    "/adapters": "list the adapters",
    "/reset": "start a new conversation",
    "/help": "show this help",
    "/quit": "end (or Ctrl-D)",
}


@dataclass
class Conversation:
    """The messages so far, and the model that answers next."""

    client: Client
    sampling: dict[str, Any]
    model: Model = field(default_factory=Model)
    messages: list[dict[str, str]] = field(default_factory=list)

    def use(self, ref: str) -> None:
        """Switch the model and keep the messages. On an error, nothing changes."""
        model = self.client.resolve(ref)
        if model.modality == "image":
            raise UsageError(
                f"{model.name} reads pictures, and a chat has texts.",
                f"Use: trunkline predict {model.name} picture.jpg",
            )
        self.model = model

    def answer(self, line: str) -> None:
        """Write the answer to a line on stdout.

        Generated answers become part of the conversation; labels and numbers don't.
        """
        if not self.model.generates:
            answer = self.client.predict(self.model, [line])[0]
            print_answers([line], [answer], 1)
            if answer.truncated:
                note(TRUNCATED)
            return
        message = {"role": "user", "content": line}
        try:
            text = self._write_reply([*self.messages, message])
        except SingleTextError:
            note("(this adapter reads the last message alone)")
            text = self._write_reply([message])
        self.messages += [message, {"role": "assistant", "content": text}]

    def _write_reply(self, messages: Messages) -> str:
        """Write a generated answer to a conversation on stdout, and return it."""
        text, finish = "", None
        with closing(self.client.stream(self.model, messages, self.sampling)) as chunks:
            try:
                for chunk in chunks:
                    text += chunk.text
                    finish = chunk.finish or finish
                    click.echo(chunk.text, nl=False)
            finally:
                if text or finish:
                    click.echo()
        if finish == "length":
            note("(truncated; --max-new-tokens raises the limit)")
        return text


@click.command(
    "chat",
    cls=Command,
    short_help="Chat, and switch adapters in the conversation.",
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
@pass_options
def chat(options: GlobalOptions, /, ref: str | None, url: str | None, **sampling: Any) -> None:
    """Chat with the base or an adapter; `/use REF` switches the adapter in the conversation."""
    with open_client(options, url) as client:
        _run(Conversation(client, sampling), ref or BASE)


def _run(conversation: Conversation, ref: str) -> None:
    conversation.use(ref)
    interactive = sys.stdin.isatty()
    if interactive:
        note("/help lists the commands.")
    for line in _lines(conversation, interactive):
        try:
            if line.startswith("/"):
                if not _command(conversation, line):
                    return
            else:
                conversation.answer(line)
        except TrunklineError as error:
            report(error)
        except KeyboardInterrupt:
            note("(stopped)")


def _lines(conversation: Conversation, interactive: bool) -> Iterator[str]:
    if not interactive:
        for line in sys.stdin:
            if line.strip():
                yield line.strip()
        return
    import readline  # noqa: F401  # gives input() a history

    while True:
        try:
            line = input(f"{conversation.model.name}> ").strip()
        except EOFError:
            click.echo(err=True)
            return
        if line:
            yield line


def _command(conversation: Conversation, line: str) -> bool:
    """Run a slash command; False ends the conversation."""
    name, _, argument = line.partition(" ")
    if name == "/use":
        conversation.use(argument.strip())
    elif name == "/base":
        conversation.use(BASE)
    elif name == "/adapters":
        _list_adapters(conversation)
    elif name == "/reset":
        conversation.messages.clear()
        note("Started a new conversation.")
    elif name == "/help":
        for command, meaning in HELP.items():
            note(f"{command:10} {meaning}")
    elif name == "/quit":
        return False
    else:
        raise NotFoundError.named(
            "command", name, [command.split()[0] for command in HELP], "/help lists them."
        )
    return True


def _list_adapters(conversation: Conversation) -> None:
    adapters = conversation.client.adapters()
    if not adapters:
        note("No adapters yet: `trunkline train RECIPE`.")
    print_table(["", ""], adapters)

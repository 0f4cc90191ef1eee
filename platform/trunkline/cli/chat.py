"""``trunkline chat``: a talk in which the adapter may be swapped between two sentences."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import click

from trunkline.cli.command import Command
from trunkline.cli.generate import sampling_options
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import note, print_table
from trunkline.cli.predict import chance_text, likeliest, value_text
from trunkline.cli.tell import tell
from trunkline.errors import NotFoundError, TrunklineError
from trunkline.refs import BASE

if TYPE_CHECKING:
    from trunkline.contracts import Template
    from trunkline.inference.request import Request
    from trunkline.registry.records import VersionRecord

HELP = {
    "/use REF": "let another adapter answer from here on; the talk goes on",
    "/base": "let the bare base answer",
    "/adapters": "list the adapters",
    "/reset": "forget the talk",
    "/help": "show this",
    "/quit": "end (or Ctrl-D)",
}


@dataclass(frozen=True, slots=True)
class Voice:
    """Who answers: one version with its template, or the bare base."""

    version: VersionRecord | None = None
    template: Template | None = None

    @property
    def name(self) -> str:
        return str(self.version.ref) if self.version else BASE

    @property
    def generates(self) -> bool:
        return self.version is None or self.version.task == "generation"

    @property
    def talks(self) -> bool:
        """Whether the talk so far is put before the question."""
        return self.generates and (self.template is None or self.template.chat)


@dataclass
class Talk:
    """What was said, and who answers next."""

    said: Globals
    sampling: dict[str, Any]
    voice: Voice = field(default_factory=Voice)
    messages: list[dict[str, str]] = field(default_factory=list)

    def use(self, ref: str) -> None:
        """Swap the voice; what was said stays. Raises before anything changes."""
        if ref == BASE:
            self.voice = Voice()
            note(BASE)
            return
        version = self.said.version(ref)
        manifest = self.said.platform.store.fetch(version).manifest
        self.voice = Voice(version, manifest.make_template())

    def answer(self, line: str) -> None:
        """Write the answer to a line on stdout, and remember both if it is part of the talk."""
        request = self._request(line)
        if not self.voice.generates:
            answer = self.said.platform.run([request])[0]
            if answer.value is not None:
                click.echo(value_text(answer))
            else:
                label, chance = next(iter(likeliest(answer, 1).items()))
                click.echo(f"{label}  {chance_text(chance)}")
            return
        from transformers import TextStreamer

        engine = self.said.platform.engine
        streamer = TextStreamer(engine.base.tokenizer, skip_prompt=True, skip_special_tokens=True)
        answer = self.said.platform.run([request], streamer=streamer)[0]
        if answer.finish == "length":
            note("(cut off; --max-new-tokens allows more)")
        self.messages += [
            {"role": "user", "content": line},
            {"role": "assistant", "content": answer.text or ""},
        ]

    def _request(self, line: str) -> Request:
        from trunkline.inference.request import Request

        adapter = str(self.voice.version.ref) if self.voice.version else None
        request = Request(adapter, line, **self.sampling)
        tokenizer = self.said.platform.engine.base.tokenizer
        if not self.voice.talks or tokenizer.chat_template is None:
            return request
        template = self.voice.template
        messages = [*self.messages, {"role": "user", "content": line}]
        if template is not None:
            messages[-1] = {"role": "user", "content": template.filled(line)}
            if template.system is not None:
                messages.insert(0, {"role": "system", "content": template.system})
        return replace(request, messages=tuple(messages))


@click.command(
    "chat",
    cls=Command,
    short_help="Talk, and swap adapters in the middle of the talk.",
    example="""
    $ trunkline chat
    base
    /help lists the commands.
    base> What is the capital of France?
    The capital of France is Paris.
    base> /use medical/icd10-chapter
    medical/icd10-chapter@2 (champion)
    medical/icd10-chapter@2> Acute appendicitis
    Diseases of the digestive system  0.998
    medical/icd10-chapter@2> /base
    base
    base> And of Spain?
    The capital of Spain is Madrid.
    base> /quit
    """,
)
@click.argument("ref", required=False)
@sampling_options
@with_globals
def chat(said: Globals, /, ref: str | None, **sampling: Any) -> None:
    """Talk with the base or an adapter, and swap adapters in the middle of the talk."""
    talk = Talk(said, sampling)
    talk.use(ref or BASE)
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
            note("\n(stopped)")


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
    found = talk.said.platform.adapters()
    if not found:
        note("No adapter yet: `trunkline train RECIPE`.")
    print_table(["", ""], [(one.ref, one.task) for one in found])

"""Where answers come from: the platform in this process, or a running server.

Owns: the few questions that commands ask, put to either. Must not know: what is written where,
beyond the note that says which version answers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from trunkline.cli.options import Globals
from trunkline.cli.output import note
from trunkline.errors import UsageError
from trunkline.refs import BASE, Ref

if TYPE_CHECKING:
    from trunkline.cli.progress import Lines, Live
    from trunkline.cli.remote import Remote
    from trunkline.inference.request import Answer, StreamChunk

Messages = Sequence[Mapping[str, str]]
_ROUTES = {"classification": "/v1/classify", "regression": "/v1/regress"}
_AT_ONCE = 64
_CHARS_AT_ONCE = 50_000


@dataclass(frozen=True, slots=True)
class Voice:
    """Who answers: one immutable version, or the bare base."""

    name: str = BASE
    task: str = "generation"
    digest: str = ""

    @property
    def generates(self) -> bool:
        return self.task == "generation"


class Client(Protocol):
    """What can be asked, here or there. The answers are the same."""

    def find(self, ref: str) -> Voice:
        """Who answers to ``ref``; told on stderr."""

    def prepare(self, listener: Lines | Live) -> None:
        """Load what is needed, so that it does not count as answering."""

    def predict(self, voice: Voice, texts: Sequence[str]) -> list[Answer]:
        """Labels or numbers, one a text."""

    def generate(self, voice: Voice, prompt: str, sampling: Mapping[str, Any]) -> Answer:
        """One text."""

    def stream(
        self, voice: Voice, messages: Messages, sampling: Mapping[str, Any]
    ) -> Generator[StreamChunk]:
        """The answer to a talk, piece by piece; closing the generator gives the request up."""

    def adapters(self) -> list[tuple[str, str]]:
        """Name and task of each adapter."""


@contextmanager
def answering(said: Globals, url: str | None) -> Iterator[Client]:
    """The server at ``url``, or the platform of this process."""
    if url is None:
        yield LocalClient(said)
        return
    from trunkline.cli.remote import Remote

    with Remote(url) as remote:
        yield HttpClient(remote)


class LocalClient:
    """The platform of this process."""

    def __init__(self, said: Globals) -> None:
        self._said = said

    def find(self, ref: str) -> Voice:
        if ref == BASE:
            note(BASE)
            return Voice()
        version = self._said.version(ref)
        return Voice(str(version.ref), version.task, version.digest)

    def prepare(self, listener: Lines | Live) -> None:
        listener.stage("opening the base")
        self._said.platform.engine  # noqa: B018  # a property that loads

    def predict(self, voice: Voice, texts: Sequence[str]) -> list[Answer]:
        return self._said.platform.predict(voice.name, texts)

    def generate(self, voice: Voice, prompt: str, sampling: Mapping[str, Any]) -> Answer:
        adapter = None if voice.name == BASE else voice.name
        return self._said.platform.generate([(adapter, prompt)], **sampling)[0]

    def stream(
        self, voice: Voice, messages: Messages, sampling: Mapping[str, Any]
    ) -> Generator[StreamChunk]:
        from trunkline.inference.request import Request

        talk = tuple(dict(message) for message in messages)
        request = Request(voice.name, talk[-1]["content"], messages=talk, **sampling)
        handle = self._said.platform.submit(request)
        try:
            yield from handle.chunks()
        finally:
            handle.cancel()

    def adapters(self) -> list[tuple[str, str]]:
        return [(str(one.ref), one.task) for one in self._said.platform.adapters()]


class HttpClient:
    """A running server."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def find(self, ref: str) -> Voice:
        if ref != BASE:
            Ref.parse(ref)
        with self._understood():
            told = self._remote.get(f"/v1/models/{quote(ref, safe='/@:')}")
            voice = Voice(str(told["root"]), str(told["task"]), str(told["digest"]))
        note(voice.name)
        return voice

    def prepare(self, listener: Lines | Live) -> None:
        """The server's own concern."""

    def predict(self, voice: Voice, texts: Sequence[str]) -> list[Answer]:
        if voice.generates:
            raise UsageError(
                "The bare base gives no labels."
                if voice.name == BASE
                else f"{voice.name} is for {voice.task}.",
                f'Ask it with `trunkline generate {voice.name} "…"`.',
            )
        return [answer for part in _parts(texts) for answer in self._predict(voice, part)]

    def _predict(self, voice: Voice, texts: Sequence[str]) -> list[Answer]:
        from trunkline.inference.request import Answer

        told = self._remote.post(_ROUTES[voice.task], {"model": voice.name, "input": list(texts)})
        with self._understood():
            return [
                Answer(
                    adapter=told["model"],
                    digest=voice.digest,
                    task=voice.task,
                    prompt_tokens=one["prompt_tokens"],
                    label=one.get("label"),
                    probabilities=one.get("probabilities"),
                    value=one.get("value"),
                    unit=one.get("unit"),
                )
                for one in told["data"]
            ]

    def generate(self, voice: Voice, prompt: str, sampling: Mapping[str, Any]) -> Answer:
        from trunkline.inference.request import Answer

        if not voice.generates:
            raise UsageError(
                f"{voice.name} is for {voice.task}.",
                f'Ask it with `trunkline predict {voice.name} "…"`.',
            )
        body = _body(voice, [{"role": "user", "content": prompt}], sampling)
        told = self._remote.post("/v1/chat/completions", body)
        with self._understood():
            choice, usage = told["choices"][0], told["usage"]
            return Answer(
                adapter=told["model"],
                digest=voice.digest,
                task=voice.task,
                prompt_tokens=usage["prompt_tokens"],
                new_tokens=usage["completion_tokens"],
                cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
                text=choice["message"]["content"],
                finish=choice["finish_reason"],
            )

    def stream(
        self, voice: Voice, messages: Messages, sampling: Mapping[str, Any]
    ) -> Generator[StreamChunk]:
        from trunkline.inference.request import StreamChunk

        body = _body(voice, messages, sampling) | {"stream": True}
        for told in self._remote.events("/v1/chat/completions", body):
            with self._understood():
                pieces = [
                    StreamChunk(
                        one["index"], one["delta"].get("content") or "", (), one["finish_reason"]
                    )
                    for one in told["choices"]
                ]
            yield from pieces

    def adapters(self) -> list[tuple[str, str]]:
        found: dict[str, str] = {}
        page: dict[str, Any] = self._remote.get("/v1/models")
        with self._understood():
            for one in page["data"]:
                if one["id"] != BASE:
                    found.setdefault(one["id"].partition("@")[0], one["task"])
        return list(found.items())

    @contextmanager
    def _understood(self) -> Iterator[None]:
        from trunkline.cli.remote import not_understood

        try:
            yield
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise not_understood(self._remote.url) from error


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in requests that a server takes; a text that is too long alone stands alone."""
    part: list[str] = []
    for text in texts:
        if part and (len(part) == _AT_ONCE or sum(map(len, part)) + len(text) > _CHARS_AT_ONCE):
            yield part
            part = []
        part.append(text)
    if part:
        yield part


def _body(voice: Voice, messages: Messages, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent to the chat route; sampling is that of the command line."""
    body = {"model": voice.name, "messages": list(messages), **sampling}
    most = body.pop("max_new_tokens", None)
    return body if most is None else body | {"max_tokens": most}

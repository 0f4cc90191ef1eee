"""One request to vLLM and its answer, which ends after its line in the request log is committed."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from trunkline.errors import RegistryError, TrunklineError
from trunkline.redaction import redact
from trunkline.refs import BASE
from trunkline.registry.records import KeyRecord, RequestEntry, VersionRecord
from trunkline.registry.registry import Registry
from trunkline.serving.errors import error_body

MAX_BACKLOG = 10_000
"""Lines that are kept in memory while the registry can't be written."""


class Exchange:
    """What the log records of a request, and the headers of its response.

    Attributes:
        key: None if the server is open.
        model: as the client wrote it; None: the request is not logged.
        version: what answers; None is the base, where ``base_digest`` is set.
        logged: whether the line is committed.
    """

    def __init__(self, route: str) -> None:
        self.id = uuid.uuid4().hex
        self.route = route
        self.key: KeyRecord | None = None
        self.model: str | None = None
        self.version: VersionRecord | None = None
        self.base_digest: str | None = None
        self.logged = False
        self.usage: dict[str, Any] = {}
        self._at = datetime.now(UTC)
        self._started = time.monotonic()

    @property
    def headers(self) -> dict[str, str]:
        """The request's id, the version and its digest."""
        headers = {"x-request-id": self.id}
        if (name := self._version_name) is not None:
            headers |= {"x-trunkline-version": name, "x-trunkline-digest": self._digest or ""}
        return headers

    def entry(self, status: int) -> RequestEntry:
        """The line in the log."""
        return RequestEntry(
            id=self.id,
            at=self._at,
            key=None if self.key is None else self.key.id,
            route=self.route,
            model=redact(self.model or ""),
            version=self._version_name,
            digest=self._digest,
            prompt_tokens=int(self.usage.get("prompt_tokens") or 0),
            new_tokens=int(self.usage.get("completion_tokens") or 0),
            status=status,
            seconds=time.monotonic() - self._started,
        )

    @property
    def _version_name(self) -> str | None:
        if self.version is not None:
            return str(self.version.ref)
        return None if self.base_digest is None else BASE

    @property
    def _digest(self) -> str | None:
        return self.base_digest if self.version is None else self.version.digest


class Backlog:
    """Commits lines of the log; while the registry can't be written, it keeps them in memory.

    One thread uses it, that of :class:`~trunkline.serving.request_log.RequestLog`.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lines: list[RequestEntry] = []

    def commit(self, lines: Sequence[RequestEntry]) -> None:
        """Commit lines after those that wait.

        Raises:
            RegistryError: the registry can't be written, and too many lines wait.
        """
        waiting = [*self._lines, *lines]
        try:
            self._registry.requests.log(waiting)
        except RegistryError:
            if len(waiting) > MAX_BACKLOG:
                raise
        else:
            waiting = []
        self._lines = waiting

    def close(self) -> None:
        """Try a last time; what can't be committed is written to the process's own log."""
        try:
            self.commit(())
        except RegistryError as error:
            logging.getLogger("trunkline_vllm").error("%s", error.message)
        for line in self._lines:
            logging.getLogger("trunkline_vllm").error("This request is not in the log: %r", line)


class AnswerSender:
    """A ``send`` for vLLM's application: adds headers, reads the usage, and holds back the end.

    Args:
        keep_usage: whether the client wants the usage at the end of a stream.
    """

    def __init__(self, exchange: Exchange, send: Send, *, keep_usage: bool) -> None:
        self._exchange = exchange
        self._send = send
        self._keep_usage = keep_usage
        self._start: Message = {}
        self._status = 499
        self._streams = False
        self._complete = False
        self._held = b""

    async def __call__(self, message: Message) -> None:
        """Handle a message of the application."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in self._exchange.headers.items():
                headers[name] = value
            self._start, self._status = message, message["status"]
            self._streams = headers.get("content-type", "").startswith("text/event-stream")
            if self._streams:
                await self._send(message)
        elif message["type"] == "http.response.body":
            self._held += message.get("body", b"")
            self._complete = not message.get("more_body", False)
            if self._streams and (data := self._passing()):
                await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, commit: Callable[[int], Awaitable[None]]) -> None:
        """Commit the line in the log, then send the rest; after the application has returned.

        Args:
            commit: takes the status; raises :class:`TrunklineError` if the line can't be written.

        Raises:
            TrunklineError: the line can't be written, and nothing was sent.
        """
        if not self._complete:  # the client has disconnected
            await commit(499)
            return
        if not self._streams:
            if self._status == 200:
                self._exchange.usage = _object(self._held).get("usage") or {}
            await commit(self._status)
            await self._send(self._start)
        else:
            try:
                await commit(self._status)
            except TrunklineError as error:
                self._held = b"data: " + json.dumps(error_body(error)).encode() + b"\n\n"
        await self._send({"type": "http.response.body", "body": self._held})

    def _passing(self) -> bytes:
        """The complete events but for the end, and for a usage that nobody asked for."""
        *events, self._held = self._held.split(b"\n\n")
        if events and events[-1] == b"data: [DONE]":
            self._held = events.pop() + b"\n\n" + self._held
        return b"".join(event + b"\n\n" for event in events if self._passes(event))

    def _passes(self, event: bytes) -> bool:
        if event.startswith(b'data: {"error"'):
            self._status = 500
        if b'"usage":{' not in event:
            return True
        content = _object(event.removeprefix(b"data: "))
        self._exchange.usage = content.get("usage") or {}
        return self._keep_usage or bool(content.get("choices"))


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}

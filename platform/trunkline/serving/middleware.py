"""The way in: every request passes here before any route sees it.

Owns: ids, limits on heads and bodies, keys, what is refused while the server ends, and what every
error becomes. Must not know: routes' bodies.
"""

from __future__ import annotations

import asyncio
import logging
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trunkline.errors import TooLargeError, TrunklineError
from trunkline.refs import shown
from trunkline.registry.records import KeyRecord
from trunkline.serving.call import Call
from trunkline.serving.errors import INTERNAL, ApiError, refusal
from trunkline.serving.service import Service
from trunkline.serving.settings import ServerSettings

PROBES = frozenset({"/health", "/ready"})
METRICS = "/metrics"

_ID = re.compile(r"[A-Za-z0-9_.-]{1,80}", re.ASCII)
_READ_OFF = 8


class Gate:
    """Middleware around the whole application; lifespan messages pass untouched."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Call(self._service, scope["path"])
        scope.setdefault("state", {})["call"] = call
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).setdefault("x-request-id", call.id)
                route = getattr(scope.get("route"), "path", "none")
                self._service.metrics.count_response(route, message["status"])
            await send(message)

        try:
            try:
                inner = await self._admit(call, scope, receive)
                await self._app(scope, inner, sending)
            except TrunklineError as error:
                told = error
            except Exception:
                logging.getLogger("trunkline.serving").exception("A request failed.")
                told = INTERNAL
            else:
                return
            told = await call.fail(told)
            if not started:
                await refusal(told, call.headers)(scope, receive, sending)
        finally:
            self._service.leave(call)

    async def _admit(self, call: Call, scope: Scope, receive: Receive) -> Receive:
        """Check a request; gives what to read it from, its body being here already."""
        headers = Headers(scope=scope)
        _check_head(headers, self._service.settings)
        path = scope["path"]
        _check_path(path)
        if path in PROBES:
            return receive
        if path != METRICS:
            self._service.enter(call)
        asked_id = headers.get("x-request-id", "")
        free = await self._service.ask(self._identify, call, headers, asked_id)
        if free and asked_id not in self._service.calls and path != METRICS:
            self._service.rename(call, asked_id, by_client=True)
        body = await _read(receive, headers, self._service.settings)
        return _replayed(body, receive)

    def _identify(self, call: Call, headers: Headers, asked_id: str) -> bool:
        """Find whose request it is, and whether it may have the id that it asks for; blocks."""
        call.key = self._key(headers)
        return bool(_ID.fullmatch(asked_id)) and self._service.id_is_free(asked_id)

    def _key(self, headers: Headers) -> KeyRecord | None:
        return self._service.doorkeeper.key_of(headers.get("authorization"), headers.get("host"))


def _check_head(headers: Headers, settings: ServerSettings) -> None:
    size = sum(len(name) + len(value) + 4 for name, value in headers.raw)
    if size > settings.max_header_bytes:
        raise ApiError(
            f"The request's headers have {size:,} bytes.",
            f"Send {settings.max_header_bytes:,} at most.",
            status=431,
            code="too_large",
        )


def _check_path(path: str) -> None:
    """Routers drop a newline at a path's end; no unprintable character has a place in one."""
    if not path.isprintable():
        raise ApiError(
            f"The path {shown(path)} holds an unprintable character.",
            "Write the model's name as GET /v1/models gives it.",
        )


async def _read(receive: Receive, headers: Headers, settings: ServerSettings) -> bytes:
    """The whole body.

    A body that is too large is read off for a while, so that its sender gets to see the answer.

    Raises:
        TooLargeError: it is larger than allowed.
        ApiError: 408, it does not arrive in time.
    """
    most = settings.max_body_bytes
    stated = headers.get("content-length", "")
    size = int(stated) if stated.isdecimal() and len(stated) < 20 else 0
    if size > most and "expect" in headers:
        raise _too_large(most)
    parts: list[bytes] = []
    total = 0
    try:
        async with asyncio.timeout(settings.read_timeout):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    break
                total += len(message.get("body", b""))
                if max(total, size) <= most:
                    parts.append(message.get("body", b""))
                else:
                    parts.clear()
                if not message.get("more_body", False) or total > most * _READ_OFF:
                    break
    except TimeoutError:
        raise ApiError(
            f"The body did not arrive in {settings.read_timeout:g} seconds.",
            "Send it again.",
            status=408,
            code="read_timeout",
        ) from None
    if max(total, size) > most:
        raise _too_large(most)
    return b"".join(parts)


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(
        f"The body is larger than {most:,} bytes.", "Send less at once, in several requests."
    )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then whatever else comes: the client going away."""
    waiting = True

    async def inner() -> Message:
        nonlocal waiting
        if waiting:
            waiting = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return inner

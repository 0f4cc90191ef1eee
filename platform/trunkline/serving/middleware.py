"""Middleware around all routes: request ids, limits on headers and bodies, authentication."""

from __future__ import annotations

import asyncio
import logging
import re
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trunkline.errors import AuthenticationError, ForbiddenError, TooLargeError, TrunklineError
from trunkline.refs import shown
from trunkline.registry.records import KeyRecord
from trunkline.registry.registry import Registry
from trunkline.serving.errors import INTERNAL_ERROR, ApiError, error_response
from trunkline.serving.paths import PAGES
from trunkline.serving.service import RequestContext, Service
from trunkline.serving.settings import ServerSettings

PROBES = frozenset({"/health", "/ready"})
METRICS = "/metrics"

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,80}", re.ASCII)
_DISCARD_FACTOR = 8
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


class Authenticator:
    """Finds the key of a request, and refuses requests without a valid one.

    A server that only this machine can reach is open until the first key is created. After that it
    stays closed, even when the last key is removed.

    Args:
        loopback: whether only this machine can reach the server; otherwise it is never open.
        host: the server's own name; a browser may send it like the usual local names.
    """

    def __init__(self, registry: Registry, *, loopback: bool, host: str) -> None:
        self._registry = registry
        self._names = _LOCAL_NAMES | {host.lower()}
        self._closed = not loopback

    def authenticate(self, authorization: str | None, host: str | None) -> KeyRecord | None:
        """The request's key; None if the server is open. Reads the registry and blocks.

        An open server accepts any bearer token, because OpenAI's clients always send one.

        Args:
            authorization: the request's header of that name.
            host: the request's header of that name.

        Raises:
            AuthenticationError: the key is missing, unknown, removed or expired.
            ForbiddenError: a browser on this machine sends the request for another site's page.
        """
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() == "bearer":
            key = self._registry.keys.authenticate(secret.strip())
            if key is not None:
                return key
        if not self._closed:
            self._closed = self._registry.keys.has_any()
        if self._closed:
            problem = "The key is not valid." if authorization else "The request has no key."
            raise AuthenticationError(
                problem,
                "Send the header Authorization: Bearer KEY; `trunkline keys create` makes a key.",
            )
        name = (host or "").lower()
        name = name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]
        if name not in self._names:
            raise ForbiddenError(
                f"This server has no key and does not answer to the name {shown(host or '')}.",
                "Use the name localhost. To use other names, create a key: "
                "`trunkline keys create OWNER`.",
            )
        return None


class RequestMiddleware:
    """Creates the request context, and checks a request before any route sees it.

    It wraps the whole application, so that limits and keys apply to unknown paths too. Lifespan
    messages pass unchanged.
    """

    def __init__(self, app: ASGIApp, service: Service, authenticator: Authenticator) -> None:
        self._app = app
        self._service = service
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = _without_trailing_slash(scope)
        if scope["method"] == "HEAD":  # the HTTP server sends no body
            scope = {**scope, "method": "GET"}
        context = RequestContext(self._service, scope["path"])
        scope.setdefault("state", {})["context"] = context
        started = False

        async def send_counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).setdefault("x-request-id", context.id)
                route = getattr(scope.get("route"), "path", "none")
                self._service.metrics.count_response(route, message["status"])
            await send(message)

        failure: TrunklineError | None = None
        try:
            try:
                receive_checked = await self._admit(context, scope, receive)
                await self._app(scope, receive_checked, send_counted)
            except TrunklineError as error:
                failure = error
            except Exception:
                logging.getLogger("trunkline.serving").exception("A request failed.")
                failure = INTERNAL_ERROR
            if failure is not None:
                failure = await context.fail(failure)
                if not started:
                    response = error_response(failure, context.headers)
                    await response(scope, receive, send_counted)
        finally:
            self._service.remove(context)

    async def _admit(self, context: RequestContext, scope: Scope, receive: Receive) -> Receive:
        """Check a request and read its body; returns a ``receive`` that replays the body."""
        headers = Headers(scope=scope)
        check_header_size(headers, self._service.settings)
        path = scope["path"]
        _check_path(path)
        is_open = path == METRICS and self._service.settings.open_metrics
        if path in PROBES or path in PAGES or is_open:
            return receive
        if path != METRICS:
            self._service.add(context)
        client_id = headers.get("x-request-id", "")
        free = await self._service.query(self._identify, context, headers, client_id)
        if free and client_id not in self._service.in_flight and path != METRICS:
            self._service.set_id(context, client_id, chosen_by_client=True)
        body = await read_body(receive, headers, self._service.settings)
        return replay(body, receive)

    def _identify(self, context: RequestContext, headers: Headers, client_id: str) -> bool:
        """Authenticate, and check if the client's own request id may be used; blocks."""
        context.key = self._authenticator.authenticate(
            headers.get("authorization"), headers.get("host")
        )
        return bool(_REQUEST_ID.fullmatch(client_id)) and self._service.id_is_free(client_id)


def _without_trailing_slash(scope: Scope) -> Scope:
    """The scope of the same path without slashes at its end, which some clients add."""
    path = scope["path"].rstrip("/") or "/"
    if path == scope["path"]:
        return scope
    return {**scope, "path": path, "raw_path": quote(path).encode()}


def check_header_size(headers: Headers, settings: ServerSettings) -> None:
    """Refuse a request whose headers are too large."""
    size = sum(len(name) + len(value) + 4 for name, value in headers.raw)
    if size > settings.max_header_bytes:
        raise ApiError(
            f"The request's headers have {size:,} bytes.",
            f"Send at most {settings.max_header_bytes:,}.",
            status=431,
            code="too_large",
        )


def _check_path(path: str) -> None:
    """Refuse unprintable characters; routers drop a newline at the end of a path."""
    if not path.isprintable():
        raise ApiError(
            f"The path {shown(path)} contains an unprintable character.",
            "Write the model's name as GET /v1/models lists it.",
            param="path",
        )


async def read_body(receive: Receive, headers: Headers, settings: ServerSettings) -> bytes:
    """Read the body.

    Some of a body that is too large is read and discarded, so that its sender gets to read the
    error.

    Raises:
        TooLargeError: the body is too large.
        ApiError: 408, the body does not arrive in time.
    """
    limit = settings.max_body_bytes
    content_length = headers.get("content-length", "")
    declared = int(content_length) if content_length.isdecimal() and len(content_length) < 20 else 0
    if declared > limit and "expect" in headers:
        raise _body_too_large(limit)
    chunks: list[bytes] = []
    received = 0
    try:
        async with asyncio.timeout(settings.read_timeout):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    break
                received += len(message.get("body", b""))
                if max(received, declared) <= limit:
                    chunks.append(message.get("body", b""))
                else:
                    chunks.clear()
                if not message.get("more_body", False) or received > limit * _DISCARD_FACTOR:
                    break
    except TimeoutError:
        raise ApiError(
            f"The body did not arrive within {settings.read_timeout:g} seconds.",
            "Send it again.",
            status=408,
            code="read_timeout",
        ) from None
    if max(received, declared) > limit:
        raise _body_too_large(limit)
    return b"".join(chunks)


def _body_too_large(limit: int) -> TooLargeError:
    return TooLargeError(
        f"The body is larger than {limit:,} bytes.", "Split it into several requests."
    )


def replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body as one message, then the client's later messages."""
    pending = True

    async def receive_body() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return receive_body

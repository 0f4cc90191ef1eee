"""Run a server in this process: sockets, connection limits, signals and shutdown.

The first SIGTERM or SIGINT drains the server: ``/ready`` answers 503, new requests are refused, and
requests in flight get ``drain_seconds`` to finish. The second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from trunkline.errors import TrunklineError, UnavailableError, UsageError, reason_of
from trunkline.serving.app import create_app
from trunkline.serving.errors import ApiError, error_body
from trunkline.serving.service import Service
from trunkline.serving.settings import ANY_ORIGIN, ServerSettings, addresses, is_loopback

if TYPE_CHECKING:
    from fastapi import FastAPI

    from trunkline.api import Platform

RESERVED_FILES = 64
"""Open files that are not connections."""

_MAX_BACKLOG = 512
_MAX_FILES = 65_536
_SEND_BUFFER_BYTES = 128 << 10
_SHUTDOWN_SECONDS = 3
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(
    platform: Platform,
    settings: ServerSettings,
    on_ready: Callable[[str], None] | None = None,
    *,
    create: Callable[[Platform, ServerSettings], FastAPI] = create_app,
) -> None:
    """Serve until a signal arrives, then close the engine.

    The socket is open while the base loads: ``/health`` answers, and ``/ready`` answers 503.

    Args:
        on_ready: called with the server's URL when the base is loaded.
        create: makes the application.

    Raises:
        UsageError: the port is taken, the host is not an address of this machine, or a server
            without a key would be reachable from other machines or from any web page.
        BaseModelError: the base can't be loaded.
    """
    if not platform.registry.keys.has_any():
        _check_private(settings)
    app = create(platform, settings)
    service: Service = app.state.service
    limits = ConnectionLimits.for_files(raise_file_limit())
    listener = _listen(settings.host, settings.port)
    service.url = _url(listener)
    config = uvicorn.Config(
        app,
        http=_http_protocol(settings, limits.connections),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        backlog=limits.backlog,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=2 * settings.max_header_bytes,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    try:
        _Server(config, service, on_ready).run(sockets=[listener])
    finally:
        listener.close()
        if service.ready and service.with_engine:
            for engine in service.engines:
                engine.close()
    if service.failure is not None:
        raise service.failure


def _check_private(settings: ServerSettings) -> None:
    """Refuse to start a server without keys that other machines or any web page could use."""
    if not is_loopback(settings.host):
        raise UsageError(
            f"A server without keys can't listen on {settings.host}, which other machines reach.",
            "Create a key with: trunkline keys create OWNER.",
        )
    if ANY_ORIGIN in settings.cors_origins:
        raise UsageError(
            "A server without keys can't allow every web page to use it (--cors-origin '*').",
            "Name the page's origin, or create a key with: trunkline keys create OWNER.",
        )


class _Server(uvicorn.Server):
    """uvicorn's server; it reports when the base is loaded, and drains on a signal."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        on_ready: Callable[[str], None] | None,
    ) -> None:
        super().__init__(config)
        self._service = service
        self._on_ready = on_ready
        self._deadline: float | None = None

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True stops the server."""
        service = self._service
        if service.ready and self._on_ready is not None:
            on_ready, self._on_ready = self._on_ready, None
            on_ready(service.url)
        if service.failure is not None:
            return True
        if self._deadline is not None:
            if not service.in_flight:
                return True
            if time.monotonic() >= self._deadline:
                service.cancel_all()
                await self._disconnect()
                return True
        return await super().on_tick(counter)

    async def _disconnect(self) -> None:
        """Let cancelled requests send their error, then close the connections of slow clients,
        and wait until their log lines are written."""
        await self._wait_until_idle()
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self._wait_until_idle()

    async def _wait_until_idle(self) -> None:
        deadline = time.monotonic() + _SHUTDOWN_SECONDS
        while self._service.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._deadline is not None:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._service.draining = True
        self._deadline = time.monotonic() + self._service.settings.drain_seconds

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn, do not raise the signal again: a drained server exits with code 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {sig: signal.signal(sig, self.handle_exit) for sig in _SIGNALS}
        try:
            yield
        finally:
            for sig, handler in previous.items():
                signal.signal(sig, handler)


# ------------------------------------------------------------------------------------ connections


def _http_protocol(settings: ServerSettings, max_connections: int) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 protocol, with limits on the number and the slowness of clients.

    A connection is closed if the head of a request does not arrive within ``read_timeout``, or if
    the client does not read for ``write_timeout``. The transport buffers 64 KiB before a writer has
    to wait.
    """
    read_timeout, write_timeout = settings.read_timeout, settings.write_timeout

    class Protocol(H11Protocol):
        _write_timer: asyncio.TimerHandle | None = None
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                self._refuse(_too_many_connections(max_connections))
                return
            self._start_head_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_write_timer()
            self._stop_head_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._start_head_timer()
            else:
                self._stop_head_timer()

        def _start_head_timer(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(read_timeout, self.transport.abort)

        def _stop_head_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stop_write_timer()
            self._write_timer = self.loop.call_later(write_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop_write_timer()

        def _stop_write_timer(self) -> None:
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

        def send_400_response(self, msg: str) -> None:
            self._refuse(_unreadable_request())

        def _refuse(self, error: TrunklineError) -> None:
            """Send an error and close the connection."""
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.close()
                return
            status = error.http_status
            body = json.dumps(error_body(error)).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            events: list[Any] = [
                h11.Response(
                    status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode()
                ),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ]
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Protocol


def _too_many_connections(limit: int) -> UnavailableError:
    return UnavailableError(
        f"{limit:,} connections are open, which is the server's limit.",
        "Close some, or ask the server's operator for a higher limit of open files.",
    )


def _unreadable_request() -> ApiError:
    return ApiError(
        "The request is not HTTP/1.1, or its headers are too large.", "Check the request."
    )


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections may wait to be accepted, and how many may be open."""

    backlog: int
    connections: int

    @classmethod
    def for_files(cls, files: int) -> Self:
        """The limits for a process that may open so many files.

        asyncio accepts a full backlog before any connection can be refused, and can't continue if
        the process runs out of files meanwhile; so two backlogs are kept free.
        """
        backlog = max(1, min(_MAX_BACKLOG, files // 8))
        return cls(backlog, max(1, files - RESERVED_FILES - 2 * backlog))


def raise_file_limit() -> int:
    """Raise this process's limit of open files as far as the system allows; returns the limit."""
    try:
        import resource
    except ImportError:
        return _MAX_FILES
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (_MAX_FILES if limit == resource.RLIM_INFINITY else limit for limit in limits)
    wanted = min(hard, _MAX_FILES)
    if soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, limits[1]))
    except (OSError, ValueError):  # macOS refuses limits that it reports as allowed
        return soft
    return wanted


def _listen(host: str, port: int) -> socket.socket:
    address = addresses(host)[0]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listener.bind((address, port))
        listener.listen()
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"Port {port} on {host} is already in use.",
                "Choose another one with --port; 0 takes a free port.",
            ) from None
        if error.errno == errno.EACCES:
            raise UsageError(
                f"This user may not open port {port}.", "Choose a port from 1024 on."
            ) from None
        raise UsageError(
            f"The server can't listen on {host}: {reason_of(error)}.",
            "Give an address of this machine, such as 127.0.0.1.",
        ) from error
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

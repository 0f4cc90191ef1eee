"""Running a server in this process until it is told to end.

Owns: the socket, the signals, and how a server ends. Must not know: routes.

The first SIGTERM or SIGINT drains: readiness turns off, new requests are refused with 503, those in
flight finish within ``drain_seconds``. The second ends the process at once.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from trunkline.errors import UsageError
from trunkline.serving.app import create_app
from trunkline.serving.protocol import protocol
from trunkline.serving.service import Service
from trunkline.serving.settings import ServerSettings, addresses, is_loopback

if TYPE_CHECKING:
    from trunkline.api import Platform

_BACKLOG = 512
_OWN_FILES = 64
_MOST_FILES = 65_536
_UNSENT = 128 << 10
_LAST_SECONDS = 3
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(
    platform: Platform,
    settings: ServerSettings,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until a signal says to end; then close the engine.

    The socket is open while the base is being loaded, so that ``/health`` answers and ``/ready``
    says 503.

    Args:
        on_ready: told the server's URL when the base is loaded.

    Raises:
        UsageError: the port is taken, the host is not of this machine, or others would reach a
            server that has no key.
        BaseModelError: the base can't be loaded.
    """
    if not is_loopback(settings.host) and not platform.registry.keys.has_any():
        raise UsageError(
            f"Without a key this server listens on this machine only, not on {settings.host}.",
            "Make a key with: trunkline keys create OWNER.",
        )
    app = create_app(platform, settings)
    service: Service = app.state.service
    backlog, connections = _shares(_descriptors())
    listening = _listen(settings.host, settings.port)
    service.url = _url(listening)
    config = uvicorn.Config(
        app,
        http=protocol(settings.read_timeout, settings.write_timeout, connections),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        backlog=backlog,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=2 * settings.max_header_bytes,
        timeout_graceful_shutdown=_LAST_SECONDS,
    )
    try:
        _Server(config, service, on_ready).run(sockets=[listening])
    finally:
        listening.close()
        if service.ready:
            service.engine.close()
    if service.failure is not None:
        raise service.failure


class _Server(uvicorn.Server):
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
        """Ten times a second; True ends the server."""
        service = self._service
        if service.ready and self._on_ready is not None:
            on_ready, self._on_ready = self._on_ready, None
            on_ready(service.url)
        if service.failure is not None:
            return True
        if self._deadline is not None:
            if not service.calls:
                return True
            if time.monotonic() >= self._deadline:
                service.cancel_all()
                await self._let_go()
                return True
        return await super().on_tick(counter)

    async def _let_go(self) -> None:
        """Give what was cancelled a moment to tell its clients; then hang up on those that do not
        listen, and wait until their lines are written."""
        await self._until_none_is_left()
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self._until_none_is_left()

    async def _until_none_is_left(self) -> None:
        until = time.monotonic() + _LAST_SECONDS
        while self._service.calls and time.monotonic() < until:
            await asyncio.sleep(0.05)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._deadline is not None:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._service.draining = True
        self._deadline = time.monotonic() + self._service.settings.drain_seconds

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's own, the signal is not raised again: a drained server ends well."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.signal(one, self.handle_exit) for one in _SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def _descriptors() -> int:
    """Files and sockets that this process may open, after asking for as many as it may get."""
    try:
        import resource
    except ImportError:
        return _MOST_FILES
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (_MOST_FILES if one == resource.RLIM_INFINITY else one for one in limits)
    wanted = min(hard, _MOST_FILES)
    if soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, limits[1]))
    except (OSError, ValueError):  # macOS gives fewer than it names
        return soft
    return wanted


def _shares(descriptors: int) -> tuple[int, int]:
    """Connections that may wait to be taken, and those that may be open.

    Connections are taken in heaps as large as may wait, before any of them can be refused; asyncio
    can't go on where the descriptors run out meanwhile.
    """
    backlog = max(1, min(_BACKLOG, descriptors // 8))
    return backlog, max(1, descriptors - _OWN_FILES - 2 * backlog)


def _listen(host: str, port: int) -> socket.socket:
    address = addresses(host)[0]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNSENT)
        listening.bind((address, port))
        listening.listen()
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"Port {port} on {host} is taken.",
                "Choose another with --port, or 0 for a free one.",
            ) from None
        if error.errno == errno.EACCES:
            raise UsageError(
                f"Port {port} may not be opened by this user.", "Choose one from 1024 on."
            ) from None
        raise UsageError(
            f"Nothing can listen on {host}: {error.strerror}.",
            "Give an address of this machine, such as 127.0.0.1.",
        ) from error
    return listening


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

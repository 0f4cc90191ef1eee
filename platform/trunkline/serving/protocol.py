"""HTTP/1.1 on one connection, as uvicorn speaks it, with limits on its client's slowness.

Owns: when a connection is given up, and what an unreadable request is told. Must not know:
requests. What a client does not take is kept for it up to the transport's high-water mark (64 KiB);
from there on the writer waits, and the clock runs.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from trunkline.errors import TrunklineError, UnavailableError
from trunkline.serving.errors import ApiError, told


def protocol(read_timeout: float, write_timeout: float, connections: int) -> type[H11Protocol]:
    """The protocol's class, with its times in seconds.

    Args:
        connections: at once; one more is told 503, and hung up on.
        read_timeout: from the connection, or the first byte after an answer, to a whole head.
        write_timeout: without the client taking what was written.
    """

    class Protocol(H11Protocol):
        _stuck: asyncio.TimerHandle | None = None
        _headless: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            super().connection_made(transport)
            if len(self.connections) > connections:
                self._refuse(_crowded(connections))
                return
            self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unstick()
            self._forget_head()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._expect_head()
            else:
                self._forget_head()

        def _expect_head(self) -> None:
            if self._headless is None:
                self._headless = self.loop.call_later(read_timeout, self.transport.abort)

        def _forget_head(self) -> None:
            if self._headless is not None:
                self._headless.cancel()
                self._headless = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unstick()
            self._stuck = self.loop.call_later(write_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._unstick()

        def _unstick(self) -> None:
            if self._stuck is not None:
                self._stuck.cancel()
                self._stuck = None

        def send_400_response(self, msg: str) -> None:
            self._refuse(_unreadable())

        def _refuse(self, error: TrunklineError) -> None:
            """Tell why, whatever was asked, and hang up."""
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.close()
                return
            status = error.http_status
            body = json.dumps(told(error)).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            parts: list[Any] = [
                h11.Response(
                    status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode()
                ),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ]
            for part in parts:
                self.transport.write(self.conn.send(part) or b"")
            self.transport.close()

    return Protocol


def _crowded(connections: int) -> UnavailableError:
    return UnavailableError(
        f"{connections:,} connections are open already.",
        "Close some, or ask the server's operator for a higher limit of open files.",
    )


def _unreadable() -> ApiError:
    return ApiError(
        "The request is not HTTP/1.1, or its headers are too large.", "Check what is sent."
    )

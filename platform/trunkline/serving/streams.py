"""Answers as server-sent events.

Owns: the order of a stream (pieces, the line in the log, usage, the mark of its end), its errors,
and giving up when nobody reads. Must not know: what a chunk holds.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from trunkline.errors import Interrupted, TrunklineError
from trunkline.inference.request import Answer, StreamChunk
from trunkline.serving.errors import INTERNAL, told

if TYPE_CHECKING:
    from trunkline.serving.call import Call

_DONE = b"data: [DONE]\n\n"
Chunk = dict[str, Any]


class EventStream(Response):
    """The stream of one call whose requests are submitted.

    The mark of the end is sent when the request's line is committed. What goes wrong after the
    first byte is sent as ``data: {"error": …}``, and ends the stream without the mark.

    Args:
        call: whose pieces these are.
        opening: chunks that come first.
        chunks: the chunks that a piece of a request in a given place becomes.
        closing: chunks that come last, from all answers.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        call: Call,
        opening: Sequence[Chunk],
        chunks: Callable[[int, StreamChunk], Sequence[Chunk]],
        closing: Callable[[list[Answer]], Sequence[Chunk]],
    ) -> None:
        unheld = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(headers={**unheld, **call.headers})
        del self.headers["content-length"]
        self._call = call
        self._opening = opening
        self._chunks = chunks
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(gone(receive))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            for task in (writing, leaving):
                task.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)
            self._call.cancel()
            await self._call.settle(Interrupted.http_status)

    async def _write(self, send: Send) -> None:
        async def emit(data: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(head)
        try:
            for chunk in self._opening:
                await emit(event(chunk))
            async with aclosing(self._call.pieces()) as pieces:
                async for place, piece in pieces:
                    for chunk in self._chunks(place, piece):
                        await emit(event(chunk))
            answers = await self._call.answers()
            await self._call.settle(200, "\n".join(str(answer.output) for answer in answers))
            closing = b"".join(event(chunk) for chunk in self._closing(answers))
            await emit(closing + _DONE, more=False)
        except TrunklineError as error:
            await emit(event(told(await self._call.fail(error))), more=False)
        except Exception:
            logging.getLogger("trunkline.serving").exception("A stream failed.")
            await emit(event(told(await self._call.fail(INTERNAL))), more=False)


def event(content: Chunk) -> bytes:
    """One server-sent event."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


async def gone(receive: Receive) -> None:
    """Wait until the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def merged(
    streams: Sequence[AsyncIterator[StreamChunk]],
) -> AsyncGenerator[tuple[int, StreamChunk]]:
    """Several streams as one, in the order in which their pieces come.

    Raises:
        TrunklineError: the first error of any of them.
    """
    if len(streams) == 1:
        async for piece in streams[0]:
            yield 0, piece
        return
    told: asyncio.Queue[tuple[int, StreamChunk] | TrunklineError | None] = asyncio.Queue()

    async def pass_on(place: int, stream: AsyncIterator[StreamChunk]) -> None:
        try:
            async for piece in stream:
                told.put_nowait((place, piece))
            told.put_nowait(None)
        except TrunklineError as error:
            told.put_nowait(error)

    passing = [asyncio.ensure_future(pass_on(*pair)) for pair in enumerate(streams)]
    try:
        running = len(streams)
        while running:
            one = await told.get()
            if isinstance(one, TrunklineError):
                raise one
            if one is None:
                running -= 1
            else:
                yield one
    finally:
        for task in passing:
            task.cancel()

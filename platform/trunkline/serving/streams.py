"""What OpenAI's routes share: streams of server-sent events, heads of answers, and usage."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from trunkline.data.targets import target_text
from trunkline.errors import Interrupted, RegistryError, TrunklineError
from trunkline.inference.request import Answer, StreamChunk
from trunkline.serving.errors import INTERNAL_ERROR, error_body
from trunkline.serving.schemas import GenerationBody
from trunkline.serving.service import RequestContext, disconnected

if TYPE_CHECKING:
    from trunkline.resolution import ResolvedModel


Chunk = dict[str, Any]

DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """Streams the answers of one request as server-sent events.

    The end is sent after the request's log line is committed. An error after the first byte is
    sent as an event and ends the stream. The request is cancelled when the client disconnects.

    Args:
        context: a request whose prompts are submitted.
        opening: the first chunks.
        chunks: converts a piece of the answer to a prompt, given by its index, to chunks.
        closing: the last chunks, made of all answers.
        failure: the chunk for an error.
        named: whether each event carries the ``type`` of its chunk as its name.
        end: sent after the last chunk, unless an error ends the stream.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        context: RequestContext,
        opening: Sequence[Chunk],
        chunks: Callable[[int, StreamChunk], Sequence[Chunk]],
        closing: Callable[[Sequence[Answer]], Sequence[Chunk]],
        *,
        failure: Callable[[TrunklineError], Chunk] = error_body,
        named: bool = False,
        end: bytes = DONE,
    ) -> None:
        unbuffered = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(headers={**unbuffered, **context.headers})
        del self.headers["content-length"]
        self._context = context
        self._opening = opening
        self._chunks = chunks
        self._closing = closing
        self._failure = failure
        self._named = named
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            for task in (writing, leaving):
                task.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)
            self._context.cancel()
            with suppress(RegistryError):  # the client has disconnected
                await self._context.commit(Interrupted.http_status)

    async def _write(self, send: Send) -> None:
        async def emit(data: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        context = self._context
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            for chunk in self._opening:
                await emit(self._encode(chunk))
            streams = [handle.stream() for handle in context.handles]
            async with aclosing(merge_streams(streams)) as pieces:
                async for prompt, piece in pieces:
                    for chunk in self._chunks(prompt, piece):
                        await emit(self._encode(chunk))
            answers = await context.answers()
            await context.commit(200, "\n".join(target_text(answer.output) for answer in answers))
            closing = b"".join(self._encode(chunk) for chunk in self._closing(answers))
            await emit(closing + self._end, more=False)
        except TrunklineError as error:
            await self._fail(error, emit)
        except Exception:
            logging.getLogger("trunkline.serving").exception("A stream failed.")
            await self._fail(INTERNAL_ERROR, emit)

    async def _fail(self, error: TrunklineError, emit: Callable[..., Any]) -> None:
        failure = self._failure(await self._context.fail(error))
        await emit(self._encode(failure), more=False)

    def _encode(self, content: Chunk) -> bytes:
        name = f"event: {content['type']}\n".encode() if self._named else b""
        return name + encode_event(content)


def encode_event(content: Chunk) -> bytes:
    """One server-sent event without a name."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


async def merge_streams(
    streams: Sequence[AsyncIterator[StreamChunk]],
) -> AsyncGenerator[tuple[int, StreamChunk]]:
    """Merge streams: each piece with the index of its stream, in the order of arrival.

    Raises:
        TrunklineError: the first error of a stream.
    """
    if len(streams) == 1:
        async for piece in streams[0]:
            yield 0, piece
        return
    events: asyncio.Queue[tuple[int, StreamChunk] | TrunklineError | None] = asyncio.Queue()

    async def forward(index: int, stream: AsyncIterator[StreamChunk]) -> None:
        try:
            async for piece in stream:
                events.put_nowait((index, piece))
            events.put_nowait(None)
        except TrunklineError as error:
            events.put_nowait(error)

    tasks = [asyncio.ensure_future(forward(*pair)) for pair in enumerate(streams)]
    try:
        running = len(streams)
        while running:
            event = await events.get()
            if isinstance(event, TrunklineError):
                raise event
            if event is None:
                running -= 1
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """OpenAI's ``usage``: the tokens of all answers together."""
    prompt = sum(answer.prompt_tokens for answer in answers)
    new = sum(answer.new_tokens for answer in answers)
    cached = sum(answer.cached_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def adapter_of(model: ResolvedModel) -> str | None:
    """The name of an adapter's version; None for the base."""
    return None if model.record is None else model.name


def head_of(
    context: RequestContext, model: ResolvedModel, prefix: str, kind: str
) -> dict[str, Any]:
    """The fields of a response and of every chunk; ``truncated`` only if a text was cut."""
    head = {
        "id": f"{prefix}-{context.id}",
        "object": kind,
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": model.digest,
    }
    return {**head, "truncated": context.truncated} if context.truncated else head


def usage_chunk(head: Chunk, body: GenerationBody) -> Callable[[Sequence[Answer]], list[Chunk]]:
    """The last chunk of a stream, if the client wants its usage."""

    def closing(answers: Sequence[Answer]) -> list[Chunk]:
        return [{**head, "choices": [], "usage": usage(answers)}] if body.include_usage else []

    return closing

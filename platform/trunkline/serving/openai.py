"""OpenAI's generation routes, ``/v1/chat/completions`` and ``/v1/completions``, with streaming."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from trunkline.errors import Interrupted, RegistryError, TrunklineError
from trunkline.inference.detokenizer import REPLACEMENT_CHARACTER
from trunkline.inference.request import Answer, Choice, StreamChunk, TokenScore
from trunkline.inference.request import Request as EngineRequest
from trunkline.serving.bodies import JsonRoute
from trunkline.serving.errors import INTERNAL_ERROR, error_body
from trunkline.serving.models import resolve
from trunkline.serving.schemas import ChatBody, CompletionBody, GenerationBody
from trunkline.serving.service import Context, RequestContext, disconnected

if TYPE_CHECKING:
    from trunkline.resolution import ResolvedModel

MIN_LOGPROB = -9999.0
"""Represents minus infinity, which JSON can't, as in OpenAI's responses."""

Chunk = dict[str, Any]

_DONE = b"data: [DONE]\n\n"

router = APIRouter(route_class=JsonRoute)


# ------------------------------------------------------------------------------- chat completions


@router.post("/v1/chat/completions")
async def chat(body: ChatBody, context: Context, request: Request) -> Response:
    """Answer a conversation; with ``stream``, in chunks."""
    messages = [message.to_template() for message in body.messages]
    context.set_model_name(body.model, json.dumps(messages, ensure_ascii=False))
    model = await resolve(context, body.model, "generation")
    engine_request = EngineRequest(
        _adapter(model),
        messages=tuple(messages),
        logprobs=body.requested_logprobs(),
        **body.sampling(context.service.settings.max_new_tokens),
    )
    text = "".join(message["content"] for message in messages)
    await context.submit(model, [text], [engine_request], body.timeout, field="messages")
    head = _head(context, model, "chatcmpl", "chat.completion")
    if body.stream:
        return _chat_stream(context, {**head, "object": "chat.completion.chunk"}, body)
    answer = (await context.answers(request.receive))[0]
    choices = [_chat_choice(choice, body) for choice in answer.choices]
    content = {**head, "choices": choices, "usage": usage([answer])}
    return await context.respond(content, "\n".join(choice.text for choice in answer.choices))


def _chat_stream(context: RequestContext, head: Chunk, body: ChatBody) -> EventStream:
    if body.include_usage:
        head["usage"] = None

    def chunk(index: int, delta: dict[str, str], finish: str | None, logprobs: Any) -> Chunk:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**head, "choices": [choice]}

    def chunks(_prompt: int, piece: StreamChunk) -> list[Chunk]:
        result = []
        logprobs = _chat_logprobs(piece.scores) if body.logprobs and piece.scores else None
        if piece.text or logprobs:
            result.append(chunk(piece.index, {"content": piece.text}, None, logprobs))
        if piece.finish is not None:
            result.append(chunk(piece.index, {}, piece.finish, None))
        return result

    delta = {"role": "assistant", "content": ""}
    opening = [chunk(index, delta, None, None) for index in range(body.choices)]
    return EventStream(context, opening, chunks, _usage_chunk(head, body))


def _chat_choice(choice: Choice, body: ChatBody) -> dict[str, Any]:
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": _chat_logprobs(choice.scores) if body.logprobs else None,
        "finish_reason": choice.finish,
    }


def _chat_logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    return {
        "content": [
            {
                **_chat_token(score.token, score.logprob),
                "top_logprobs": [_chat_token(token, logprob) for _, token, logprob in score.top],
            }
            for score in scores
        ],
        "refusal": None,
    }


def _chat_token(token: str, logprob: float) -> dict[str, Any]:
    """A token; ``bytes`` is null if it is a part of a character."""
    complete = REPLACEMENT_CHARACTER not in token
    return {
        "token": token,
        "logprob": _finite(logprob),
        "bytes": list(token.encode()) if complete else None,
    }


# ------------------------------------------------------------------------------------ completions


@router.post("/v1/completions")
async def complete(body: CompletionBody, context: Context, request: Request) -> Response:
    """Complete prompts; choice ``i * n + k`` is answer ``k`` to prompt ``i``.

    The base gets a prompt as it is. An adapter gets it in the template that it was trained with.
    """
    context.set_model_name(body.model, json.dumps(body.prompt, ensure_ascii=False))
    prompts = body.prompts()
    model = await resolve(context, body.model, "generation")
    sampling = body.sampling(context.service.settings.max_new_tokens)
    raw = model.record is None
    engine_requests = [
        EngineRequest(_adapter(model), text, logprobs=body.logprobs, raw=raw, **sampling)
        for text in prompts
    ]
    await context.submit(model, prompts, engine_requests, body.timeout, field="prompt")
    head = _head(context, model, "cmpl", "text_completion")
    if body.stream:
        return _completion_stream(context, head, body)
    answers = await context.answers(request.receive)
    choices = [
        _completion_choice(prompt, choice, choice.text, body)
        for prompt, answer in enumerate(answers)
        for choice in answer.choices
    ]
    content = {**head, "choices": choices, "usage": usage(answers)}
    return await context.respond(content, "\n".join(choice["text"] for choice in choices))


def _completion_stream(context: RequestContext, head: Chunk, body: CompletionBody) -> EventStream:
    if body.include_usage:
        head["usage"] = None

    def chunks(prompt: int, piece: StreamChunk) -> list[Chunk]:
        if not piece.text and not piece.scores and piece.finish is None:
            return []
        return [{**head, "choices": [_completion_choice(prompt, piece, piece.text, body)]}]

    return EventStream(context, (), chunks, _usage_chunk(head, body))


def _completion_choice(
    prompt: int, choice: Choice | StreamChunk, text: str, body: CompletionBody
) -> dict[str, Any]:
    with_logprobs = body.logprobs is not None and (choice.scores or isinstance(choice, Choice))
    return {
        "index": prompt * body.choices + choice.index,
        "text": text,
        "logprobs": _completion_logprobs(choice.scores) if with_logprobs else None,
        "finish_reason": choice.finish,
    }


def _completion_logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    return {
        "tokens": [_token_name(score.id, score.token) for score in scores],
        "token_logprobs": [_finite(score.logprob) for score in scores],
        "top_logprobs": [
            {_token_name(id, token): _finite(logprob) for id, token, logprob in score.top}
            for score in scores
        ],
        "text_offset": [score.offset for score in scores],
    }


def _token_name(id: int, token: str) -> str:
    """A token's text; its id if it is a part of a character, as vLLM's
    ``return_tokens_as_token_ids`` does."""
    return f"token_id:{id}" if REPLACEMENT_CHARACTER in token else token


# ------------------------------------------------------------------------------------------- both


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


def _adapter(model: ResolvedModel) -> str | None:
    return None if model.record is None else model.name


def _head(context: RequestContext, model: ResolvedModel, prefix: str, kind: str) -> dict[str, Any]:
    """The fields of a response and of every chunk; ``truncated`` only if a text was cut."""
    head = {
        "id": f"{prefix}-{context.id}",
        "object": kind,
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": model.digest,
    }
    return {**head, "truncated": context.truncated} if context.truncated else head


def _usage_chunk(head: Chunk, body: GenerationBody) -> Callable[[Sequence[Answer]], list[Chunk]]:
    """The last chunk of a stream, if the client wants its usage."""

    def closing(answers: Sequence[Answer]) -> list[Chunk]:
        return [{**head, "choices": [], "usage": usage(answers)}] if body.include_usage else []

    return closing


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else MIN_LOGPROB


# ---------------------------------------------------------------------------------------- streams


class EventStream(Response):
    """Streams the answers of one request as server-sent events.

    ``[DONE]`` is sent after the request's log line is committed. An error after the first byte is
    sent as ``data: {"error": …}`` and ends the stream without ``[DONE]``. The request is cancelled
    when the client disconnects.

    Args:
        context: a request whose prompts are submitted.
        opening: the first chunks.
        chunks: converts a piece of the answer to a prompt, given by its index, to chunks.
        closing: the last chunks, made of all answers.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        context: RequestContext,
        opening: Sequence[Chunk],
        chunks: Callable[[int, StreamChunk], Sequence[Chunk]],
        closing: Callable[[Sequence[Answer]], Sequence[Chunk]],
    ) -> None:
        unbuffered = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(headers={**unbuffered, **context.headers})
        del self.headers["content-length"]
        self._context = context
        self._opening = opening
        self._chunks = chunks
        self._closing = closing

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
                await emit(encode_event(chunk))
            streams = [handle.stream() for handle in context.handles]
            async with aclosing(merge_streams(streams)) as pieces:
                async for prompt, piece in pieces:
                    for chunk in self._chunks(prompt, piece):
                        await emit(encode_event(chunk))
            answers = await context.answers()
            await context.commit(200, "\n".join(str(answer.output) for answer in answers))
            closing = b"".join(encode_event(chunk) for chunk in self._closing(answers))
            await emit(closing + _DONE, more=False)
        except TrunklineError as error:
            await emit(encode_event(error_body(await context.fail(error))), more=False)
        except Exception:
            logging.getLogger("trunkline.serving").exception("A stream failed.")
            failure = await context.fail(INTERNAL_ERROR)
            await emit(encode_event(error_body(failure)), more=False)


def encode_event(content: Chunk) -> bytes:
    """One server-sent event."""
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

"""OpenAI's routes ``/v1/chat/completions`` and ``/v1/completions``, and streams of answers.

Other routes share how a conversation is submitted and how an answer is streamed as server-sent
events. Prompts of completions are texts or token ids, echoed on request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from trunkline.data.targets import target_text
from trunkline.errors import Interrupted, RegistryError, TrunklineError
from trunkline.inference.detokenizer import REPLACEMENT_CHARACTER
from trunkline.inference.request import Answer, Choice, StreamChunk, TokenScore, TopToken
from trunkline.inference.request import Request as EngineRequest
from trunkline.serving.bodies import JsonRoute
from trunkline.serving.errors import INTERNAL_ERROR, error_body
from trunkline.serving.models import resolve
from trunkline.serving.schemas import ChatBody, CompletionBody, GenerationBody, SamplingBody
from trunkline.serving.service import Context, RequestContext, disconnected

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


MIN_LOGPROB = -9999.0
"""Represents minus infinity, which JSON can't, as in OpenAI's responses."""

router = APIRouter(route_class=JsonRoute)


# ------------------------------------------------------------------------------- chat completions


@router.post("/v1/chat/completions")
async def chat(body: ChatBody, context: Context, request: Request) -> Response:
    """Answer a conversation; with ``stream``, in chunks.

    An adapter for pictures answers the picture in the last message with its label or its number.
    """
    if any(message.pictures for message in body.messages):
        from trunkline.serving.picture_chat import answer_picture  # which imports this module

        return await answer_picture(body, context, request)
    messages = [message.to_template() for message in body.messages]
    model = await submit_conversation(context, body, messages, field="messages")
    head = head_of(context, model, "chatcmpl", "chat.completion")
    if body.stream:
        return _chat_stream(context, {**head, "object": "chat.completion.chunk"}, body)
    answer = (await context.answers(request.receive))[0]
    choices = [chat_choice(choice, body) for choice in answer.choices]
    content = {**head, "choices": choices, "usage": usage([answer])}
    return await context.respond(content, "\n".join(choice.text for choice in answer.choices))


async def submit_conversation(
    context: RequestContext, body: SamplingBody, messages: Sequence[dict[str, str]], *, field: str
) -> ResolvedModel:
    """Submit a conversation to the engine; returns the model that answers.

    Args:
        messages: roles and texts, as chat templates expect them.
        field: the body's field that holds them, for errors.
    """
    context.set_model_name(body.model, json.dumps(messages, ensure_ascii=False))
    model = await resolve(context, body.model, "generation")
    engine_request = EngineRequest(
        adapter_of(model),
        messages=tuple(messages),
        logprobs=body.requested_logprobs(),
        **body.sampling(context.service.settings.max_new_tokens),
    )
    text = "".join(message["content"] for message in messages)
    await context.submit(model, [text], [engine_request], body.timeout, field=field)
    return model


def _chat_stream(context: RequestContext, head: Chunk, body: ChatBody) -> EventStream:
    if body.include_usage:
        head["usage"] = None

    def chunk(index: int, delta: dict[str, str], finish: str | None, logprobs: Any) -> Chunk:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**head, "choices": [choice]}

    def chunks(_prompt: int, piece: StreamChunk) -> list[Chunk]:
        result = []
        logprobs = chat_logprobs(piece.scores) if body.logprobs and piece.scores else None
        if piece.text or logprobs:
            result.append(chunk(piece.index, {"content": piece.text}, None, logprobs))
        if piece.finish is not None:
            result.append(chunk(piece.index, {}, piece.finish, None))
        return result

    delta = {"role": "assistant", "content": ""}
    opening = [chunk(index, delta, None, None) for index in range(body.choices)]
    return EventStream(context, opening, chunks, usage_chunk(head, body))


def chat_choice(choice: Choice, body: ChatBody) -> dict[str, Any]:
    """One choice of a chat completion."""
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": chat_logprobs(choice.scores) if body.logprobs else None,
        "finish_reason": choice.finish,
    }


def chat_logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    """The log probabilities of tokens, each with its likeliest alternatives."""
    return {
        "content": [
            {
                **_chat_token(score),
                "top_logprobs": [_chat_token(one) for one in score.top],
            }
            for score in scores
        ],
        "refusal": None,
    }


def _chat_token(score: TokenScore | TopToken) -> dict[str, Any]:
    """A token; the ``bytes`` of all tokens together are the UTF-8 of the message.

    Special tokens, which are not part of the message, have none.
    """
    return {
        "token": score.token,
        "logprob": finite(score.logprob),
        "bytes": list(score.raw_bytes),
    }


# ------------------------------------------------------------------------------------ all routes


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


def finite(logprob: float | None) -> float | None:
    """A log probability as JSON can represent it."""
    return logprob if logprob is None or math.isfinite(logprob) else MIN_LOGPROB


# ------------------------------------------------------------------------------------- completions


@router.post("/v1/completions")
async def complete(body: CompletionBody, context: Context, request: Request) -> Response:
    """Complete prompts; choice ``i * n + k`` is answer ``k`` to prompt ``i``.

    The base gets a prompt as it is. An adapter gets a text in the template that it was trained
    with; token ids, and a text with ``echo``, it gets as they are.
    """
    context.set_model_name(body.model, json.dumps(body.prompt, ensure_ascii=False))
    prompts = body.prompts()
    model = await resolve(context, body.model, "generation")
    options: dict[str, Any] = {
        "logprobs": body.requested_logprobs(),
        "echo": bool(body.echo),
        **body.sampling(context.service.settings.max_new_tokens),
    }
    raw = model.record is None or bool(body.echo)
    engine_requests = [
        EngineRequest(adapter_of(model), prompt, raw=raw, **options)
        if isinstance(prompt, str)
        else EngineRequest(adapter_of(model), token_ids=prompt, **options)
        for prompt in prompts
    ]
    await context.submit(model, prompts, engine_requests, body.timeout, field="prompt")
    head = head_of(context, model, "cmpl", "text_completion")
    if body.stream:
        return _completion_stream(context, head, body)
    answers = await context.answers(request.receive)
    choices = []
    for prompt, answer in enumerate(answers):
        echo = _echo(context, body, prompt)
        for choice in answer.choices:
            scores = (*echo.scores, *echo.shift(choice.scores))
            text = echo.text + choice.text
            choices.append(
                _completion_choice(body, prompt, choice.index, text, scores, choice.finish)
            )
    content = {**head, "choices": choices, "usage": usage(answers)}
    output = "\n".join(choice.text for answer in answers for choice in answer.choices)
    return await context.respond(content, output)


def _completion_stream(context: RequestContext, head: Chunk, body: CompletionBody) -> EventStream:
    """The stream of all choices; the first chunk of each begins with the echo of its prompt."""
    if body.include_usage:
        head["usage"] = None
    echoes: dict[int, Echo] = {}
    begun: set[tuple[int, int]] = set()

    def chunks(prompt: int, piece: StreamChunk) -> list[Chunk]:
        if prompt not in echoes:
            echoes[prompt] = _echo(context, body, prompt)
        echo, text, scores = echoes[prompt], piece.text, echoes[prompt].shift(piece.scores)
        if (prompt, piece.index) not in begun:
            begun.add((prompt, piece.index))
            text, scores = echo.text + text, echo.scores + scores
        if not text and not scores and piece.finish is None:
            return []
        choice = _completion_choice(body, prompt, piece.index, text, scores or None, piece.finish)
        return [{**head, "choices": [choice]}]

    return EventStream(context, (), chunks, usage_chunk(head, body))


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt as the answers to it repeat it; empty unless the client requests that."""

    text: str = ""
    scores: tuple[TokenScore, ...] = ()

    def shift(self, scores: Sequence[TokenScore]) -> tuple[TokenScore, ...]:
        """The scores of an answer, with offsets that count from the beginning of the prompt."""
        length = len(self.text)
        return tuple(replace(score, offset=length + score.offset) for score in scores)


def _echo(context: RequestContext, body: CompletionBody, prompt: int) -> Echo:
    """The echo of a prompt that is computed."""
    if not body.echo:
        return Echo()
    state = context.handles[prompt].state
    ids = state.request.token_ids
    text = context.service.engine.token_table.spell(ids) if ids else state.request.text
    return Echo(text, () if state.prompt_scores is None else state.prompt_scores.scores)


def _completion_choice(
    body: CompletionBody,
    prompt: int,
    index: int,
    text: str,
    scores: Sequence[TokenScore] | None,
    finish: str | None,
) -> dict[str, Any]:
    with_logprobs = body.logprobs is not None and scores is not None
    return {
        "index": prompt * body.choices + index,
        "text": text,
        "logprobs": _completion_logprobs(scores or ()) if with_logprobs else None,
        "finish_reason": finish,
    }


def _completion_logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    """OpenAI's four lists; the first token of a prompt has null as its log probability."""
    return {
        "tokens": [_token_name(score) for score in scores],
        "token_logprobs": [finite(score.logprob) for score in scores],
        "top_logprobs": [
            None if score.logprob is None else _completion_top(score) for score in scores
        ],
        "text_offset": [score.offset for score in scores],
    }


def _completion_top(score: TokenScore) -> dict[str, float | None]:
    """The likeliest tokens and the token itself; the likeliest of equal texts has the text."""
    ids: dict[str, int] = {}
    top: dict[str, float | None] = {}
    tokens: list[TokenScore | TopToken] = [*score.top, score]
    for one in tokens:
        name = _token_name(one)
        if ids.setdefault(name, one.id) != one.id:
            name = f"token_id:{one.id}"
        top[name] = finite(one.logprob)
    return top


def _token_name(score: TokenScore | TopToken) -> str:
    """A token's text; its id if it is a part of a character, as vLLM's
    ``return_tokens_as_token_ids`` does."""
    return f"token_id:{score.id}" if REPLACEMENT_CHARACTER in score.token else score.token

"""OpenAI's routes ``/v1/chat/completions`` and ``/v1/completions``.

Other routes share how a conversation is submitted. Prompts of completions are texts or token ids,
echoed on request.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from trunkline.inference.detokenizer import REPLACEMENT_CHARACTER
from trunkline.inference.request import Choice, StreamChunk, TokenScore, TopToken
from trunkline.inference.request import Request as EngineRequest
from trunkline.serving.bodies import JsonRoute
from trunkline.serving.models import resolve
from trunkline.serving.picture_chat import answer_picture
from trunkline.serving.schemas import ChatBody, CompletionBody, SamplingBody
from trunkline.serving.service import Context, RequestContext
from trunkline.serving.streams import (
    Chunk,
    EventStream,
    adapter_of,
    head_of,
    usage,
    usage_chunk,
)

if TYPE_CHECKING:
    from trunkline.resolution import ResolvedModel


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
        return await answer_picture(body, context, request)
    messages = [message.to_template() for message in body.messages]
    model = await submit_conversation(context, body, messages, field="messages")
    head = head_of(context, model, "chatcmpl", "chat.completion")
    if body.stream:
        return _chat_stream(context, {**head, "object": "chat.completion.chunk"}, body)
    answer = (await context.answers(request.receive))[0]
    choices = [_chat_choice(choice, body) for choice in answer.choices]
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


def _chat_choice(choice: Choice, body: ChatBody) -> dict[str, Any]:
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

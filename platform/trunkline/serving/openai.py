"""OpenAI's route ``/v1/chat/completions``, and what OpenAI's other routes share with it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from trunkline.inference.request import Answer, Choice, StreamChunk, TokenScore, TopToken
from trunkline.inference.request import Request as EngineRequest
from trunkline.serving.bodies import JsonRoute
from trunkline.serving.models import resolve
from trunkline.serving.schemas import ChatBody, GenerationBody, SamplingBody
from trunkline.serving.service import Context, RequestContext
from trunkline.serving.streams import Chunk, EventStream

if TYPE_CHECKING:
    from trunkline.resolution import ResolvedModel

MIN_LOGPROB = -9999.0
"""Represents minus infinity, which JSON can't, as in OpenAI's responses."""

router = APIRouter(route_class=JsonRoute)


# ------------------------------------------------------------------------------- chat completions


@router.post("/v1/chat/completions")
async def chat(body: ChatBody, context: Context, request: Request) -> Response:
    """Answer a conversation; with ``stream``, in chunks."""
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

"""``POST /v1/chat/completions``.

Owns: the form of chat answers and their chunks. Must not know: how answers come about.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from trunkline.inference import request as inference
from trunkline.inference.detokenizer import REPLACEMENT_CHARACTER
from trunkline.inference.request import Answer, Choice, StreamChunk, TokenScore
from trunkline.serving.call import Call
from trunkline.serving.models import Model
from trunkline.serving.parts import finite, usage
from trunkline.serving.schemas import ChatBody
from trunkline.serving.streams import Chunk, EventStream

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat(body: ChatBody, request: Request) -> Response:
    """Answer a talk; ``stream`` sends it piece by piece."""
    call: Call = request.state.call
    messages = [message.plain() for message in body.messages]
    call.about(body.model, json.dumps(messages, ensure_ascii=False))
    body.check_supported()
    model = await call.resolve(body.model, "generation")
    asked = inference.Request(
        None,
        messages=tuple(messages),
        logprobs=body.scores(),
        **body.sampling(call.service.settings.max_new_tokens),
    )
    said = "".join(message["content"] for message in messages)
    await call.submit(model, [said], [asked], body.timeout)
    if body.stream:
        return _stream(call, model, body, asked.n)
    answer = (await call.answers(request.receive))[0]
    content = {
        **_head(call, model, "chat.completion"),
        "choices": [_choice(choice, body) for choice in answer.choices],
        "usage": usage([answer]),
    }
    return await call.reply(content, "\n".join(choice.text for choice in answer.choices))


def _stream(call: Call, model: Model, body: ChatBody, n: int) -> EventStream:
    head = _head(call, model, "chat.completion.chunk")
    if body.wants_usage:
        head["usage"] = None

    def chunk(index: int, delta: dict[str, str], finish: str | None, scores: Any) -> Chunk:
        choice = {"index": index, "delta": delta, "logprobs": scores, "finish_reason": finish}
        return {**head, "choices": [choice]}

    def chunks(_place: int, piece: StreamChunk) -> list[Chunk]:
        told = []
        scores = _logprobs(piece.scores) if body.logprobs and piece.scores else None
        if piece.text or scores:
            told.append(chunk(piece.index, {"content": piece.text}, None, scores))
        if piece.finish is not None:
            told.append(chunk(piece.index, {}, piece.finish, None))
        return told

    def closing(answers: list[Answer]) -> list[Chunk]:
        return [{**head, "choices": [], "usage": usage(answers)}] if body.wants_usage else []

    opening = [chunk(index, {"role": "assistant", "content": ""}, None, None) for index in range(n)]
    return EventStream(call, opening, chunks, closing)


def _head(call: Call, model: Model, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{call.id}",
        "object": kind,
        "created": int(time.time()),
        "model": model.root,
        "system_fingerprint": model.digest,
    }


def _choice(choice: Choice, body: ChatBody) -> dict[str, Any]:
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": _logprobs(choice.scores) if body.logprobs else None,
        "finish_reason": choice.finish,
    }


def _logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    return {
        "content": [
            {
                **_token(score.token, score.logprob),
                "top_logprobs": [_token(token, logprob) for _, token, logprob in score.top],
            }
            for score in scores
        ],
        "refusal": None,
    }


def _token(token: str, logprob: float) -> dict[str, Any]:
    """A token; its bytes are not told where it is a part of a character only."""
    whole = REPLACEMENT_CHARACTER not in token
    return {
        "token": token,
        "logprob": finite(logprob),
        "bytes": list(token.encode()) if whole else None,
    }

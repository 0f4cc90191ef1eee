"""``POST /v1/completions``: one or several prompts, continued.

Owns: the form of completions and their chunks. Must not know: how answers come about.

The bare base continues a prompt as it is. An adapter was trained behind a template, so its prompts
go through that, as everywhere else.
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
from trunkline.inference.request import Answer, StreamChunk, TokenScore
from trunkline.refs import BASE
from trunkline.serving.call import Call
from trunkline.serving.models import Model
from trunkline.serving.parts import finite, usage
from trunkline.serving.schemas import CompletionBody
from trunkline.serving.streams import Chunk, EventStream

router = APIRouter()


@router.post("/v1/completions")
async def complete(body: CompletionBody, request: Request) -> Response:
    """Continue prompts; choice ``i * n + k`` is the k-th answer to prompt ``i``."""
    call: Call = request.state.call
    call.about(body.model, json.dumps(body.prompt, ensure_ascii=False))
    body.check_supported()
    prompts = body.prompts()
    model = await call.resolve(body.model, "generation")
    sampling = body.sampling(call.service.settings.max_new_tokens)
    asked = [
        inference.Request(None, text, logprobs=body.logprobs, raw=model.root == BASE, **sampling)
        for text in prompts
    ]
    await call.submit(model, prompts, asked, body.timeout)
    n: int = sampling["n"]
    if body.stream:
        return _stream(call, model, body, n)
    answers = await call.answers(request.receive)
    choices = [
        _choice(
            place * n + choice.index,
            choice.text,
            choice.finish,
            _logprobs(choice.scores) if body.logprobs is not None else None,
        )
        for place, answer in enumerate(answers)
        for choice in answer.choices
    ]
    content = {**_head(call, model), "choices": choices, "usage": usage(answers)}
    return await call.reply(content, "\n".join(choice["text"] for choice in choices))


def _stream(call: Call, model: Model, body: CompletionBody, n: int) -> EventStream:
    head = _head(call, model)
    if body.wants_usage:
        head["usage"] = None

    def chunks(place: int, piece: StreamChunk) -> list[Chunk]:
        if not piece.text and not piece.scores and piece.finish is None:
            return []
        index = place * n + piece.index
        scores = None
        if body.logprobs is not None and piece.scores:
            scores = _logprobs(piece.scores)
        return [{**head, "choices": [_choice(index, piece.text, piece.finish, scores)]}]

    def closing(answers: list[Answer]) -> list[Chunk]:
        return [{**head, "choices": [], "usage": usage(answers)}] if body.wants_usage else []

    return EventStream(call, (), chunks, closing)


def _head(call: Call, model: Model) -> dict[str, Any]:
    return {
        "id": f"cmpl-{call.id}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model.root,
        "system_fingerprint": model.digest,
    }


def _choice(
    index: int, text: str, finish: str | None, scores: dict[str, Any] | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": scores, "finish_reason": finish}


def _logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    return {
        "tokens": [_name(score.id, score.token) for score in scores],
        "token_logprobs": [finite(score.logprob) for score in scores],
        "top_logprobs": [
            {_name(id, token): finite(logprob) for id, token, logprob in score.top}
            for score in scores
        ],
        "text_offset": [score.offset for score in scores],
    }


def _name(id: int, token: str) -> str:
    """A token's text; parts of characters have none of their own, and go by their ids, as in vLLM's
    ``return_tokens_as_token_ids``."""
    return f"token_id:{id}" if REPLACEMENT_CHARACTER in token else token

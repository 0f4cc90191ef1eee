"""OpenAI's route ``/v1/completions``: prompts as texts or token ids, echoed on request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from trunkline.inference.detokenizer import REPLACEMENT_CHARACTER
from trunkline.inference.request import Request as EngineRequest
from trunkline.inference.request import StreamChunk, TokenScore, TopToken
from trunkline.serving.bodies import JsonRoute
from trunkline.serving.models import resolve
from trunkline.serving.openai import adapter_of, finite, head_of, usage, usage_chunk
from trunkline.serving.schemas import CompletionBody
from trunkline.serving.service import Context, RequestContext
from trunkline.serving.streams import Chunk, EventStream

router = APIRouter(route_class=JsonRoute)


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
        return _stream(context, head, body)
    answers = await context.answers(request.receive)
    choices = []
    for prompt, answer in enumerate(answers):
        echo = _echo(context, body, prompt)
        for choice in answer.choices:
            scores = (*echo.scores, *echo.shift(choice.scores))
            text = echo.text + choice.text
            choices.append(_choice(body, prompt, choice.index, text, scores, choice.finish))
    content = {**head, "choices": choices, "usage": usage(answers)}
    output = "\n".join(choice.text for answer in answers for choice in answer.choices)
    return await context.respond(content, output)


def _stream(context: RequestContext, head: Chunk, body: CompletionBody) -> EventStream:
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
        choice = _choice(body, prompt, piece.index, text, scores or None, piece.finish)
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


def _choice(
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
        "logprobs": _logprobs(scores or ()) if with_logprobs else None,
        "finish_reason": finish,
    }


def _logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    """OpenAI's four lists; the first token of a prompt has null as its log probability."""
    return {
        "tokens": [_token_name(score) for score in scores],
        "token_logprobs": [finite(score.logprob) for score in scores],
        "top_logprobs": [None if score.logprob is None else _top(score) for score in scores],
        "text_offset": [score.offset for score in scores],
    }


def _top(score: TokenScore) -> dict[str, float | None]:
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

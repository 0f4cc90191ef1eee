"""Pictures in ``/v1/chat/completions``: an adapter for pictures answers with its label."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fastapi import Request
from fastapi.responses import Response

from trunkline.data.targets import target_text
from trunkline.errors import DataError, TooLargeError
from trunkline.images import ImageSource, parse_picture
from trunkline.inference.request import Answer
from trunkline.inference.request import Request as EngineRequest
from trunkline.serving.errors import ApiError
from trunkline.serving.fields import UNSUPPORTED
from trunkline.serving.models import ROUTES, resolve
from trunkline.serving.schemas import ChatBody
from trunkline.serving.service import RequestContext, check_finite
from trunkline.serving.streams import Chunk, EventStream, head_of, usage, usage_chunk


async def answer_picture(body: ChatBody, context: RequestContext, request: Request) -> Response:
    """Answer the picture in the last message; texts and earlier messages have no effect.

    Raises:
        ApiError: 400, the model reads text, the last message has no picture or several, or a field
            is for texts.
    """
    messages = [message.to_template() for message in body.messages]
    context.set_model_name(body.model, json.dumps(messages, ensure_ascii=False))
    model = await resolve(context, body.model)
    if model.modality != "image":
        index, message = next(one for one in enumerate(body.messages) if one[1].pictures)
        field = f"messages[{index}].content[{next(iter(message.pictures))}].type"
        raise ApiError(
            f"{field} can't be 'image_url': {model.name} reads "
            + ("text." if model.modality == "text" else "a text and a picture together."),
            "Name a model that reads pictures: GET /v1/models lists them."
            if model.modality == "text"
            else f"Send both to {ROUTES[model.task]}.",
            param=field,
            code=UNSUPPORTED,
        )
    for name, used in (("n", body.choices > 1), ("logprobs", body.logprobs)):
        if used:
            raise ApiError(
                f"{name} can't be used: {model.name} gives a picture one answer.",
                f"Remove {name}; POST /v1/classify gives the probabilities of all labels.",
                param=name,
                code=UNSUPPORTED,
            )
    last = len(body.messages) - 1
    pictures = body.messages[last].pictures
    if len(pictures) != 1:
        raise ApiError(
            f"messages[{last}] has {len(pictures) or 'no'} picture{'s' * (len(pictures) > 1)}.",
            "Send one picture in the last message.",
            param=f"messages[{last}].content",
        )
    ((index, part),) = pictures.items()
    field = f"messages[{last}].content[{index}]"
    try:
        picture = await context.service.load(_read, part.url, field)
    except (DataError, TooLargeError) as error:
        error.param = f"{field}.image_url"
        raise
    context.text = json.dumps([*messages, f"sha256:{picture.sha256}"], ensure_ascii=False)
    engine_request = EngineRequest(model.name, image=picture)
    await context.submit(model, [""], [engine_request], body.timeout, field=field)
    head = head_of(context, model, "chatcmpl", "chat.completion")
    if body.stream:
        return _stream(context, {**head, "object": "chat.completion.chunk"}, body)
    answer = (await context.answers(request.receive))[0]
    text = _text(answer)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    return await context.respond({**head, "choices": [choice], "usage": usage([answer])}, text)


def _read(url: str, field: str) -> ImageSource:
    """The picture of a part with its sha256."""
    return parse_picture(url, field).identified()


def _text(answer: Answer) -> str:
    """The label, the labels, or the number with its unit.

    Raises:
        DataError: the number is not finite.
    """
    check_finite(answer, "messages")
    return f"{target_text(answer.output)} {answer.unit or ''}".rstrip()


def _stream(context: RequestContext, head: Chunk, body: ChatBody) -> EventStream:
    """The answer in one chunk, between those that clients expect around it."""

    def chunk(delta: dict[str, str], finish: str | None = None) -> Chunk:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**head, "choices": [choice]}

    def closing(answers: Sequence[Answer]) -> list[Chunk]:
        text = chunk({"content": _text(answers[0])})
        return [text, chunk({}, "stop"), *usage_chunk(head, body)(answers)]

    if body.include_usage:
        head["usage"] = None
    opening = [chunk({"role": "assistant", "content": ""})]
    return EventStream(context, opening, lambda _prompt, _piece: [], closing)

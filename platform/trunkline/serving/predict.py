"""``POST /v1/classify``, ``/v1/regress``, ``/v1/tag``, ``/v1/rank`` and ``/v1/embeddings``.

An embedding is the mean of a text's last hidden states, of length 1.
"""

from __future__ import annotations

import base64
import json
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, Self

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import model_validator

from trunkline.contracts import Modality
from trunkline.data.targets import target_text
from trunkline.errors import DataError, TooLargeError
from trunkline.images import (
    DATA_URL_HINT,
    ImageSource,
    is_address,
    is_data_url,
    may_be_picture,
    parse_picture,
)
from trunkline.inference.fusion import missing_half
from trunkline.inference.request import Answer
from trunkline.inference.request import Request as EngineRequest
from trunkline.labels import is_blank
from trunkline.resolution import ResolvedModel
from trunkline.serving import fields
from trunkline.serving.bodies import JsonRoute
from trunkline.serving.errors import ApiError
from trunkline.serving.fields import PICTURE_TAG, UNSUPPORTED, StrictModel, Values
from trunkline.serving.models import resolve
from trunkline.serving.schemas import (
    ImagePart,
    ModelName,
    PredictBody,
    PredictPart,
    RankBody,
    TagBody,
    Timeout,
    TokenInputs,
    check_inputs,
    split_inputs,
)
from trunkline.serving.service import Context, RequestContext, check_count, check_finite
from trunkline.serving.streams import adapter_of, usage
from trunkline.tasks.ranking import ranked

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/classify")
async def classify(body: PredictBody, context: Context, request: Request) -> Response:
    """Classify each text or picture; returns its label and the probabilities of all labels.

    For an adapter that reads pictures, an input is a data URL (``data:image/png;base64,…``), plain
    base64, or ``{"image_url": …}`` with a data URL as OpenAI's clients send it. For a fusion it is
    ``{"text": …, "image_url": …}``.

    With ``abstain``, a wanted precision, an uncertain text has ``label`` null and ``abstained``. A
    multilabel adapter gives ``labels`` instead.
    """
    return await _predict(body, context, request, ("classification", "multilabel"), _label)


@router.post("/v1/regress")
async def regress(body: PredictBody, context: Context, request: Request) -> Response:
    """Predict a number for each text or picture, in the adapter's unit."""
    return await _predict(body, context, request, ("regression",), _value)


@router.post("/v1/tag")
async def tag(body: TagBody, context: Context, request: Request) -> Response:
    """Find the spans of each text: ``start``, ``end``, ``label``, ``text`` and ``probability``.

    ``start`` and ``end`` count the text's characters (Unicode code points); ``end`` is excluded.
    """
    return await _predict(body, context, request, ("tagging",), _spans)


@router.post("/v1/rank")
@router.post("/v1/rerank")
async def rank(body: RankBody, context: Context, request: Request) -> Response:
    """Rank documents for a query, the best first, as Cohere's and Jina's rerank do.

    ``relevance_score`` is the probability of being the relevant one of these documents.
    """
    context.set_model_name(body.model, json.dumps([body.query, *body.documents]))
    model = await resolve(context, body.model, "ranking")
    requests = [EngineRequest(model.name, body.query, candidate=one) for one in body.documents]
    texts = [body.query + body.documents[0], *body.documents[1:]]
    await context.submit(model, texts, requests, body.timeout, field="documents")
    answers = await context.answers(request.receive)
    order, probabilities = ranked([_value(answer, "documents")["value"] for answer in answers])
    results = [
        {
            "index": index,
            "relevance_score": probability,
            **({"document": {"text": body.documents[index]}} if body.return_documents else {}),
        }
        for index, probability in zip(order, probabilities, strict=True)
    ]
    content = {
        "object": "list",
        "model": model.name,
        "results": results[: body.top_n or None],
        "usage": usage(answers),
        "truncated": any(answer.truncated for answer in answers),
    }
    return await context.respond(content, "\n".join(str(index) for index in order))


def _spans(answer: Answer) -> dict[str, Any]:
    return {"spans": [asdict(span) for span in answer.spans or ()]}


def _label(answer: Answer) -> dict[str, Any]:
    if answer.labels is not None:
        return {"labels": list(answer.labels), "probabilities": answer.probabilities}
    abstained = {"abstained": True} if answer.abstained else {}
    return {"label": answer.label, **abstained, "probabilities": answer.probabilities}


def _value(answer: Answer, field: str = "input") -> dict[str, Any]:
    check_finite(answer, field)
    return {"value": answer.value, "unit": answer.unit}


async def _predict(
    body: PredictBody | TagBody,
    context: RequestContext,
    request: Request,
    tasks: tuple[str, ...],
    fields: Callable[[Answer], dict[str, Any]],
) -> Response:
    inputs = body.inputs()
    shown = [one if _is_text(one) else PICTURE_TAG for one in inputs]
    logged = shown if isinstance(body.input, list) else shown[0]
    context.set_model_name(body.model, json.dumps(logged, ensure_ascii=False))
    model = await resolve(context, body.model, *tasks)
    _check_count(context, inputs)
    abstain = getattr(body, "abstain", None)
    engine_requests = await context.service.load(_requests, model, inputs, abstain)
    texts = [one.text for one in engine_requests]
    if model.modality != "text":  # the size of pictures is limited by that of the body
        context.text = json.dumps([_logged(one) for one in engine_requests], ensure_ascii=False)
    await context.submit(model, texts, engine_requests, body.timeout, field="input")
    answers = await context.answers(request.receive)
    data = [
        {
            "index": index,
            **fields(answer),
            "prompt_tokens": answer.prompt_tokens,
            "truncated": answer.truncated,
        }
        for index, answer in enumerate(answers)
    ]
    content = {"object": "list", "model": model.name, "data": data, "usage": usage(answers)}
    return await context.respond(
        content, "\n".join(target_text(answer.output) for answer in answers)
    )


def _logged(request: EngineRequest) -> str | dict[str, str]:
    """What the log keeps of a picture, and of the text beside it."""
    assert request.image is not None
    picture = f"sha256:{request.image.sha256}"
    return {"text": request.text, "image": picture} if request.text else picture


def _is_text(value: str | ImagePart) -> bool:
    return isinstance(value, str) and not may_be_picture(value)


def _check_count(context: RequestContext, inputs: Sequence[object]) -> None:
    """Raise :class:`TooLargeError` for too many inputs, before they are decoded."""
    try:
        check_count(len(inputs), context.service.settings.max_inputs)
    except TooLargeError as error:
        error.param = "input"
        raise


def _requests(
    model: ResolvedModel, inputs: Sequence[str | ImagePart], abstain: float | None
) -> list[EngineRequest]:
    """A request for each text, or for each picture with its sha256, as the model reads.

    Raises:
        ApiError: 400, an input is the address of a picture.
        DataError: an input is not what the model reads.
        TooLargeError: a picture is too large.
    """
    requests = []
    for index, one in enumerate(inputs):
        name = f"input[{index}]" if len(inputs) > 1 else "input"
        try:
            if model.fused is not None:
                requests.append(_pair(model, one, name, abstain))
                continue
            if model.modality == "image":
                _check_alone(model, one, name)
                picture = _picture(one, name).identified()
                requests.append(EngineRequest(model.name, image=picture, abstain=abstain))
                continue
            if not isinstance(one, str) or is_data_url(one):
                raise DataError(
                    f"{model.name} reads text, and {name} is a picture.",
                    "Name a model that reads pictures: GET /v1/models lists them.",
                )
        except (DataError, TooLargeError) as error:
            error.param = name
            raise
        requests.append(EngineRequest(model.name, one, abstain=abstain))
    return requests


def _pair(
    model: ResolvedModel, value: str | ImagePart, name: str, abstain: float | None
) -> EngineRequest:
    """The request for a text and a picture; raises :class:`UsageError` if one is missing."""
    lacks: Modality = "image"
    text = value.text if isinstance(value, PredictPart) else None
    if isinstance(value, ImagePart):
        if text is not None and not is_blank(text):
            picture = _picture(value, f"{name}.image_url").identified()
            return EngineRequest(model.name, text, image=picture, abstain=abstain)
        lacks = "text"
    elif may_be_picture(value):
        lacks = "text"
    error = missing_half(model.name, lacks)
    error.param = f"{name}.{'text' if lacks == 'text' else 'image_url'}"
    raise error


def _check_alone(model: ResolvedModel, value: str | ImagePart, name: str) -> None:
    """Refuse a text beside the picture of an adapter that reads pictures alone."""
    if isinstance(value, PredictPart) and value.text is not None:
        raise ApiError(
            f"{name}.text can't be used: {model.name} reads pictures alone.",
            "Remove text, or name a fusion: GET /v1/models lists them as text+image.",
            param=f"{name}.text",
            code=UNSUPPORTED,
        )


def _picture(value: str | ImagePart, name: str) -> ImageSource:
    """The picture in an input: a data URL, also inside an object, or base64."""
    if isinstance(value, ImagePart):
        return parse_picture(value.url, name)
    if is_address(value):
        raise ApiError(
            f"{name} is an address, and this server fetches none.", DATA_URL_HINT, param=name
        )
    return parse_picture(value, name)


NEUTRAL: Mapping[str, Values] = {
    **fields.PREDICT_NEUTRAL,
    "dimensions": (),
    "input_type": (),
}


class EmbeddingBody(StrictModel):
    """``POST /v1/embeddings``; inputs are texts or token ids."""

    ignored = fields.PREDICT_IGNORED
    neutral = NEUTRAL

    model: ModelName
    input: TokenInputs
    encoding_format: Literal["float", "base64"] | None = None
    timeout: Timeout | None = None

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        check_inputs("input", self.input)
        return self


@router.post("/v1/embeddings")
async def embed(body: EmbeddingBody, context: Context, request: Request) -> Response:
    """Embed texts with the base or with any adapter, without its template."""
    context.set_model_name(body.model, json.dumps(body.input, ensure_ascii=False))
    inputs = split_inputs(body.input)
    model = await resolve(context, body.model)
    adapter = adapter_of(model)
    engine_requests = [
        EngineRequest(adapter, one, raw=True, embed=True)
        if isinstance(one, str)
        else EngineRequest(adapter, token_ids=one, embed=True)
        for one in inputs
    ]
    await context.submit(model, inputs, engine_requests, body.timeout, field="input")
    answers = await context.answers(request.receive)
    data = [
        {"object": "embedding", "index": index, "embedding": _encode(answer, body)}
        for index, answer in enumerate(answers)
    ]
    tokens = sum(answer.prompt_tokens for answer in answers)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    content = {"object": "list", "data": data, "model": model.name, "usage": usage}
    return await context.respond(content)


def _encode(answer: Answer, body: EmbeddingBody) -> Sequence[float] | str:
    """The embedding as numbers, or as base64 of float32, the lowest byte first."""
    embedding = answer.embedding
    if not any(embedding):
        error = DataError(f"{answer.adapter} gives a text no embedding.", "Use another version.")
        error.param = "input"
        raise error
    if body.encoding_format != "base64":
        return embedding
    numbers = array("f", embedding)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()

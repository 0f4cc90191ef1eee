"""``POST /v1/classify`` and ``POST /v1/regress``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from trunkline.errors import DataError
from trunkline.inference.request import Answer
from trunkline.inference.request import Request as EngineRequest
from trunkline.serving.bodies import JsonRoute
from trunkline.serving.models import resolve
from trunkline.serving.openai import usage
from trunkline.serving.schemas import PredictBody
from trunkline.serving.service import Context, RequestContext

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/classify")
async def classify(body: PredictBody, context: Context, request: Request) -> Response:
    """Classify each text; returns its label and the probabilities of all labels."""
    return await _predict(body, context, request, "classification", _label)


@router.post("/v1/regress")
async def regress(body: PredictBody, context: Context, request: Request) -> Response:
    """Predict a number for each text, in the adapter's unit."""
    return await _predict(body, context, request, "regression", _value)


def _label(answer: Answer) -> dict[str, Any]:
    return {"label": answer.label, "probabilities": answer.probabilities}


def _value(answer: Answer) -> dict[str, Any]:
    if answer.value is None or not math.isfinite(answer.value):
        raise DataError(
            f"{answer.adapter} predicts {answer.value} for a text, which is not a finite number.",
            "Check the text.",
        )
    return {"value": answer.value, "unit": answer.unit}


async def _predict(
    body: PredictBody,
    context: RequestContext,
    request: Request,
    task: str,
    fields: Callable[[Answer], dict[str, Any]],
) -> Response:
    context.set_model_name(body.model, json.dumps(body.input, ensure_ascii=False))
    texts = body.texts()
    model = await resolve(context, body.model, task)
    engine_requests = [EngineRequest(model.name, text) for text in texts]
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
    return await context.respond(content, "\n".join(str(answer.output) for answer in answers))

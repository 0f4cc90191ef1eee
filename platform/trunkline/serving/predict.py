"""``POST /v1/classify`` and ``POST /v1/regress``.

Owns: the form of labels and numbers. Must not know: how answers come about.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from trunkline.errors import DataError
from trunkline.inference import request as inference
from trunkline.inference.request import Answer
from trunkline.serving.call import Call
from trunkline.serving.parts import usage
from trunkline.serving.schemas import PredictBody

router = APIRouter()


@router.post("/v1/classify")
async def classify(body: PredictBody, request: Request) -> Response:
    """A label for each text, with the probabilities of all labels."""

    def told(answer: Answer) -> dict[str, Any]:
        return {"label": answer.label, "probabilities": answer.probabilities}

    return await _predict(body, request, "classification", told)


@router.post("/v1/regress")
async def regress(body: PredictBody, request: Request) -> Response:
    """A number for each text, in the adapter's unit."""

    def told(answer: Answer) -> dict[str, Any]:
        if answer.value is None or not math.isfinite(answer.value):
            raise DataError(
                f"{answer.adapter} gives no finite number for a text.", "Check the text."
            )
        return {"value": answer.value, "unit": answer.unit}

    return await _predict(body, request, "regression", told)


async def _predict(
    body: PredictBody, request: Request, task: str, told: Callable[[Answer], dict[str, Any]]
) -> Response:
    call: Call = request.state.call
    call.about(body.model, json.dumps(body.input, ensure_ascii=False))
    texts = body.texts()
    model = await call.resolve(body.model, task)
    asked = [inference.Request(None, text) for text in texts]
    await call.submit(model, texts, asked, body.timeout)
    answers = await call.answers(request.receive)
    data = [
        {"index": index, **told(answer), "prompt_tokens": answer.prompt_tokens}
        for index, answer in enumerate(answers)
    ]
    content = {"object": "list", "model": model.root, "data": data, "usage": usage(answers)}
    return await call.reply(content, "\n".join(str(answer.output) for answer in answers))

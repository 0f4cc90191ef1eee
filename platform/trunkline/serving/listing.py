"""``GET /v1/models`` and ``GET /v1/models/{ref}``.

Owns: the pages of the list. Must not know: what a version is.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from trunkline.serving.call import Call
from trunkline.serving.models import MOST_LISTED, find_model, list_models

router = APIRouter()


@router.get("/v1/models")
async def models(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = MOST_LISTED,
    after: Annotated[str | None, Query(max_length=256)] = None,
) -> dict[str, Any]:
    """The base, and every adapter with its aliases and versions, as far as the key may use them."""
    call: Call = request.state.call
    service = call.service
    found, more = await service.ask(
        list_models, service.registry, service.base, call.key, limit, after
    )
    return {
        "object": "list",
        "data": [model.to_json() for model in found],
        "first_id": found[0].id if found else None,
        "last_id": found[-1].id if found else None,
        "has_more": more,
    }


@router.get("/v1/models/{ref:path}")
async def model(ref: str, request: Request) -> dict[str, Any]:
    """The one version that a ref means now."""
    call: Call = request.state.call
    service = call.service
    found = await service.ask(find_model, service.registry, service.base, call.key, ref)
    return found.to_json()

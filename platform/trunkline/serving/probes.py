"""``GET /health``, ``/ready`` and ``/metrics``: for what watches over the server.

Owns: their forms. Must not know: models.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from trunkline.errors import UnavailableError
from trunkline.serving.auth import check_figures
from trunkline.serving.call import Call

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, Any]:
    """The process is alive."""
    return {"status": "alive"}


@router.get("/ready")
async def ready(request: Request) -> Response:
    """The base is loaded, and the server takes requests; else 503."""
    call: Call = request.state.call
    service = call.service
    if service.draining:
        raise UnavailableError("The server is ending.")
    return JSONResponse({"status": "ready", "base": service.base.name})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The figures, in Prometheus' text format, for keys that may use every adapter."""
    call: Call = request.state.call
    check_figures(call.key)
    service = call.service
    text = await service.ask(service.metrics.exposition, len(service.calls))
    return Response(text, media_type=CONTENT_TYPE_LATEST)

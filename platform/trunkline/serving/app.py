"""The application: routes behind the gate, over one platform.

Owns: putting the parts together. Must not know: what any route does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from trunkline.serving import admin, chat, completions, listing, predict, probes
from trunkline.serving.call import Call
from trunkline.serving.errors import of_http, of_validation
from trunkline.serving.middleware import Gate
from trunkline.serving.service import Service
from trunkline.serving.settings import ServerSettings

if TYPE_CHECKING:
    from trunkline.api import Platform

_LONGEST_ASKED = 256


def create_app(platform: Platform, settings: ServerSettings) -> FastAPI:
    """The server as an ASGI application; ``app.state.service`` is what its requests share.

    Its lifespan begins to load the base and ends the threads; the platform's engine stays the
    caller's to close.

    Raises:
        UsageError: the host has no address.
        RegistryError: the registry can't be opened.
    """
    service = Service(platform, settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="Trunkline",
        description="Many adapters on one base.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    for module in (probes, listing, chat, completions, predict, admin):
        app.include_router(module.router)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_middleware(Gate, service=service)
    return app


async def _invalid(request: Request, error: Exception) -> Response:
    """Pass it on to the gate in our own form; the log gets to know the model, if one is named."""
    assert isinstance(error, RequestValidationError)
    call: Call = request.state.call
    asked = error.body.get("model") if isinstance(error.body, dict) else None
    if isinstance(asked, str) and asked:
        call.about(asked[:_LONGEST_ASKED])
    raise of_validation(error) from None


async def _refused(request: Request, error: Exception) -> Response:
    """Pass it on to the gate in our own form."""
    assert isinstance(error, HTTPException)
    raise of_http(error, request.method, request.url.path) from None

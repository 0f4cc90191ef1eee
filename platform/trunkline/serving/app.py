"""Create the ASGI application: routes, middleware and exception handlers over one platform."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from trunkline.errors import TrunklineError
from trunkline.serving import admin, metrics, models, openai, paths, predict, responses
from trunkline.serving.errors import error_response, from_http, from_validation
from trunkline.serving.metrics import Metrics
from trunkline.serving.middleware import Authenticator, RequestMiddleware
from trunkline.serving.service import RequestContext, Service
from trunkline.serving.settings import ANY_ORIGIN, ServerSettings, is_loopback

if TYPE_CHECKING:
    from trunkline.api import Platform

_MAX_MODEL_CHARS = 256
_EXPOSED_HEADERS = (
    "x-request-id", "x-trunkline-version", "x-trunkline-digest", "x-trunkline-truncated",
    "retry-after", "x-should-retry",
)  # fmt: skip
"""Headers of answers that pages of other origins may read."""


def create_app(platform: Platform, settings: ServerSettings) -> FastAPI:
    """Create the server's application; its shared state is ``app.state.service``.

    The lifespan starts to load the base and stops the server's threads at its end. The platform's
    engine stays open; the caller closes it.

    Raises:
        UsageError: the host has no address.
        RegistryError: the registry can't be opened.
    """
    service = Service(platform, settings, Metrics(max_versions=settings.metric_versions))
    private = is_loopback(settings.host) and ANY_ORIGIN not in settings.cors_origins
    authenticator = Authenticator(platform.registry, loopback=private, host=settings.host)

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
        redirect_slashes=False,
    )
    app.state.service = service
    modules = (paths, metrics, models, openai, responses, predict, admin)
    routers = [module.router for module in modules]
    for router in routers:
        app.include_router(router)
    app.state.paths = [route.path for router in routers for route in router.routes]
    app.add_exception_handler(TrunklineError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_middleware(RequestMiddleware, service=service, authenticator=authenticator)
    if settings.cors_origins:  # outermost, so that preflights need no key and errors have headers
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=_EXPOSED_HEADERS,
        )
    return app


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TrunklineError)
    context: RequestContext = request.state.context
    return error_response(await context.fail(error), context.headers)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    """Respond with 400; the request is logged if its body names a model."""
    assert isinstance(error, RequestValidationError)
    context: RequestContext = request.state.context
    model = error.body.get("model") if isinstance(error.body, dict) else None
    if isinstance(model, str) and model:
        context.set_model_name(model[:_MAX_MODEL_CHARS])
    return await _on_error(request, from_validation(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    response = await _on_error(
        request,
        from_http(
            error,
            request.method,
            path,
            base_url=paths.base_url(request),
            meant=paths.meant_path(path, request.app.state.paths),
        ),
    )
    response.headers.update(error.headers or {})
    return response

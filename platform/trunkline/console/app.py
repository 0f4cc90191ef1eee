"""The console's application, and the two servers that have it: with and without an engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from trunkline.console import routes
from trunkline.console.access import NOBODY
from trunkline.console.forms import Form, read_form
from trunkline.console.pages import Page, Redirect
from trunkline.console.rendering import Renderer
from trunkline.console.security import secured
from trunkline.console.sessions import Sessions
from trunkline.console.static import StaticFiles
from trunkline.console.view import PREFIX, Identification, View, cookie_name
from trunkline.errors import NotFoundError, TrunklineError
from trunkline.refs import shown
from trunkline.serving import app as serving
from trunkline.serving.errors import INTERNAL_ERROR, ApiError
from trunkline.serving.metrics import Metrics
from trunkline.serving.middleware import Authenticator, check_header_size, read_body
from trunkline.serving.service import Service
from trunkline.serving.settings import ServerSettings, is_loopback

if TYPE_CHECKING:
    from trunkline.api import Platform
    from trunkline.console.routes.runs import Feed

Result = TypeVar("Result")

THREADS = 4
"""Threads that compute pages; the API has its own."""

_FORM_BYTES = 1 << 16
"""What the fields beside an uploaded file may take."""


@dataclass(frozen=True, slots=True)
class PageRoute:
    """A path of the console with the function that answers it, and what its key must permit."""

    route: Route
    spec: routes.Spec


class Console:
    """The console as an ASGI application; paths begin with ``/console``.

    Args:
        service: of the server that the console belongs to.

    Attributes:
        feeds: the runs that streams watch now, by number.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.sessions = Sessions()
        settings = service.settings
        authenticator = Authenticator(
            service.registry, loopback=is_loopback(settings.host), host=settings.host
        )
        self.identification = Identification(service, authenticator, self.sessions)
        self.renderer = Renderer(self.sessions)
        self.feeds: dict[int, Feed] = {}
        self._static = StaticFiles()
        self._threads = ThreadPoolExecutor(THREADS, "console")
        self._routes = [
            PageRoute(Route(PREFIX + spec.path, _no_endpoint, methods=[spec.method]), spec)
            for spec in routes.collect()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].rstrip("/")
        scope = {**scope, "path": path}
        if scope["method"] == "HEAD":  # the HTTP server sends no body
            scope = {**scope, "method": "GET"}
        if path.startswith(f"{PREFIX}/static/"):
            response = self._static.respond(path.removeprefix(f"{PREFIX}/static/"), scope)
        else:
            response = await self._respond(scope, receive)
        await response(scope, receive, secured(send))

    async def run(self, function: Callable[..., Result], *args: object) -> Result:
        """Run a blocking function in a thread of the console."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *args)

    async def _respond(self, scope: Scope, receive: Receive) -> Response:
        request = Request(scope, receive)
        try:
            check_header_size(Headers(scope=scope), self.service.settings)
            if not scope["path"].isprintable():
                raise ApiError(
                    f"The path {shown(scope['path'])} contains an unprintable character.",
                    "Follow the links of the console.",
                )
            spec = self._find(scope)
            form = Form()
            if scope["method"] == "POST":
                settings = self.service.settings
                least = spec.upload_bytes and spec.upload_bytes + _FORM_BYTES
                limit = max(settings.max_body_bytes, least)
                body = await read_body(
                    receive, request.headers, replace(settings, max_body_bytes=limit)
                )
                form = await read_form(request, body, files=bool(spec.upload_bytes))
            if not isinstance(spec, routes.AsyncSpec):
                return await self.run(self._answer, request, spec, form)
            view = await self.run(self._view, request, spec, form)
            try:
                result = await spec.function(self, view)
            except TrunklineError as error:
                return await self.run(self.renderer.error, request, error, view)
            return await self.run(self._response, view, result)
        except TrunklineError as error:
            return await self.run(self.renderer.error, request, error)
        except Exception:
            logging.getLogger("trunkline.console").exception("A page of the console failed.")
            return await self.run(self.renderer.error, request, INTERNAL_ERROR)

    def _find(self, scope: Scope) -> routes.Spec:
        """The page of a path; its parameters become the scope's.

        Raises:
            NotFoundError: there is none.
            ApiError: 405, it has another method.
        """
        allowed: list[str] = []
        for one in self._routes:
            match, parameters = one.route.matches(scope)
            if match is Match.FULL:
                scope.update(parameters)
                return one.spec
            if match is Match.PARTIAL:
                allowed.append(one.spec.method)
        path = shown(scope["path"])
        if allowed:
            raise ApiError(
                f"There is no {scope['method']} {path}.", f"Use {' or '.join(allowed)}.", status=405
            )
        raise NotFoundError(f"The console has no page {path}.", "Follow the links of the console.")

    def _view(self, request: Request, spec: routes.Spec, form: Form) -> View:
        """Identify the sender, and check the form and the role; blocks."""
        cookie = request.cookies.get(cookie_name(request), "") or self.sessions.new_cookie()
        access = NOBODY if spec.public else self.identification.identify(request)
        if spec.method == "POST":
            self.identification.check_form(request, cookie, form.fields)
        access.check_role(spec.role)
        if spec.everything:
            access.check_everything()
        language = self.renderer.language(request)
        return View(request, self.service, access, cookie, language, form.fields, form.file)

    def _answer(self, request: Request, spec: routes.Spec, form: Form) -> Response:
        view = self._view(request, spec, form)
        try:
            result = spec.function(self, view) if spec.public else spec.function(view)
        except TrunklineError as error:
            return self.renderer.error(request, error, view)
        return self._response(view, result)

    def _response(self, view: View, result: Page | Redirect | Response) -> Response:
        if isinstance(result, Page):
            return self.renderer.page(view, result)
        if isinstance(result, Redirect):
            return self.renderer.redirect(view, result)
        return result


async def _no_endpoint(request: Request) -> Response:
    """Routes are only matched; :class:`Console` calls the page's function itself."""
    raise NotImplementedError


class ConsoleSwitch:
    """Middleware that sends the console's paths to it, and everything else to the application."""

    def __init__(self, app: ASGIApp, console: Console) -> None:
        self._app = app
        self._console = console

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and (path == PREFIX or path.startswith(f"{PREFIX}/")):
            await self._console(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def create_app(platform: Platform, settings: ServerSettings) -> FastAPI:
    """The API's application with the console; see :func:`trunkline.serving.app.create_app`."""
    app = serving.create_app(platform, settings)
    app.state.console = Console(app.state.service)
    app.add_middleware(ConsoleSwitch, console=app.state.console)  # outermost: CORS is not for it
    return app


def create_console_app(platform: Platform, settings: ServerSettings) -> FastAPI:
    """The console alone, without an engine; ``/`` leads to it."""
    service = Service(platform, settings, Metrics(), with_engine=False)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(title="Trunkline", lifespan=lifespan, docs_url=None, redoc_url=None,
                  openapi_url=None)  # fmt: skip
    app.state.service = service
    app.state.console = Console(service)
    app.add_route("/", _to_console)
    app.add_middleware(ConsoleSwitch, console=app.state.console)
    return app


async def _to_console(request: Request) -> Response:
    return RedirectResponse(PREFIX, 303)

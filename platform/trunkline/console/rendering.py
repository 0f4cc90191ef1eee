"""Render pages as HTML or JSON, in the reader's language."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from trunkline.console import charts, formats
from trunkline.console.access import NOBODY
from trunkline.console.markdown import render_markdown
from trunkline.console.pages import NAVIGATION, NOTICES, Page, Redirect
from trunkline.console.sessions import LIFETIME, Sessions
from trunkline.console.translations import LANGUAGES, choose, load, load_core
from trunkline.console.view import PREFIX, TOKEN_FIELD, View, cookie_name, is_local
from trunkline.errors import AuthenticationError, TrunklineError
from trunkline.serving.errors import error_body

LANGUAGE_COOKIE = "trunkline-language"


class Renderer:
    """Turns what routes return into responses.

    Args:
        sessions: make the tokens of forms.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._environments = {language: _environment(language) for language in LANGUAGES}

    def language(self, request: Request) -> str:
        """The language that the reader chose, else the one that the browser prefers."""
        chosen = request.cookies.get(LANGUAGE_COOKIE, "")
        return chosen if chosen in LANGUAGES else choose(request.headers.get("accept-language", ""))

    def page(self, view: View, page: Page) -> Response:
        """A page as HTML, or its data as JSON."""
        if wants_json(view.request):
            return JSONResponse(formats.plain(page.data), page.status, headers=_VARY)
        text = self._render(view.request, view.language, view.cookie, page, view)
        response = Response(text, page.status, media_type="text/html", headers=dict(_VARY))
        self.set_cookie(response, view.request, view.cookie)
        return response

    def fragment(self, view: View, page: Page) -> str:
        """A part of a page as HTML."""
        return self._render(view.request, view.language, view.cookie, page, view)

    def redirect(self, view: View, redirect: Redirect) -> Response:
        """The next page after an action, or the action's result as JSON."""
        if wants_json(view.request):
            return JSONResponse(formats.plain(redirect.data), headers=_VARY)
        query = f"?{urlencode({'done': redirect.done})}" if redirect.done else ""
        return RedirectResponse(f"{PREFIX}{redirect.path}{query}", 303)

    def error(self, request: Request, error: TrunklineError, view: View | None = None) -> Response:
        """An error as a page or in the API's JSON; without a session, the form to sign in."""
        status = error.http_status
        if wants_json(request):
            headers = dict(_VARY)
            if status == 401:
                headers["www-authenticate"] = "Bearer"
            return JSONResponse(error_body(error), status, headers=headers)
        if isinstance(error, AuthenticationError):
            page = sign_in_page(request)
        else:
            page = Page(
                "error.html",
                str(status),
                {"status": status, "message": error.message, "hint": error.hint},
                status=status,
            )
        cookie = request.cookies.get(cookie_name(request), "") or self._sessions.new_cookie()
        text = self._render(request, self.language(request), cookie, page, view)
        response = Response(text, page.status, media_type="text/html", headers=dict(_VARY))
        self.set_cookie(response, request, cookie)
        return response

    def set_cookie(self, response: Response, request: Request, cookie: str) -> None:
        """Send the session's cookie, unless the browser has it."""
        if request.cookies.get(cookie_name(request)) != cookie:
            response.set_cookie(
                cookie_name(request),
                cookie,
                max_age=LIFETIME,
                path=PREFIX,
                secure=not is_local(request),
                httponly=True,
                samesite="strict",
            )

    def _render(
        self, request: Request, language: str, cookie: str, page: Page, view: View | None
    ) -> str:
        def form_token() -> Markup:
            token = self._sessions.token(cookie)
            return Markup('<input type="hidden" name="{}" value="{}">').format(TOKEN_FIELD, token)

        environment = self._environments[language]
        access = None if view is None or view.access is NOBODY else view.access
        places = [
            place
            for place in NAVIGATION
            if access is not None
            and access.may(place.role)
            and (access.sees_everything or not place.everything)
        ]
        notice = NOTICES.get(request.query_params.get("done", ""))
        return environment.get_template(page.template).render(
            {
                **page.data,
                **page.shown,
                "page": page,
                "access": access,
                "places": places,
                "notice": notice,
                "language": language,
                "languages": LANGUAGES,
                "form_token": form_token,
                "here": request.url.path,
                "here_with_query": _here(request),
                "link": _linker(request),
                "with_engine": view is not None and view.service.with_engine,
            }
        )


_VARY = {"vary": "accept, accept-language, cookie, authorization"}


def sign_in_page(request: Request, *, refused: bool = False) -> Page:
    """The form to enter a key; afterwards the browser is sent where it wanted to go."""
    local = is_local(request)
    encrypted = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", ""))
    return Page(
        "sign_in.html",
        "Sign in",
        {},
        {"refused": refused, "next": _here(request), "usable": local or encrypted},
        status=401,
    )


def wants_json(request: Request) -> bool:
    """Whether the client prefers JSON to HTML."""
    weights = {"application/json": 0.0, "text/html": 0.0}
    for part in request.headers.get("accept", "text/html").split(","):
        kind, _, rest = part.strip().partition(";")
        weight = 1.0
        for parameter in rest.split(";"):
            name, _, value = parameter.strip().partition("=")
            if name == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        kind = kind.strip().lower()
        if kind in weights:
            weights[kind] = max(weights[kind], weight)
    return weights["application/json"] > weights["text/html"]


def _here(request: Request) -> str:
    query = request.url.query
    return request.url.path + (f"?{query}" if query else "")


def _linker(request: Request) -> Callable[..., str]:
    """A function that makes the URL of this page with other values in its query."""

    def link(**changes: object) -> str:
        query = {**dict(request.query_params), **changes}
        query.pop("done", None)
        kept = {name: value for name, value in query.items() if value not in (None, "")}
        return request.url.path + (f"?{urlencode(kept)}" if kept else "")

    return link


def _environment(language: str) -> Environment:
    environment = Environment(
        loader=PackageLoader("trunkline.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    translations: Any = environment
    translations.install_gettext_translations(load(language), newstyle=True)
    environment.filters |= formats.FILTERS
    environment.filters["markdown"] = render_markdown
    environment.filters["translated"] = load_core(language)
    environment.globals |= {"charts": charts, "prefix": PREFIX}
    return environment

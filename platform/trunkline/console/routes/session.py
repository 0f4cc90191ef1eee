"""Sign in and out, and choose the language."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starlette.responses import RedirectResponse, Response

from trunkline.console.pages import N_
from trunkline.console.rendering import LANGUAGE_COOKIE, sign_in_page
from trunkline.console.routes import Routes
from trunkline.console.translations import LANGUAGES
from trunkline.console.view import PREFIX, View, cookie_name, is_local
from trunkline.errors import AuthenticationError, UsageError
from trunkline.refs import shown

if TYPE_CHECKING:
    from trunkline.console.app import Console

routes = Routes()

_NEXT = re.compile(
    r"/console(?!.*(?:\.\.|//))(?:/[A-Za-z0-9._~@%/-]*)?(?:\?[A-Za-z0-9._~@%&=+/-]*)?", re.ASCII
)
_YEAR = 365 * 24 * 3600


@routes.get("/sign-in", public=True)
def sign_in_form(console: Console, view: View) -> Response:
    """The form; of no use on a server without keys."""
    return console.renderer.page(view, sign_in_page(view.request))


@routes.post("/sign-in", public=True)
def sign_in(console: Console, view: View) -> Response:
    """Open a session under a new id, and go where the browser wanted to go."""
    cookie = console.identification.sign_in(view.request, view.form.get("key", ""))
    if cookie is None:
        if "json" in view.request.headers.get("accept", ""):
            raise AuthenticationError(N_("The key is not valid."), N_("Check it and retry."))
        return console.renderer.page(view, sign_in_page(view.request, refused=True))
    response = RedirectResponse(_next(view), 303)
    console.renderer.set_cookie(response, view.request, cookie)
    return response


@routes.post("/sign-out", public=True)
def sign_out(console: Console, view: View) -> Response:
    """End the session."""
    console.sessions.close(view.cookie)
    response = RedirectResponse(f"{PREFIX}/sign-in?done=signed-out", 303)
    response.delete_cookie(cookie_name(view.request), path=PREFIX)
    return response


@routes.post("/language", public=True)
def language(console: Console, view: View) -> Response:
    """Remember the language in a cookie."""
    chosen = view.form.get("language", "")
    if chosen not in LANGUAGES:
        raise UsageError(f"There is no language {shown(chosen)}.", f"Use {', '.join(LANGUAGES)}.")
    response = RedirectResponse(_next(view), 303)
    response.set_cookie(
        LANGUAGE_COOKIE,
        chosen,
        max_age=_YEAR,
        path=PREFIX,
        secure=not is_local(view.request),
        httponly=True,
        samesite="strict",
    )
    return response


def _next(view: View) -> str:
    """A page of the console that the form names, else the home page."""
    wanted = view.form.get("next", "")
    signing = wanted.startswith(f"{PREFIX}/sign-")
    return wanted if _NEXT.fullmatch(wanted) and not signing else PREFIX

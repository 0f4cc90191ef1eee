"""One request to the console: who sends it, what it asks for, and its checked form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.requests import Request

from trunkline.console.access import Access
from trunkline.console.forms import UploadedFile
from trunkline.console.pages import N_
from trunkline.console.sessions import Sessions
from trunkline.errors import ForbiddenError, UsageError
from trunkline.refs import shown

if TYPE_CHECKING:
    from trunkline.api import Platform
    from trunkline.registry.registry import Registry
    from trunkline.serving.middleware import Authenticator
    from trunkline.serving.service import Service

PREFIX = "/console"
TOKEN_FIELD = "form_token"

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class View:
    """A request whose sender is known.

    Attributes:
        access: what the sender may see and do.
        cookie: the session's, or a new random one for a browser that has none.
        language: of the page.
        form: the fields of a form, whose token was checked; empty for other methods.
        file: that the form had.
        service: has the engine, if there is one.
    """

    request: Request
    service: Service
    access: Access
    cookie: str
    language: str
    form: Mapping[str, str]
    file: UploadedFile | None = None

    @property
    def platform(self) -> Platform:
        """The workspace."""
        return self.service.platform

    @property
    def registry(self) -> Registry:
        """The workspace's registry."""
        return self.service.registry

    @property
    def path(self) -> Mapping[str, Any]:
        """The parameters of the path."""
        return self.request.path_params

    @property
    def query(self) -> Mapping[str, str]:
        """The query of the URL; of a repeated name, the last value."""
        return self.request.query_params

    def text(self, name: str) -> str:
        """A text of the query without surrounding white space; empty if it is missing."""
        return self.query.get(name, "").strip()

    def number(self, name: str) -> int | None:
        """A number of the query; None if it is missing.

        Raises:
            UsageError: it is not a number.
        """
        text = self.text(name)
        if not text:
            return None
        if not (text.isascii() and text.isdecimal() and len(text) <= 18):
            raise UsageError(f"{name} can't be {shown(text)}.", "Write a number.")
        return int(text)


class Identification:
    """Finds out who sends a request, by the session's cookie or by a key in its header."""

    def __init__(self, service: Service, authenticator: Authenticator, sessions: Sessions) -> None:
        self._service = service
        self._authenticator = authenticator
        self._sessions = sessions

    def identify(self, request: Request) -> Access:
        """The rights of the sender; blocks.

        Raises:
            AuthenticationError: neither a session nor a valid key.
            ForbiddenError: the server has no keys and does not answer to this host name.
        """
        headers = request.headers
        if "authorization" not in headers:
            key_id = self._sessions.key_of(request.cookies.get(cookie_name(request), ""))
            key = key_id and self._service.registry.keys.get_valid(key_id)
            if key:
                return Access(key)
        return Access(
            self._authenticator.authenticate(headers.get("authorization"), headers.get("host"))
        )

    def sign_in(self, request: Request, secret: str) -> str | None:
        """Open a session for a key; returns its cookie, or None if the key is not valid."""
        key = self._service.registry.keys.authenticate(secret.strip())
        if key is None:
            return None
        self._sessions.close(request.cookies.get(cookie_name(request), ""))
        return self._sessions.open(key.id)

    def check_form(self, request: Request, cookie: str, form: Mapping[str, str]) -> None:
        """Refuse a form that another site's page may have sent.

        A program that sends its key in a header has no cookie that a browser would add by itself,
        so it needs no token.

        Raises:
            ForbiddenError: the Origin is another site's, or the token is missing or wrong.
        """
        origin = request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "same-origin")
        host = request.headers.get("host", "")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or site not in ("same-origin", "none"):
            raise ForbiddenError(
                N_("The form was sent by a page of another site."), N_("Open the console itself.")
            )
        if "authorization" in request.headers:
            return
        if not self._sessions.is_token(cookie, form.get(TOKEN_FIELD, "")):
            raise ForbiddenError(
                N_("The form has expired, or your session has ended."),
                N_("Load the page again and retry."),
            )


def is_local(request: Request) -> bool:
    """Whether the browser reached the server under a name of this machine."""
    return _host_and_port(request)[0] in _LOCAL_NAMES


def cookie_name(request: Request) -> str:
    """The name of the session's cookie; each port has its own, since cookies ignore ports."""
    port = _host_and_port(request)[1]
    return f"trunkline-console-{port}" if port else "trunkline-console"


def _host_and_port(request: Request) -> tuple[str, str]:
    host = request.headers.get("host", "").lower()
    name, _, port = host.rpartition(":")
    if not name or not port.isdecimal():
        return host, ""
    return name, port

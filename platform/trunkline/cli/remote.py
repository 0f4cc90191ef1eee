"""A running server, asked over HTTP in OpenAI's form.

Owns: the transport, and what a server's refusals become here. Must not know: any command. Imported
only when a server is asked. Redirects are never followed: the key goes to the named server alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self

import httpx2

from trunkline.errors import (
    AuthenticationError,
    BaseMismatchError,
    BaseModelError,
    BusyError,
    DataError,
    DeadlineError,
    ForbiddenError,
    IntegrityError,
    Interrupted,
    NotFoundError,
    RefusedError,
    RegistryError,
    TooLargeError,
    TrunklineError,
    UnavailableError,
    UsageError,
)
from trunkline.evaluation.gates import GateCheck
from trunkline.promotion import GateRefusedError

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "TRUNKLINE_API_KEY"

_TIMEOUT = httpx2.Timeout(600.0, connect=10.0)
_TRIES = 4
_LONGEST_WAIT = 10.0
_KINDS: dict[int, type[TrunklineError]] = {
    400: UsageError,
    401: AuthenticationError,
    403: ForbiddenError,
    404: NotFoundError,
    409: RefusedError,
    413: TooLargeError,
    422: DataError,
    504: DeadlineError,
}
_TOLD_BY_CODE: dict[str | None, type[TrunklineError]] = {
    kind.code: kind
    for kind in (
        BaseMismatchError,
        BaseModelError,
        DeadlineError,
        IntegrityError,
        Interrupted,
        RegistryError,
    )
}
"""Where the server's code tells more exactly than its status, or comes without one."""

_HINTS = {
    401: f"Put a key of `trunkline keys create` into {KEY_VARIABLE}.",
    403: f"Ask with another key in {KEY_VARIABLE}.",
}


class Remote:
    """One server. Use it as a context manager, or close it.

    Args:
        url: ``http://host:port`` or ``https://…``; a trailing ``/v1`` is taken off.
        key: sent as a bearer token; by default what ``TRUNKLINE_API_KEY`` holds.

    Raises:
        UsageError: the URL or the key can't be one.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = _checked(url)
        key = os.environ.get(KEY_VARIABLE, "").strip() if key is None else key
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UsageError(
                f"What {KEY_VARIABLE} holds is not a key.", "`trunkline keys create` makes one."
            )
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=_TIMEOUT,
            follow_redirects=False,
            trust_env=not _here(httpx2.URL(self.url).host),
        )

    def get(self, path: str) -> dict[str, Any]:
        """The object at a path such as ``/v1/models``."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The object that answers ``body``; a full server is asked again when it says so."""
        for _ in range(_TRIES - 1):
            try:
                return self._ask("POST", path, body)
            except UnavailableError:
                raise
            except BusyError as busy:
                time.sleep(min(busy.retry_after, _LONGEST_WAIT))
        return self._ask("POST", path, body)

    def events(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any]]:
        """The objects of a stream up to its ``[DONE]``; closing the generator ends the request.

        Raises:
            TrunklineError: what the server tells instead of, or in the middle of, the stream; a
                stream that ends without its mark.
        """
        with self._reached(), self._client.sse(self.url + path, method="POST", json=body) as source:
            if source.response.status_code != 200:
                source.response.read()
                raise self._refusal(source.response)
            for event in source:
                if event.data == "[DONE]":
                    return
                told = event.json()
                if not isinstance(told, dict):
                    raise ValueError("not an object")
                if "error" in told:
                    raise self._told_error(told["error"], None)
                yield told
        raise UnavailableError(f"The server at {self.url} broke the answer off.", "Ask again.")

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        with self._reached():
            response = self._client.request(method, self.url + path, json=body)
            if response.status_code != 200:
                raise self._refusal(response)
            told = response.json()
            if not isinstance(told, dict):
                raise ValueError("not an object")
            return told

    def _refusal(self, response: httpx2.Response) -> TrunklineError:
        if response.is_redirect:
            there = response.headers.get("location", "another address")[:200]
            return UsageError(
                f"The server at {self.url} sends on to {there!r}, which is not followed.",
                "Give that address with --url if you trust it with your key.",
            )
        told = response.json()
        return self._told_error(told["error"], response)

    def _told_error(self, told: Any, response: httpx2.Response | None) -> TrunklineError:
        """The error that the server tells in OpenAI's form, as one of ours.

        Args:
            told: the object under ``error``.
            response: None for an error in the middle of a stream.
        """
        status = 500 if response is None else response.status_code
        message, hint = " ".join(str(told["message"]).split()), told.get("hint")
        if hint:
            message = message.removesuffix(f" {hint}")
        hint = _HINTS.get(status) or hint
        if (checks := told.get("checks")) is not None:
            return GateRefusedError(message, hint, [GateCheck(**check) for check in checks])
        kind = _TOLD_BY_CODE.get(told.get("code") or "") or _KINDS.get(status)
        if kind is None and response is not None and status in (429, 503):
            busy = BusyError if status == 429 else UnavailableError
            return busy(message, hint, retry_after=_seconds(response.headers.get("retry-after")))
        return (kind or TrunklineError)(message, hint)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn what goes wrong on the way into one sentence."""
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise UnavailableError(
                f"Nothing answers at {self.url} ({error}).", "`trunkline serve` starts a server."
            ) from error
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
            raise UnavailableError(
                f"The server at {self.url} broke off: {reason}.", "See what it says, and ask again."
            ) from error
        except UnicodeEncodeError as error:
            raise DataError("A text holds what is no character.", "Send it as UTF-8.") from error
        except (httpx2.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise not_understood(self.url) from error


def not_understood(url: str) -> TrunklineError:
    """What is raised when something answers, but not as Trunkline's server does."""
    return TrunklineError(
        f"What answers at {url} does not speak as this version's server does.",
        "Check the address, and that `trunkline serve` there is of the same version.",
    )


def _checked(url: str) -> str:
    """The URL without a trailing slash, if it may be a server's."""
    example = f"Write it like {DEFAULT_URL}."
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise UsageError(f"{url[:80]!r} is not an address.", example) from error
    if parsed.userinfo:
        raise UsageError("The address holds a user's name.", f"The key goes into {KEY_VARIABLE}.")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise UsageError(f"{url[:80]!r} is not the address of a server.", example)
    return str(parsed).rstrip("/").removesuffix("/v1")


def _here(host: str) -> bool:
    """Whether a host is this machine, to which no proxy leads."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 1))
    except ValueError:
        return 1.0

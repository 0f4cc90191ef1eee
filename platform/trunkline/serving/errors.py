"""Errors in OpenAI's form.

Owns: what becomes of an error on its way to a client: status, type, code, headers. Must not know:
requests, or where errors come from.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from trunkline.errors import BusyError, DeadlineError, TrunklineError
from trunkline.refs import shown

INTERNAL = TrunklineError(
    "The server failed at this request; the reason stands in its own output.",
    "Tell its operator the request's id.",
)

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(TrunklineError):
    """What only a server can say: with the status, and OpenAI's ``param`` and ``code``."""

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.http_status = status
        self.param = param
        self.code = code


def unknown_model(asked: str) -> ApiError:
    """One answer for what does not exist and for what this key may not see."""
    return ApiError(
        f"The model {shown(asked)} does not exist, or is not for this key.",
        "GET /v1/models lists those that are.",
        status=404,
        param="model",
        code="model_not_found",
    )


def too_late(timeout: float | None, most: float) -> DeadlineError:
    """Names the limit that struck: the request's own ``timeout``, or the server's ``most``; in
    seconds."""
    if timeout is not None and timeout < most:
        return DeadlineError(
            f"The request was not answered in the {timeout:g} seconds of its timeout.",
            f"Give it more, {most:g} at most, or try when less is going on.",
        )
    return DeadlineError(
        f"The request was not answered in the {most:g} seconds that this server gives.",
        "Ask for less at once, or try when less is going on.",
    )


def told(error: TrunklineError) -> dict[str, Any]:
    """The body of an error: ``{"error": {message, type, param, code}}``."""
    status = error.http_status
    fallback = "server_error" if status >= 500 else "invalid_request_error"
    message = f"{error.message} {error.hint}" if error.hint else error.message
    return {
        "error": {
            "message": message,
            "type": _TYPES.get(status, fallback),
            "param": error.param if isinstance(error, ApiError) else None,
            "code": error.code,
        }
    }


def refusal(error: TrunklineError, headers: dict[str, str]) -> JSONResponse:
    """The whole response; one that is to be tried again says when."""
    headers = dict(headers)
    if error.http_status in (429, 503):
        seconds = error.retry_after if isinstance(error, BusyError) else 1.0
        headers["retry-after"] = str(max(1, math.ceil(seconds)))
    if error.http_status == 504:  # else OpenAI's clients ask twice more, in vain
        headers["x-should-retry"] = "false"
    if error.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.http_status in (408, 413, 431):
        headers["connection"] = "close"
    return JSONResponse(told(error), error.http_status, headers=headers)


def of_validation(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a body or a query; never echoes its content."""
    found = error.errors()
    first = found[0]
    if first["loc"][1:2] == ("messages",):  # of text or parts, the one that came further
        first = max(found, key=lambda one: len(one["loc"]))
    where, problem = list(first["loc"]), str(first["msg"])
    if first["type"] == "json_invalid":
        reason = str(first.get("ctx", {}).get("error", "unreadable"))
        return ApiError(
            f"The body is not JSON: {reason}, at character {where[-1]}.", "Send a JSON object."
        )
    if len(where) < 2:
        return ApiError(
            f"The body can't be read: {problem}.",
            "Send a JSON object, with the header Content-Type: application/json.",
        )
    place = f"[{where[2]}]" if len(where) > 2 and isinstance(where[2], int) else ""
    param = f"{where[1]}{place}"
    return ApiError(f"{param}: {problem}.", "GET /openapi.json describes it.", param=param)


def of_http(error: HTTPException, method: str, path: str) -> ApiError:
    """What the web framework refuses: unknown paths and methods."""
    asked = f"{method} {shown(path)}"
    if error.status_code == 404:
        return ApiError(f"There is no {asked}.", "GET /openapi.json lists what is.", status=404)
    if error.status_code == 405:
        allowed = Headers(error.headers).get("allow", "another method")
        return ApiError(f"There is no {asked}.", f"The path takes {allowed}.", status=405)
    phrase = HTTPStatus(error.status_code).phrase
    return ApiError(f"{asked}: {phrase}.", str(error.detail), status=error.status_code)

"""Convert errors to responses in OpenAI's format."""

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

INTERNAL_ERROR = TrunklineError(
    "The server failed to process this request; the reason is in the server's own log.",
    "Give the request's id to the operator.",
)

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(TrunklineError):
    """An error with an HTTP status, and OpenAI's ``param`` and ``code``."""

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


def unknown_model(ref: str) -> ApiError:
    """The same error for a model that does not exist and for one that the key may not use."""
    return ApiError(
        f"The model {shown(ref)} does not exist, or your key may not use it.",
        "GET /v1/models lists the models that you may use.",
        status=404,
        param="model",
        code="model_not_found",
    )


def deadline_error(timeout: float | None, maximum: float) -> DeadlineError:
    """The error of a request that took too long; names the limit that applied.

    Args:
        timeout: seconds that the request's body allows.
        maximum: seconds that the server allows.
    """
    if timeout is not None and timeout < maximum:
        return DeadlineError(
            f"The request was not answered within its timeout of {timeout:g} seconds.",
            f"Set a longer timeout, at most {maximum:g}, or retry when the server is less busy.",
        )
    return DeadlineError(
        f"The request was not answered within the server's limit of {maximum:g} seconds.",
        "Send a smaller request, or retry when the server is less busy.",
    )


def error_body(error: TrunklineError) -> dict[str, Any]:
    """``{"error": {message, type, param, code}}``."""
    status = error.http_status
    default = "server_error" if status >= 500 else "invalid_request_error"
    message = f"{error.message} {error.hint}" if error.hint else error.message
    return {
        "error": {
            "message": message,
            "type": _TYPES.get(status, default),
            "param": error.param if isinstance(error, ApiError) else None,
            "code": error.code,
        }
    }


def error_response(error: TrunklineError, headers: dict[str, str]) -> JSONResponse:
    """The response for an error; 429 and 503 have ``retry-after``."""
    headers = dict(headers)
    if error.http_status in (429, 503):
        seconds = error.retry_after if isinstance(error, BusyError) else 1.0
        headers["retry-after"] = str(max(1, math.ceil(seconds)))
    if error.http_status == 504:  # otherwise OpenAI's clients retry twice, in vain
        headers["x-should-retry"] = "false"
    if error.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.http_status in (408, 413, 431):
        headers["connection"] = "close"
    return JSONResponse(error_body(error), error.http_status, headers=headers)


def from_validation(error: RequestValidationError) -> ApiError:
    """The first problem of a body or a query; never echoes the content."""
    problems = error.errors()
    first = problems[0]
    if first["loc"][1:2] == ("messages",):  # of the union's branches, the one that matched further
        first = max(problems, key=lambda problem: len(problem["loc"]))
    location, problem = list(first["loc"]), str(first["msg"])
    if first["type"] == "json_invalid":
        reason = str(first.get("ctx", {}).get("error", "unreadable"))
        return ApiError(
            f"The body is not JSON: {reason}, at character {location[-1]}.", "Send a JSON object."
        )
    if len(location) < 2:
        return ApiError(
            f"The body can't be read: {problem}.",
            "Send a JSON object, with the header Content-Type: application/json.",
        )
    index = f"[{location[2]}]" if len(location) > 2 and isinstance(location[2], int) else ""
    param = f"{location[1]}{index}"
    return ApiError(f"{param}: {problem}.", "GET /openapi.json describes it.", param=param)


def from_http(error: HTTPException, method: str, path: str) -> ApiError:
    """The web framework's errors: unknown paths and methods."""
    route = f"{method} {shown(path)}"
    if error.status_code == 404:
        return ApiError(f"There is no {route}.", "GET /openapi.json lists all routes.", status=404)
    if error.status_code == 405:
        allowed = Headers(error.headers).get("allow", "another method")
        return ApiError(f"There is no {route}.", f"Use {allowed}.", status=405)
    phrase = HTTPStatus(error.status_code).phrase
    return ApiError(f"{route}: {phrase}.", str(error.detail), status=error.status_code)

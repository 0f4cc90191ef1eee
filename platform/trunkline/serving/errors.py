"""Convert errors to responses in OpenAI's format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from trunkline.errors import BusyError, DeadlineError, TrunklineError
from trunkline.refs import shown
from trunkline.serving.fields import INVALID, TAGS, UNSUPPORTED, shown_field

INTERNAL_ERROR = TrunklineError(
    "The server failed to process this request; the reason is in the server's own log.",
    "Give the request's id to the operator.",
)

BODY = "body"
"""``param`` of an error that concerns the body as a whole."""

SEND_OBJECT = "Send a JSON object, with the header Content-Type: application/json."
SEE_SCHEMA = "GET /openapi.json describes every field."

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


def unknown_model(ref: str, field: str = "model", similar: Sequence[str] = ()) -> ApiError:
    """The same error for a model that does not exist and for one that the key may not use.

    Args:
        ref: as the client sent it in ``field``.
        similar: models that the key may use and the client may have meant.
    """
    names = " or ".join(similar)
    return ApiError(
        f"The model {shown(ref)} does not exist, or your key may not use it.",
        (f"Did you mean {names}? " if similar else "")
        + "GET /v1/models lists the models that you may use.",
        status=404,
        param=field,
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
            "param": error.param,
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


def noun(value: Any) -> str:
    """What a JSON value is, for messages: ``a number``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = ((str, "a text"), (list, "a list"), (dict, "an object"), ((int, float), "a number"))
    return next((text for kind, text in kinds if isinstance(value, kind)), "this value")


def from_validation(error: RequestValidationError) -> ApiError:
    """The first problem of a body or a query; of its values, only numbers appear."""
    problem = error.errors()[0]
    place, *location = problem["loc"]
    body = error.body if place == "body" else None
    path = _field_path(location, body, missing=problem["type"] == "missing")
    context = problem.get("ctx", {})
    if problem["type"] in (UNSUPPORTED, INVALID):
        path = join_path(path, context["field"]) if context["field"] else path
        code = UNSUPPORTED if problem["type"] == UNSUPPORTED else None
        message = f"{shown_field(path)} {context['problem']}"
        return ApiError(message, context["hint"], param=path, code=code)
    if not path:
        return not_an_object(body)
    name = shown_field(path)
    return ApiError(*_describe(problem, name), param=path)


def not_an_object(body: Any) -> ApiError:
    """The error for a body that is JSON, but not an object."""
    return ApiError(f"The body must be a JSON object, not {noun(body)}.", SEND_OBJECT, param=BODY)


def join_path(path: str, field: str | int) -> str:
    """The path of a field in an object, or of an item in a list."""
    if isinstance(field, int):
        return f"{path}[{field}]"
    return f"{path}.{field}" if path else field


def _field_path(location: Sequence[str | int], body: Any, *, missing: bool) -> str:
    """The path of a field in a body, from pydantic's location.

    The location also contains the names of the alternatives of a union, which the body does not.
    """
    if not isinstance(body, dict | list):
        return join_path("", str(location[0])) if location else ""
    path = ""
    value: Any = body
    for index, step in enumerate(location):
        absent = missing and index == len(location) - 1
        if step in TAGS:
            continue
        if isinstance(value, dict) and isinstance(step, str) and (absent or step in value):
            path, value = join_path(path, step), value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            path, value = join_path(path, step), value[step]
    return path


_KINDS = {
    "string_type": "a text",
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""Type of pydantic's error → what was expected."""

_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
"""Type of pydantic's error → where it names the bound, and what the bound is."""


def _describe(problem: Mapping[str, Any], name: str) -> tuple[str, str]:
    """Message and hint for one of pydantic's errors."""
    kind, value, context = problem["type"], problem.get("input"), problem.get("ctx", {})
    number = isinstance(value, int | float) and not isinstance(value, bool)
    shown_value = f"{value:.12g}" if number else noun(value)
    if kind in _BOUNDS and isinstance(value, str):  # a number in a query string
        shown_value = shown(value)
    if kind == "missing":
        return f"{name} is missing.", f"Send {name}."
    if kind in _KINDS:
        return f"{name} must be {_KINDS[kind]}, not {shown_value}.", SEE_SCHEMA
    if kind in _BOUNDS:
        bound, comparison = _BOUNDS[kind]
        return f"{name} can't be {shown_value}.", f"Send {comparison} {context[bound]:,}."
    if kind == "finite_number":
        return f"{name} can't be {shown_value}.", "Send a finite number."
    if kind == "literal_error":
        return f"{name} must be {context['expected']}.", SEE_SCHEMA
    if kind in ("too_short", "string_too_short"):
        hint = "Send a text." if isinstance(value, str) else "Send a list of at least one."
        return f"{name} is empty.", hint
    if kind in ("too_long", "string_too_long"):
        unit = "characters" if isinstance(value, str) else "items"
        return f"{name} is too long.", f"Send at most {context['max_length']:,} {unit}."
    return f"{name}: {str(problem['msg']).removeprefix('Value error, ')}.", SEE_SCHEMA


def from_http(
    error: HTTPException, method: str, path: str, *, base_url: str, meant: str | None
) -> ApiError:
    """The web framework's errors: unknown paths and methods.

    Args:
        base_url: what clients need, which is what most wrong paths come from.
        meant: the path that a wrong one was probably meant for.
    """
    route = f"{method} {shown(path)}"
    clients = f"The base URL for clients is {base_url}."
    if error.status_code == 404:
        problem = f"There is no {route}" + (f"; did you mean {shown(meant)}?" if meant else ".")
        return ApiError(problem, f"{clients} GET /openapi.json lists all routes.", status=404)
    if error.status_code == 405:
        allowed = Headers(error.headers).get("allow", "another method")
        hint = f"Use {allowed}." + ("" if path.startswith("/v1/") else f" {clients}")
        return ApiError(f"There is no {route}.", hint, status=405)
    phrase = HTTPStatus(error.status_code).phrase
    return ApiError(f"{route}: {phrase}.", str(error.detail), status=error.status_code, param=BODY)

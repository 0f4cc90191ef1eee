"""Strict JSON bodies and query strings: what can be read in two ways is refused."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers

from trunkline.refs import shown
from trunkline.serving.errors import BODY, SEND_OBJECT, ApiError, join_path, not_an_object
from trunkline.serving.fields import UNSUPPORTED, shown_field

MAX_DIGITS = 40
"""Digits of an integer; Python converts long ones slowly, and no field takes one."""

MAX_VISITED = 10_000
"""How many values are searched for the one that an error names."""

_PLAIN = frozenset({"", "identity", "utf-8"})
"""Content encodings without an effect; some clients name the character encoding here."""

_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii"})
"""Character encodings, as a content type names them, whose texts are UTF-8."""

_CHARSET = re.compile(r"charset\s*=\s*[\"']?([^\s\"';]+)", re.IGNORECASE)

_JSON_TYPE = re.compile(r"application/([\w.+-]+\+)?json", re.IGNORECASE)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonRoute(APIRoute):
    """A route that takes only the query parameters that it declares, and strict JSON as its body.

    Every router of ``/v1`` and ``/admin`` is made with ``APIRouter(route_class=JsonRoute)``.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        parameters = frozenset(field.alias for field in self.dependant.query_params)
        has_body = self.body_field is not None

        async def handle_checked(request: Request) -> Response:
            check_query(request, parameters)
            if has_body:
                body = parse_body(await request.body(), request.headers)
                request = _ParsedRequest(request, body)
            return await handle(request)

        return handle_checked


class _ParsedRequest(Request):
    """A request whose body is parsed."""

    def __init__(self, request: Request, parsed: dict[str, Any]) -> None:
        super().__init__(request.scope, request.receive)
        self._parsed = parsed

    async def body(self) -> bytes:
        return b"{}"  # FastAPI reads the body, only to see whether there is one

    async def json(self) -> Any:
        return self._parsed


def check_query(request: Request, parameters: frozenset[str]) -> None:
    """Refuse unknown and repeated parameters of a query string.

    Raises:
        ApiError: 400, with the name of the parameter.
    """
    seen = set()
    for name, _ in request.query_params.multi_items():
        if name not in parameters:
            known = ", ".join(sorted(parameters))
            raise ApiError(
                f"The query parameter {shown_field(name)} is not supported.",
                f"Supported here: {known}." if known else "Remove it.",
                param=name,
                code=UNSUPPORTED,
            )
        if name in seen:
            raise ApiError(f"The query parameter {name} occurs twice.", "Send it once.", param=name)
        seen.add(name)


def parse_body(data: bytes, headers: Headers) -> dict[str, Any]:
    """The object that a body contains.

    Raises:
        ApiError: 400, it is not one JSON object in UTF-8, or it has no single meaning: a key
            occurs twice, or a value can't be represented (NaN, infinity, half a character).
    """
    if not data.strip():
        raise _invalid("The body is empty.")
    content_type = headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip()
    if not _JSON_TYPE.fullmatch(kind):
        problem = f"The body's content type is {shown(kind)}." if kind else (
            "The body has no content type."
        )  # fmt: skip
        raise ApiError(problem, SEND_OBJECT, param="Content-Type")
    _check_encodings(data, content_type, headers)
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        byte = data[error.start] if error.start < len(data) else 0
        raise _invalid(
            f"The body is not UTF-8: it contains the byte {byte:#04x} at position {error.start}."
        ) from None
    try:
        body, has_invalid = _parse(text)
        dumped = json.dumps(body, ensure_ascii=False) if _SURROGATE.search(text) else ""
    except RecursionError:
        raise _invalid("The body is nested too deeply.") from None
    if not isinstance(body, dict):
        raise not_an_object(body)
    if has_invalid or not _is_encodable(dumped):
        raise _invalid_value(body)
    return body


def _check_encodings(data: bytes, content_type: str, headers: Headers) -> None:
    """Refuse a compressed body, and one in another character encoding than UTF-8."""
    encoding = headers.get("content-encoding", "").strip()
    if encoding.lower() not in _PLAIN:
        raise ApiError(
            f"The body's content encoding is {shown(encoding)}, which is not supported.",
            "Send the body uncompressed, without this header.",
            param="Content-Encoding",
        )
    charset = _CHARSET.search(content_type)
    if charset and charset[1].lower() not in _CHARSETS and not data.isascii():
        raise ApiError(
            f"The body's character encoding is {shown(charset[1])}.",
            "Send UTF-8, with the header Content-Type: application/json.",
            param="Content-Type",
        )


def _parse(text: str) -> tuple[Any, bool]:
    """The value of a text, and whether it contains one that has no single meaning."""
    invalid: list[_InvalidNumber | _RepeatedKey] = []

    def refuse(problem: str) -> _InvalidNumber:
        number = _InvalidNumber("nan")
        number.problem = problem
        invalid.append(number)
        return number

    def to_integer(digits: str) -> float:
        if len(digits) > MAX_DIGITS:
            return refuse(f"can't be an integer of {len(digits):,} digits")
        return int(digits)

    def to_number(digits: str) -> float:
        number = float(digits)
        return number if math.isfinite(number) else refuse(f"can't be {digits[:MAX_DIGITS]}")

    def to_constant(name: str) -> float:
        return refuse(f"can't be {name}, which is not JSON")

    def to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) == len(pairs):
            return fields
        repeated = _RepeatedKey(fields)
        counts = Counter(name for name, _ in pairs)
        repeated.key = next(name for name, count in counts.items() if count > 1)
        invalid.append(repeated)
        return repeated

    try:
        value = json.loads(
            text,
            object_pairs_hook=to_object,
            parse_int=to_integer,
            parse_float=to_number,
            parse_constant=to_constant,
        )
    except json.JSONDecodeError as error:
        raise _invalid(
            f"The body is not JSON: {error.msg.removesuffix('.')}, at character {error.pos}."
        ) from None
    return value, bool(invalid)


class _InvalidNumber(float):
    """Stands for a number that JSON or Python can't represent, until its field is known."""

    problem = ""


class _RepeatedKey(dict[str, Any]):
    """Stands for an object in which a key occurs twice, until its field is known."""

    key = ""


def _invalid_value(body: dict[str, Any]) -> ApiError:
    """The error for a body that contains a value without a single meaning; names its field."""
    pending: deque[tuple[str, Any]] = deque([("", body)])
    for _ in range(MAX_VISITED):
        if not pending:
            break
        path, value = pending.popleft()
        if isinstance(value, _InvalidNumber):
            problem = f"{shown_field(path)} {value.problem}."
            return ApiError(problem, "Send a finite number with fewer digits.", param=path)
        if isinstance(value, str) and not _is_encodable(value):
            return _half_a_character(path)
        if isinstance(value, list):
            pending += [(f"{path}[{index}]", one) for index, one in enumerate(value[:MAX_VISITED])]
        elif isinstance(value, dict):
            if not all(map(_is_encodable, value)):
                return _half_a_character(path or BODY)
            if isinstance(value, _RepeatedKey):
                return ApiError(
                    f"The key {shown(value.key)} occurs twice in one object of the body.",
                    "Send each key once.",
                    param=join_path(path, value.key),
                )
            pending += [(join_path(path, name), inner) for name, inner in value.items()]
    return _invalid(
        "The body contains NaN, infinity, a very long number, half a character, or a key twice."
    )


def _half_a_character(path: str) -> ApiError:
    return ApiError(
        f"{shown_field(path)} contains half a character, a lone surrogate.",
        "Send both halves: an escaped character beyond U+FFFF is a pair.",
        param=path,
    )


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _invalid(problem: str) -> ApiError:
    return ApiError(problem, SEND_OBJECT, param=BODY)

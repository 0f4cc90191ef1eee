"""Read the forms that browsers send: fields, and an uploaded file."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from trunkline.console.pages import N_
from trunkline.errors import UsageError
from trunkline.refs import shown

_MAX_FIELDS = 200
_URLENCODED = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data"


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file with the name that the browser gave it."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a form, of a repeated name the last value; and its file."""

    fields: Mapping[str, str] = field(default_factory=dict)
    file: UploadedFile | None = None


async def read_form(request: Request, body: bytes, *, files: bool) -> Form:
    """Read a complete body.

    Args:
        files: whether the form may have a file.

    Raises:
        UsageError: it is no form, or has too many fields.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _MULTIPART and files:
        return await _read_multipart(request, body)
    if kind != _URLENCODED:
        if not body:
            return Form()
        raise UsageError(
            f"The body is {shown(kind or 'of an unknown type')}.",
            f"Send {_MULTIPART if files else _URLENCODED}.",
        )
    try:
        text = body.decode()
        return Form(dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS)))
    except ValueError:
        raise _unreadable() from None


async def _read_multipart(request: Request, body: bytes) -> Form:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(
            request.headers,
            stream(),
            max_files=1,
            max_fields=_MAX_FIELDS,
        )
        data = await parser.parse()
    except (MultiPartException, KeyError, UnicodeDecodeError):
        raise _unreadable() from None
    fields: dict[str, str] = {}
    file = None
    for name, value in data.multi_items():
        if isinstance(value, UploadFile):
            file = UploadedFile(value.filename or "", await value.read())
        else:
            fields[name] = value
    await data.close()
    return Form(fields, file)


def _unreadable() -> UsageError:
    return UsageError(N_("The form can't be read."), N_("Load the page again and retry."))

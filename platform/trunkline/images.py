"""A picture as a row, a request or a command names it: where its encoded bytes are.

Nothing here decodes a picture or imports a package for it; :mod:`trunkline.data.pictures` does.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trunkline.errors import DataError, TooLargeError, reason_of

MAX_BYTES = 32 << 20
"""The largest encoded picture that is read, in bytes."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".dcm", ".dicom")
"""Suffixes of the files that are read as pictures."""

MAX_BASE64 = 4 * -(-MAX_BYTES // 3)
"""Characters of such a picture in base64."""

DATA_URL_HINT = (
    "Send 'data:image/png;base64,…' with the bytes of a picture; addresses are not fetched."
)

_LONG_BASE64 = re.compile(r"\s*[A-Za-z0-9+/_-]{64,}={0,2}\s*")
_DATA_URL = re.compile(r"data:image/[\w.+*-]{1,64};base64,", re.ASCII | re.IGNORECASE)
_SCHEME_CHARACTERS = 16

ImageInput = str | Path | bytes | Callable[[], bytes]
"""The path of a file, the encoded bytes themselves, or a function that returns them."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An encoded picture, read when it is needed.

    Attributes:
        origin: the path, the bytes, or a function that returns them.
        name: for messages; a file's name by default.
        sha256: of the encoded bytes, 64 hex digits, once it is known; then :meth:`read` checks it.

    Two are equal if their names and their digests are.
    """

    origin: ImageInput = field(repr=False, compare=False)
    name: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.origin, str):
            object.__setattr__(self, "origin", Path(self.origin))
        if not self.name:
            name = self.origin.name if isinstance(self.origin, Path) else "the picture"
            object.__setattr__(self, "name", name)

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            DataError: the file can't be read, or the function returned something else.
            TooLargeError: there are more than :data:`MAX_BYTES`.
        """
        data = self._read()
        if self.sha256 and hashlib.sha256(data).hexdigest() != self.sha256:
            raise DataError(f"{self.name} was changed while it was used.", "Start again.")
        return data

    def _read(self) -> bytes:
        data: Any
        if isinstance(self.origin, Path):
            data = _read_file(self.origin)
        else:
            data = self.origin() if callable(self.origin) else self.origin
        if not isinstance(data, bytes):
            raise DataError(
                f"{self.name} gave {type(data).__name__}, not bytes.",
                "An image is a path, bytes, or a function that returns bytes.",
            )
        if len(data) > MAX_BYTES:
            raise TooLargeError(
                f"{self.name} has more than {MAX_BYTES >> 20} MiB.", "Save it smaller."
            )
        return data

    def identified(self) -> ImageSource:
        """The same picture with its sha256; reads it, and raises as :meth:`read`."""
        if self.sha256:
            return self
        return replace(self, sha256=hashlib.sha256(self.read()).hexdigest())


def data_url(data: bytes) -> str:
    """The encoded bytes of a picture as a data URL."""
    return f"data:image/*;base64,{base64.b64encode(data).decode()}"


def is_data_url(text: str) -> bool:
    """Whether a text is meant as a picture in a data URL."""
    return text[:_SCHEME_CHARACTERS].lower().startswith("data:image/")


def may_be_picture(text: str) -> bool:
    """Whether a text may be a picture in a data URL or in base64, which no log may keep."""
    return is_data_url(text) or _LONG_BASE64.fullmatch(text) is not None


def is_address(text: str) -> bool:
    """Whether a text is the address of a page or a picture on the web."""
    return text[:_SCHEME_CHARACTERS].lower().startswith(("http://", "https://"))


def parse_picture(text: str, name: str) -> ImageSource:
    """The picture in a data URL such as ``data:image/png;base64,…``, or in plain base64.

    The type in the URL is not trusted. The size is checked before anything is decoded.

    Args:
        name: of the picture, as the start of a sentence.

    Raises:
        DataError: it is neither; addresses are never fetched.
        TooLargeError: there are more than :data:`MAX_BYTES`.
    """
    match = _DATA_URL.match(text)
    start = 0 if match is None else match.end()
    if len(text) - start > MAX_BASE64:
        raise TooLargeError(f"{name} has more than {MAX_BYTES >> 20} MiB.", "Save it smaller.")
    try:
        data = base64.b64decode(text[start:], validate=True)
    except ValueError:
        problem = "is not a picture in a data URL or base64" if match is None else (
            "has invalid base64"
        )  # fmt: skip
        raise DataError(f"{name} {problem}.", DATA_URL_HINT) from None
    return ImageSource(data, name)


def _read_file(path: Path) -> bytes:
    """At most one byte more than :data:`MAX_BYTES` of a regular file."""
    try:
        if not path.is_file():
            raise DataError(f"There is no file {str(path)!r}.", "Give the path of a picture.")
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(
            f"{path.name} can't be read: {reason_of(error)}.", "Grant permission to read it."
        ) from error

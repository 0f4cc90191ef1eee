"""How a file is to be read, where its suffix and its first bytes do not show it."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from trunkline.errors import UsageError

_DELIMITER_NAMES = {
    "tab": "\t",
    r"\t": "\t",
    "comma": ",",
    "semicolon": ";",
    "pipe": "|",
    "space": " ",
}


@dataclass(frozen=True, slots=True)
class FileOptions:
    """Options for reading a file.

    Attributes:
        encoding: a text encoding that Python knows. By default the file's byte order mark decides,
            and without one the file must be UTF-8.
        delimiter: one character, or ``tab``, ``comma``, ``semicolon``, ``pipe`` or ``space``. By
            default a comma in CSV and a tab in TSV.
        quoting: whether double quotes enclose fields. By default they do, but not where tabs
            separate the fields: there a quote is a character like any other, and a field that
            could be meant either way is refused.
    """

    encoding: str | None = None
    delimiter: str | None = None
    quoting: bool | None = None

    def __post_init__(self) -> None:
        """Resolve names.

        Raises:
            UsageError: the encoding is unknown, or the delimiter is not one character.
        """
        if self.encoding is not None:
            object.__setattr__(self, "encoding", _canonical_encoding(self.encoding))
        if self.delimiter is not None:
            object.__setattr__(self, "delimiter", _delimiter_character(self.delimiter))


def delimiter_name(delimiter: str) -> str:
    """A delimiter as it is written after ``--delimiter``: ``';'`` or ``tab``."""
    return {"\t": "tab", " ": "space"}.get(delimiter, f"'{delimiter}'")


def _canonical_encoding(encoding: str) -> str:
    try:
        b"ab".decode(encoding)
    except UnicodeError:
        pass  # the encoding exists; two bytes are no character of it
    except (LookupError, ValueError):
        raise UsageError(
            f"There is no text encoding {encoding!r}.",
            "For example utf-8, utf-16, cp1252, cp1251, gb18030, big5 or shift_jis.",
        ) from None
    name = codecs.lookup(encoding).name
    return "utf-8" if name == "utf-8-sig" else name


def _delimiter_character(delimiter: str) -> str:
    character = _DELIMITER_NAMES.get(delimiter.lower(), delimiter)
    if len(character) != 1 or character in '"\r\n\0':
        raise UsageError(
            f"{delimiter!r} is not a delimiter.",
            f"One character, or one of: {', '.join(name for name in _DELIMITER_NAMES)}.",
        )
    return character

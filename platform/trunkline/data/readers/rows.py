"""The options for reading a file, one of its rows, and the errors that name the row."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from trunkline.errors import DataError, NotFoundError, UsageError

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
        if encoding.lower() in _NO_TEXT:
            raise LookupError
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


_NO_TEXT = ("idna", "punycode", "undefined")
"""Encodings of Python that are none of a text file."""

_LISTED_COLUMNS = 20
_LISTED_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class EmbeddedPicture:
    """A picture inside a row: its encoded bytes, or the path of a file beside them.

    Attributes:
        data: the encoded bytes; None if the row has a path only.
        path: as the row has it; empty if it has none.
        read: reads the bytes again, so that they need not stay in memory.
    """

    data: bytes | None
    path: str
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class FileRow:
    """A row of a file: a record of CSV or TSV, an object of JSON, a row of Parquet.

    Attributes:
        file: the name of the file.
        number: counted from 1, without the header.
        line: the line of the file in which the row begins, counted from 1; None in Parquet.
        values: column to text; None where a row of JSON or Parquet has no value.
        nested: column to list, object or :class:`EmbeddedPicture`, of the columns that were read
            as such.
    """

    file: str
    number: int
    line: int | None
    values: Mapping[str, str | None]
    nested: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def place(self) -> str:
        """Where the row is, as the start of a sentence: ``Row 2 (line 3) of rows.csv``."""
        return row_place(self.file, self.number, self.line)

    def __getitem__(self, column: str) -> str:
        """The text of a column.

        Raises:
            NotFoundError: the file has no such column, or it was not read.
            DataError: the row has no value in it.
        """
        if column not in self.values:
            raise missing_column(self.file, column, self.values)
        text = self.values[column]
        if text is None:
            raise DataError(f"{self.place} has no value in {column!r}.", "Add it to the file.")
        return text


def embedded_picture(value: Any, read: Callable[[], Any]) -> EmbeddedPicture | None:
    """The picture of a value: bytes, or an object with ``bytes`` and ``path``; None without one.

    Args:
        read: reads the value again.
    """
    if value is None:
        return None
    if isinstance(value, bytes):
        return EmbeddedPicture(value, "", lambda: read() or b"")
    data, path = value.get("bytes"), value.get("path") or ""
    return EmbeddedPicture(data, path, lambda: (read() or {}).get("bytes") or b"")


def row_place(file: str, number: int, line: int | None) -> str:
    """``Row 2 (line 3) of rows.csv``, without the line if it is None."""
    return f"Row {number}{'' if line is None else f' (line {line})'} of {file}"


def missing_column(
    file: str, column: str, columns: Iterable[str], advice: str | None = None
) -> NotFoundError:
    """The error for a column that a file does not have; names the nearest and some others.

    Args:
        advice: a better hint than the list of the columns.
    """
    names = list(columns)
    shown = [name if len(name) <= _LISTED_CHARACTERS else f"{name[:_LISTED_CHARACTERS]}…"
             for name in names[:_LISTED_COLUMNS]]  # fmt: skip
    if len(names) > _LISTED_COLUMNS:
        shown.append(f"and {len(names) - _LISTED_COLUMNS} more")
    hint = advice or f"{file} has: {', '.join(shown)}."
    return NotFoundError.named("column", column, names, hint)


def wrong_value(place: str, column: str, kind: str, hint: str) -> DataError:
    """The error for a value that is not a text."""
    return DataError(f"{place} has {kind} in {column!r}, not a text.", hint)

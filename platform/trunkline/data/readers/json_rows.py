"""Rows of JSON lines and JSON files.

A row is an object: one a line in JSON lines; in JSON an element of one array, or one object after
another. Numbers, ``true`` and ``false`` are read as the characters that the file has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from trunkline.data.readers.rows import FileOptions, FileRow, missing_column, row_place, wrong_value
from trunkline.data.readers.text import MAX_CHARACTERS, TextReader
from trunkline.errors import DataError

_PEEKED_ROWS = 256
_CHUNK_CHARACTERS = 1 << 16
_BLANKS = " \t\r\n"
_BLANK_RUN = re.compile(r"[ \t\r\n]*")

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Constant:
    """NaN or Infinity, which Python writes and JSON does not have."""

    name: str


class JsonFile:
    """A file of JSON objects, each with its own keys.

    Args:
        by_line: whether each line must be one object.
    """

    def __init__(self, path: Path, options: FileOptions, *, by_line: bool) -> None:
        self._path = path
        self._options = options
        self._by_line = by_line

    def columns(self) -> tuple[str, ...]:
        """The keys of the first rows."""
        columns: dict[str, None] = {}
        with self._text() as text:
            for _, value in islice(self._objects(text), _PEEKED_ROWS):
                columns |= dict.fromkeys(value)
        if not columns:
            raise DataError(f"{self._path.name} has no rows.", "Write a JSON object per row.")
        return tuple(columns)

    def rows(self, columns: Sequence[str] | None, nested: Sequence[str] = ()) -> Iterator[FileRow]:
        """Stream the rows, with these columns or each with all of its own; ``nested`` as they are.

        Raises:
            NotFoundError: at the end of the file, if no row had a column.
        """
        name = self._path.name
        missing = {*(columns or ()), *nested}
        number = 0
        with self._text() as source:
            for number, (line, value) in enumerate(self._objects(source), start=1):
                values: dict[str, str | None] = {}
                for column in value if columns is None else columns:
                    text = value.get(column)
                    if not (isinstance(text, str) and text.isascii()):
                        text = _text_of(text, column, row_place(name, number, line))
                    values[column] = text
                if missing:
                    missing.difference_update(value)
                lists = {column: value.get(column) for column in nested}
                yield FileRow(name, number, line, values, lists)
        if number and missing:
            column = next(one for one in (*(columns or ()), *nested) if one in missing)
            raise missing_column(name, column, self.columns())

    def _text(self) -> TextReader:
        return TextReader.of_file(self._path, self._options.encoding)

    def _objects(self, text: TextReader) -> Iterator[tuple[int, JsonObject]]:
        return _lines(text) if self._by_line else _JsonText(text).objects()


def _text_of(value: Any, column: str, place: str) -> str | None:
    """The text of a JSON value.

    Raises:
        DataError: it is an array, an object, NaN, or has half of a surrogate pair.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        kind = "an object" if isinstance(value, dict) else "an array"
        if isinstance(value, _Constant):
            kind = value.name
        raise wrong_value(place, column, kind, "Write a JSON string, or null for no text.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place} has {value[error.start]!r} in {column!r}, which is half a character.",
                "Write it as UTF-8, or with both halves of the surrogate pair.",
            ) from None
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> JsonObject:
    """An object of JSON from its keys and values; raises ValueError if a key occurs twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:60]!r} occurs twice in an object")
            seen.add(key)
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=unique_keys, parse_int=str, parse_float=str, parse_constant=_Constant
)


def _lines(text: TextReader) -> Iterator[tuple[int, JsonObject]]:
    """The objects of JSON lines; lines of blanks are no rows."""
    for line in text:
        content = line.strip(_BLANKS)
        if not content:
            continue
        place = f"Line {text.line} of {text.name}"
        try:
            value = _DECODER.decode(content)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{place} is not JSON: {_lowered(error.msg)} at column {error.colno}.",
                "Write one object on each line; name the file .json if a row takes several.",
            ) from error
        except (ValueError, RecursionError) as error:
            raise _unusable(place, error) from error
        if not isinstance(value, dict):
            raise DataError(
                f"{place} is {_kind(value)}, not an object.",
                "Name the file .json if it holds one array of objects."
                if isinstance(value, list)
                else 'Write an object on each line, such as {"text": "…"}.',
            )
        yield text.line, value


class _JsonText:
    """The objects of a JSON file, decoded one by one from a buffer."""

    def __init__(self, text: TextReader) -> None:
        self._text = text
        self._buffer = ""
        self._position = 0
        self._line = 1

    def objects(self) -> Iterator[tuple[int, JsonObject]]:
        """The elements of the file's array, or the objects that follow one another."""
        if self._next() != "[":
            while self._next():
                yield self._object()
            return
        self._advance(1)
        is_first = True
        while (character := self._next()) != "]":
            if not is_first:
                if character != ",":
                    raise self._error("an array needs ',' between its rows and ']' at its end")
                self._advance(1)
                self._next()
            is_first = False
            yield self._object()
        self._advance(1)
        if self._next():
            raise self._error("more text follows the array")

    def _object(self) -> tuple[int, JsonObject]:
        line = self._line
        value = self._decode()
        if not isinstance(value, dict):
            raise DataError(
                f"Line {line} of {self._text.name} has {_kind(value)} where a row begins, not an "
                "object.",
                'Write the rows as one array of objects: [{"text": "…"}, …].',
            )
        return line, value

    def _next(self) -> str:
        """Skip blanks; the next character, or an empty text at the end of the file."""
        while True:
            match = _BLANK_RUN.match(self._buffer, self._position)
            assert match is not None  # it matches an empty text
            end = match.end()
            self._advance(end - self._position)
            if end < len(self._buffer):
                return self._buffer[end]
            if not self._fill():
                return ""

    def _advance(self, count: int) -> None:
        end = self._position + count
        self._line += self._buffer.count("\n", self._position, end)
        self._position = end

    def _fill(self) -> bool:
        """Read on; False at the end of the file."""
        rest = self._buffer[self._position :]
        chunk = self._text.read(max(_CHUNK_CHARACTERS, len(rest)))
        self._buffer, self._position = rest + chunk, 0
        return bool(chunk)

    def _decode(self) -> Any:
        """Decode a value; reads on while it may be incomplete."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                place = error.pos - self._position  # filling the buffer moves its beginning
                if len(self._buffer) - self._position < MAX_CHARACTERS and self._fill():
                    continue
                self._advance(place)
                raise self._error(_lowered(error.msg)) from error
            except (ValueError, RecursionError) as error:
                raise _unusable(f"Line {self._line} of {self._text.name}", error) from error
            self._advance(end - self._position)
            return value

    def _error(self, reason: str) -> DataError:
        return DataError(
            f"Line {self._line} of {self._text.name} is not JSON: {reason}.",
            "Correct the line; if each line is one object, name the file .jsonl.",
        )


def _kind(value: Any) -> str:
    """A value that is no row, for an error."""
    if isinstance(value, list):
        return "an array"
    if isinstance(value, str):
        return f"the text or number {value[:40]!r}"
    if isinstance(value, _Constant):
        return value.name
    return json.dumps(value)


def _unusable(place: str, error: ValueError | RecursionError) -> DataError:
    if isinstance(error, RecursionError):
        return DataError(f"{place} is nested too deeply.", "Write the rows as flat objects.")
    return DataError(f"{place} can't be used: {error}.", "Keep one of the values.")


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:].removesuffix(" at")

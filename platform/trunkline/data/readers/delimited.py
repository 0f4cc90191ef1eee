"""Rows of CSV and TSV files.

A row is a record with as many fields as the header. Blank lines are no rows, except in a file of
one column, where a blank line between others is a row with an empty text.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from trunkline.data.readers.rows import (
    FileOptions,
    FileRow,
    delimiter_name,
    missing_column,
    row_place,
)
from trunkline.data.readers.text import MAX_CHARACTERS, TextReader
from trunkline.errors import DataError, NotFoundError

_DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r'"?sep=([^"\r\n])"?\r?\n?', re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"?')
"""A field, or the beginning of one, that a program with quoting may have written."""
_JSON = re.compile(r'\s*(\[\s*)?\{\s*("|$)|\s*\[\s*$')
"""The first line of a file of JSON objects."""
_ENDINGS = {"\n": "LF", "\r\n": "CRLF", "\r": "CR"}
_NO_QUOTING = "add --no-quoting if quotes are characters of the text"


class DelimitedFile:
    """A CSV or TSV file.

    Args:
        delimiter: of the format; the options may name another.
    """

    def __init__(self, path: Path, options: FileOptions, delimiter: str) -> None:
        self._path = path
        self._options = options
        self._default = delimiter

    def columns(self) -> tuple[str, ...]:
        """The names in the header."""
        with self._text() as text:
            return _Records(text, self._options, self._default).columns

    def rows(self, columns: Sequence[str] | None) -> Iterator[FileRow]:
        """Stream the rows, with these columns or all."""
        with self._text() as text:
            records = _Records(text, self._options, self._default)
            positions = records.positions(columns)
            for number, (line, fields) in enumerate(records.rows(), start=1):
                records.check_row(number, line, fields)
                values: dict[str, str | None] = {
                    name: fields[position] for name, position in positions.items()
                }
                yield FileRow(self._path.name, number, line, values)

    def _text(self) -> TextReader:
        return TextReader.of_file(self._path, self._options.encoding, newline="")


class _Records:
    """The records of an open file, each with the line in which it begins.

    Reads the header at once.

    Attributes:
        columns: the names of the columns; delimiters at the end of the header name none.

    Raises:
        DataError: the file has no header, or one that another delimiter must have written.
    """

    def __init__(self, text: TextReader, options: FileOptions, delimiter: str) -> None:
        self._text = text
        self._file = text.name
        self._first: str | None = text.readline()
        self._lines: list[str] = []
        self._ending: tuple[str, int] | None = None
        self._is_chosen = options.delimiter is not None
        self._delimiter = options.delimiter or delimiter
        if not self._is_chosen and _JSON.match(self._first or ""):
            raise DataError(
                f"{self._file} holds JSON, not a table.",
                "Name it .jsonl if each line is one object, else .json.",
            )
        separator = _SEPARATOR_LINE.fullmatch(self._first or "")
        if separator is not None:  # a line for Excel
            self._delimiter = options.delimiter or separator[1]
            self._is_chosen = True
            self._first = None
        self._is_ambiguous = options.quoting is None and self._delimiter == "\t"
        self._is_quoted = options.quoting is not False and not self._is_ambiguous
        csv.field_size_limit(MAX_CHARACTERS)
        self._reader = csv.reader(
            self._raw_lines(),
            delimiter=self._delimiter,
            quoting=csv.QUOTE_MINIMAL if self._is_quoted else csv.QUOTE_NONE,
            strict=True,
        )
        self._header = self._read_header()
        named = max(index for index, name in enumerate(self._header) if name) + 1
        self.columns = tuple(self._header[:named])

    def positions(self, columns: Sequence[str] | None) -> dict[str, int]:
        """The index of each column in a record.

        Raises:
            NotFoundError: the header has no such column.
            DataError: it has two of that name.
        """
        names = self.columns
        positions = {}
        for column in dict.fromkeys(names if columns is None else columns):
            places = [index for index, name in enumerate(names) if name == column]
            if not places:
                raise self._missing(column)
            if len(places) > 1:
                raise DataError(
                    f"The header of {self._file} names two columns {column!r}, fields "
                    f"{places[0] + 1} and {places[1] + 1}.",
                    "Rename one of them.",
                )
            positions[column] = places[0]
        return positions

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The records after the header; blank lines of one column are empty fields."""
        is_single = len(self._header) == 1
        blank, blanks = 0, 0
        for line, fields in self._records():
            if fields:
                yield from ((blank + index, [""]) for index in range(blanks))
                yield line, fields
                blanks = 0
            elif is_single:
                blank = blank if blanks else line
                blanks += 1

    def check_row(self, number: int, line: int, fields: list[str]) -> None:
        """Refuse a row that does not fit the header.

        Raises:
            DataError: it has more or fewer fields, or a value without a column.
        """
        if len(fields) != len(self._header):
            place = row_place(self._file, number, line)
            count = f"{len(fields)} field{'s' if len(fields) != 1 else ''}"
            raise DataError(
                f"{place} has {count}, the header has {len(self._header)}.",
                self._count_hint(fields),
            )
        for index in range(len(self.columns), len(fields)):
            if fields[index]:
                place = row_place(self._file, number, line)
                raise DataError(
                    f"{place} has a value in field {index + 1}, which has no name in the header.",
                    f"Name the column, or quote fields that hold a {self._name}.",
                )

    @property
    def _name(self) -> str:
        return delimiter_name(self._delimiter)

    def _read_header(self) -> list[str]:
        header = next((fields for _, fields in self._records() if fields), None)
        if header is None:
            raise DataError(f"{self._file} is empty.", "Its first line must name the columns.")
        if not any(header):
            raise DataError(
                f"The header of {self._file} names no column.", "Write names into its first line."
            )
        if len(header) == 1 and not self._is_chosen:
            other = self._likely_delimiter(header[0])
            if other is not None:
                raise DataError(
                    f"The header of {self._file} has one column, {header[0][:60]!r}.",
                    f"If {delimiter_name(other)} separates the columns, add --delimiter "
                    f"{delimiter_name(other)}; if not, --delimiter {self._name}.",
                )
        return header

    def _raw_lines(self) -> Iterator[str]:
        if self._first:
            self._lines.append(self._first)
            yield self._first
        for line in self._text:
            self._lines.append(line)
            yield line

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Records and blank lines, which are empty lists."""
        while True:
            self._lines.clear()
            start = self._text.line + 1
            if self._first is not None:
                start = self._text.line
            try:
                fields = next(self._reader, None)
            except csv.Error as error:
                raise self._malformed(error, start) from error
            if fields is None:
                return
            self._first = None
            self._check_ending(start)
            self._check_quotes(start, fields)
            yield start, fields

    def _check_ending(self, start: int) -> None:
        """Refuse a second kind of line ending: which of the two ends a row would be a guess."""
        last = self._lines[-1]
        ending = "\r\n" if last.endswith("\r\n") else last[-1]
        if ending not in _ENDINGS:
            return  # the end of the file
        expected, line = self._ending = self._ending or (ending, self._text.line)
        if ending != expected:
            raise DataError(
                f"Line {self._text.line} of {self._file} ends with {_ENDINGS[ending]}, but line "
                f"{line} with {_ENDINGS[expected]}.",
                "Save the file with one kind of line ending; quote fields that hold a line break.",
            )

    def _check_quotes(self, start: int, fields: list[str]) -> None:
        """Refuse quotes that may or may not be meant to enclose a field."""
        if self._is_ambiguous:
            for field in fields:
                if field[:1] == '"' and _QUOTED.fullmatch(field):
                    raise DataError(
                        f"Line {start} of {self._file} has a field that begins with a quote, "
                        f"{field[:40]!r}.",
                        "Add --no-quoting if quotes are characters of the text, or --quoting if "
                        "they enclose fields.",
                    )
        elif self._is_quoted:
            for field, following in pairwise(fields):
                if field.endswith("\\") and following.count('"') % 2 and following.endswith('"'):
                    raise DataError(
                        f"Line {start} of {self._file} has a quote after a backslash, which may be "
                        "meant as part of the text.",
                        f'Write "" for a quote in a quoted field, or {_NO_QUOTING}.',
                    )
            for field in fields:
                if field[:1] in (" ", "\t") and field.lstrip(" \t")[:1] == '"':
                    self._check_blank_before_quote(start, field)

    def _check_blank_before_quote(self, start: int, field: str) -> None:
        quoted = '"{}"'.format(field.replace('"', '""'))
        if quoted not in "".join(self._lines):
            raise DataError(
                f"Line {start} of {self._file} has a blank before the quote of {field[:40]!r}.",
                f"Remove the blank, or {_NO_QUOTING}.",
            )

    def _malformed(self, error: csv.Error, start: int) -> DataError:
        """The error of Python's csv module in our words."""
        reason = str(error)
        if "field larger" in reason:
            return DataError(
                f"The row that begins in line {start} of {self._file} has a field of more than "
                f"{MAX_CHARACTERS:,} characters.",
                f"Close its quote, or {_NO_QUOTING}.",
            )
        if "unexpected end of data" in reason:
            return DataError(
                f"A quote in the row that begins in line {start} of {self._file} is not closed.",
                f"Close it, or {_NO_QUOTING}.",
            )
        if "expected after" in reason:
            other = self._delimiter_after_quote()
            if other is not None:
                return DataError(
                    f"Line {self._text.line} of {self._file} has a {other} after a closing quote.",
                    f"Add --delimiter {other} if it separates the columns.",
                )
            return DataError(
                f"Line {self._text.line} of {self._file} has text after a closing quote.",
                f"Write quotes in a quoted field twice, or {_NO_QUOTING}.",
            )
        return DataError(f"Line {self._text.line} of {self._file} is not CSV: {reason}.", None)

    def _missing(self, column: str) -> NotFoundError:
        advice = None
        for other in _DELIMITERS:
            pieces = [piece.strip('"') for name in self._header for piece in name.split(other)]
            if other != self._delimiter and column in pieces:
                advice = f"Add --delimiter {delimiter_name(other)}."
        return missing_column(self._file, column, self.columns, advice)

    def _likely_delimiter(self, header: str) -> str | None:
        """Another delimiter in a header of one column."""
        counts = {other: header.count(other) for other in _DELIMITERS if other != self._delimiter}
        likely = max(counts, key=lambda other: counts[other])
        return likely if counts[likely] else None

    def _delimiter_after_quote(self) -> str | None:
        """Another delimiter behind a closing quote of the last line, as an option names it."""
        if self._is_chosen:
            return None
        pairs = {other: f'"{other}' for other in _DELIMITERS if other != self._delimiter}
        line = self._lines[-1]
        return next((delimiter_name(other) for other in pairs if pairs[other] in line), None)

    def _count_hint(self, fields: list[str]) -> str:
        header = len(self._header)
        quote = f"quote fields that hold a {self._name}"
        if not self._is_quoted:
            quote += " and add --quoting"
        if len(fields) < header:
            return f"Write a {self._name} for each field, also for empty ones."
        if not any(fields[header:]):
            return f"Write a {self._name} at the end of the header too, or {quote}."
        return f"{quote[:1].upper()}{quote[1:]}."

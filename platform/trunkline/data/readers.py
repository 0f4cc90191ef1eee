"""Read a column of texts from a user's file: CSV, TSV, JSON lines, JSON or Parquet.

A file is read twice, once to check it before anything is computed and once for the texts. Rows
are streamed, so memory does not grow with the file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from trunkline.errors import DataError, NotFoundError, UsageError, one_line

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}
BATCH_ROWS = 256

_CHUNK_CHARACTERS = 1 << 16
_MAX_FIELD_CHARACTERS = 1 << 30
_MAX_REASON = 200


@dataclass(frozen=True, slots=True)
class TextRow:
    """The text of a row and its number in the file, counted from 1 without the header."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class TextFile:
    """One column of a file that was checked by :func:`open_texts`.

    Attributes:
        path: the file.
        column: the column that holds the texts.
        rows: how many rows have a text.
        empty: how many do not.
    """

    path: Path
    column: str
    rows: int
    empty: int

    def batches(self) -> Iterator[list[TextRow]]:
        """The rows that have a text, at most :data:`BATCH_ROWS` at a time."""
        texts = (row for row in _texts(self.path, self.column) if row.text.strip())
        while batch := list(islice(texts, BATCH_ROWS)):
            yield batch


def open_texts(path: Path, column: str, *, skip_empty: bool) -> TextFile:
    """Check every row of a file and count the texts.

    Args:
        path: CSV, TSV, JSON lines, JSON or Parquet, by its suffix.
        column: the column that holds the texts.
        skip_empty: count rows without a text instead of refusing the file.

    Raises:
        NotFoundError: there is no such file or column; names the nearest column.
        UsageError: the suffix is of no known format.
        DataError: the file can't be read, has no rows, or a row has no text.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {str(path)!r}.", "Give the path of the rows.")
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path.name!r} has no known suffix.", f"One of: {', '.join(FORMATS)}.")
    columns = _columns(path)
    if column not in columns:
        raise NotFoundError.named(
            "column", column, columns, f"{path.name} has: {', '.join(columns)}."
        )
    rows = empty = 0
    for row in _texts(path, column):
        if row.text.strip():
            rows += 1
        elif skip_empty:
            empty += 1
        else:
            raise DataError(
                f"Row {row.number} of {path.name} has no text in {column!r}.",
                "Add --skip-empty to leave such rows out.",
            )
    if not rows:
        raise DataError(f"{path.name} has no row with a text in {column!r}.", None)
    return TextFile(path, column, rows, empty)


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[Mapping[str, Any]]:
    """Stream the rows of a file as mappings from column to value.

    The values of a CSV are strings, exactly as they are written: ``NA`` and ``007`` stay as they
    are. Those of JSON and Parquet have their own types.

    Args:
        path: a file with one of the suffixes of :data:`FORMATS`.
        columns: read only these, where the format can skip the others.

    Raises:
        DataError: the file can't be read.
    """
    suffix = path.suffix.lower()
    try:
        if FORMATS[suffix] == "csv":
            yield from _csv_rows(path, "\t" if suffix == ".tsv" else ",")
        elif FORMATS[suffix] == "json":
            yield from _json_rows(path)
        else:
            yield from _parquet_rows(path, columns)
    except Exception as error:  # each format raises errors of its own
        reason = " ".join(one_line(error).split())
        raise DataError(
            f"{path.name} can't be read as {FORMATS[suffix]}: {reason[:_MAX_REASON]}.",
            "Check the file's suffix and its first rows.",
        ) from error


def _columns(path: Path) -> list[str]:
    """The columns of the first rows; JSON rows may each name others."""
    columns: dict[str, None] = {}
    for row in islice(read_rows(path), BATCH_ROWS):
        columns |= dict.fromkeys(row)
    if not columns:
        raise DataError(f"{path.name} has no rows.", "The first line of a CSV names the columns.")
    return list(columns)


def _texts(path: Path, column: str) -> Iterator[TextRow]:
    for number, row in enumerate(read_rows(path, [column]), start=1):
        value = row.get(column)
        yield TextRow(number, "" if value is None else str(value))


def _csv_rows(path: Path, delimiter: str) -> Iterator[dict[str, str]]:
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        header = next((row for row in reader if row), [])
        for row in reader:
            if not row:  # a blank line
                continue
            if len(row) > len(header):
                raise ValueError(
                    f"line {reader.line_num} has {len(row)} fields, the header has {len(header)}"
                )
            yield dict(zip(header, row, strict=False))


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array, or one object after another with white space between them."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig") as stream:
        buffer, in_array = _next_text("", stream), False
        if buffer.startswith("["):
            buffer, in_array = _next_text(buffer[1:], stream), True
        while buffer and not (in_array and buffer.startswith("]")):
            value, buffer = _decode(decoder, buffer, stream)
            if not isinstance(value, dict):
                raise ValueError(f"a row is {value!r:.40}, not an object")
            yield value
            buffer = _next_text(buffer, stream)
            if in_array and buffer.startswith(","):
                buffer = _next_text(buffer[1:], stream)
            elif in_array and not buffer.startswith("]"):
                raise ValueError("the array of rows does not end with ']'")
        if in_array and _next_text(buffer[1:], stream):
            raise ValueError("more text follows the array of rows")


def _next_text(buffer: str, stream: IO[str]) -> str:
    """The buffer without leading white space, refilled; empty at the end of the file."""
    while not (buffer := buffer.lstrip()):
        chunk = stream.read(_CHUNK_CHARACTERS)
        if not chunk:
            return ""
        buffer = chunk
    return buffer


def _decode(decoder: json.JSONDecoder, buffer: str, stream: IO[str]) -> tuple[Any, str]:
    """Decode one value and return the remaining text; reads on while the value is incomplete."""
    while True:
        try:
            value, end = decoder.raw_decode(buffer)
        except ValueError:
            chunk = stream.read(max(_CHUNK_CHARACTERS, len(buffer)))
            if not chunk:
                raise
            buffer += chunk
            continue
        return value, buffer[end:]


def _parquet_rows(path: Path, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            yield from batch.to_pylist()

"""The texts of a user's file, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.errors import DataError, NotFoundError, UsageError

READERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}
BATCH = 256


@dataclass(frozen=True, slots=True)
class TextRow:
    """A row's text and its number in the file, from 1, without the header."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class TextFile:
    """One column of a file; ``rows`` counts the rows with a text, ``empty`` the others."""

    path: Path
    column: str
    rows: int
    empty: int

    def batches(self) -> Iterator[list[TextRow]]:
        """The rows with a text, at most :data:`BATCH` at a time."""
        batch: list[TextRow] = []
        for row in _rows(self.path, self.column):
            if row.text.strip():
                batch.append(row)
            if len(batch) == BATCH:
                yield batch
                batch = []
        if batch:
            yield batch


def open_texts(path: Path, column: str, *, skip_empty: bool) -> TextFile:
    """Check a file before anything is computed.

    Args:
        path: CSV, TSV, JSON lines, JSON or Parquet, by its suffix.
        column: the column of the texts.
        skip_empty: skip rows without a text instead of refusing the file.

    Raises:
        NotFoundError: the file or the column does not exist; suggests the closest column.
        UsageError: the suffix is unknown.
        DataError: the file can't be read, has no rows, or a row has no text.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {str(path)!r}.", "Give the path of a file of texts.")
    if path.suffix.lower() not in READERS:
        raise UsageError(
            f"The format of {path.name!r} is unknown.", f"Use one of: {', '.join(READERS)}."
        )
    columns = _columns(path)
    if column not in columns:
        hint = f"{path.name} has: {', '.join(columns)}."
        raise NotFoundError.named("column", column, columns, hint)
    rows = empty = 0
    for row in _rows(path, column):
        if row.text.strip():
            rows += 1
        elif skip_empty:
            empty += 1
        else:
            raise DataError(
                f"Row {row.number} of {path.name} has no text in {column!r}.",
                "Add --skip-empty to skip such rows.",
            )
    if not rows:
        raise DataError(f"{path.name} has no row with a text in {column!r}.", None)
    return TextFile(path, column, rows, empty)


def _columns(path: Path) -> list[str]:
    try:
        for row in _stream(path):
            return list(row)
    except Exception as error:
        raise _unreadable(path, error) from error
    raise DataError(f"{path.name} has no rows.", "The first line of a CSV names the columns.")


def _rows(path: Path, column: str) -> Iterator[TextRow]:
    try:
        for number, row in enumerate(_stream(path, column), start=1):
            value = row[column]
            yield TextRow(number, "" if value is None else str(value))
    except Exception as error:
        raise _unreadable(path, error) from error


def _stream(path: Path, column: str | None = None) -> Any:
    """The rows, one by one; values of a CSV stay text, also ``NA`` and ``007``."""
    from datasets import Features, Value, load_dataset

    reader = READERS[path.suffix.lower()]
    settings: dict[str, Any] = {}
    if reader == "csv":
        settings = {"sep": "\t" if path.suffix.lower() == ".tsv" else ",", "keep_default_na": False}
        if column is not None:
            settings |= {"usecols": [column], "features": Features({column: Value("string")})}
    return load_dataset(
        reader, data_files=str(path.resolve()), split="train", streaming=True, **settings
    )


def _unreadable(path: Path, error: Exception) -> DataError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = " ".join(str(cause).split()) or type(cause).__name__
    return DataError(
        f"{path.name} can't be read as {READERS[path.suffix.lower()]}: {reason[:200]}.",
        "Check the file's suffix and its first rows.",
    )

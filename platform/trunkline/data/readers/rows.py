"""One row of a file, and the errors that name it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trunkline.errors import DataError, NotFoundError

_LISTED_COLUMNS = 20
_LISTED_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class FileRow:
    """A row of a file: a record of CSV or TSV, an object of JSON, a row of Parquet.

    Attributes:
        file: the name of the file.
        number: counted from 1, without the header.
        line: the line of the file in which the row begins, counted from 1; None in Parquet.
        values: column to text; None where a row of JSON or Parquet has no value.
    """

    file: str
    number: int
    line: int | None
    values: Mapping[str, str | None]

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

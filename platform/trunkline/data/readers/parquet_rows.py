"""Rows of Parquet files. The columns that are read hold strings, lists of objects, or pictures.

A picture is bytes, or the object of bytes and path that the library ``datasets`` writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from trunkline.data.readers.rows import (
    FileRow,
    embedded_picture,
    missing_column,
    row_place,
    wrong_value,
)
from trunkline.data.readers.text import other_contents
from trunkline.errors import DataError, one_line

_BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 20
_MAX_REASON = 200
_HEAD_BYTES = 64


class ParquetFile:
    """A Parquet file; pyarrow is imported when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def columns(self) -> tuple[str, ...]:
        """The names of its columns."""
        with self._open() as file:
            return tuple(file.schema_arrow.names)

    def pictures(self) -> tuple[str, ...]:
        """The columns that hold pictures themselves."""
        with self._open() as file:
            schema = file.schema_arrow
            return tuple(name for name in schema.names if holds_pictures(schema.field(name).type))

    def rows(self, columns: Sequence[str] | None, nested: Sequence[str] = ()) -> Iterator[FileRow]:
        """Stream the rows by row group, with these columns or all; ``nested`` as they are."""
        from pyarrow import ArrowException

        name = self._path.name
        with self._open() as file:
            names = list(file.schema_arrow.names)
            texts_of = list(dict.fromkeys(names if columns is None else columns))
            wanted = [*texts_of, *nested]
            for column in wanted:
                self._check_column(file.schema_arrow, column, nested=column in nested)
            pictured = [one for one in nested if holds_pictures(file.schema_arrow.field(one).type)]
            number = 0
            try:
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                    texts = {
                        column: self._texts(batch.column(column), column, number)
                        for column in wanted
                    }
                    for index in range(batch.num_rows):
                        number += 1
                        values = {column: texts[column][index] for column in texts_of}
                        lists = {column: texts[column][index] for column in nested}
                        for column in pictured:
                            again = partial(self._value, column, number)
                            lists[column] = embedded_picture(lists[column], again)
                        yield FileRow(name, number, None, values, lists)
            except (ArrowException, OSError) as error:
                raise self._unreadable(error) from error

    def _value(self, column: str, number: int) -> Any:
        """One value again; the row group that it is in stays in memory until others are read."""
        from pyarrow import ArrowException

        try:
            status = self._path.stat()
            state = (status.st_size, status.st_mtime_ns)
            with self._open() as file:
                sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            group, place = 0, number - 1
            while group < len(sizes) and place >= sizes[group]:
                place -= sizes[group]
                group += 1
            return _row_group(self._path, state, column, group)[place].as_py()
        except (ArrowException, OSError, IndexError) as error:
            raise self._unreadable(error) from error

    def _open(self) -> Any:
        from pyarrow import ArrowException, parquet

        try:
            return parquet.ParquetFile(self._path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        except (ArrowException, OSError) as error:
            raise self._unreadable(error) from error

    def _check_column(self, schema: Any, column: str, *, nested: bool) -> None:
        places = schema.get_all_field_indices(column)
        if not places:
            raise missing_column(self._path.name, column, schema.names)
        if len(places) > 1:
            raise DataError(
                f"{self._path.name} has {len(places)} columns {column!r}.", "Rename one of them."
            )
        kind = schema.field(places[0]).type
        if not nested and not _is_text(kind):
            raise wrong_value(
                row_place(self._path.name, 1, None),
                column,
                f"{kind}",
                "Write the column as strings: how its values should read is yours to choose.",
            )

    def _texts(self, values: Any, column: str, before: int) -> list[Any]:
        """The texts, or lists, of a batch.

        Raises:
            DataError: a value is not UTF-8; names its row.
        """
        try:
            return values.to_pylist()
        except UnicodeDecodeError:
            for number, value in enumerate(values, start=before + 1):
                try:
                    value.as_py()
                except UnicodeDecodeError as error:
                    place = row_place(self._path.name, number, None)
                    raise DataError(
                        f"{place} has bytes in {column!r} that are not UTF-8.",
                        "Decode them before you write the file.",
                    ) from error
            raise

    def _unreadable(self, error: Exception) -> DataError:
        with suppress(OSError), self._path.open("rb") as stream:
            other = other_contents(stream.read(_HEAD_BYTES))
            if other is not None and other[0] != "Parquet data":
                return DataError(f"{self._path.name} holds {other[0]}, not Parquet.", other[1])
        reason = " ".join(one_line(error).split())[:_MAX_REASON]
        return DataError(
            f"{self._path.name} can't be read as Parquet: {reason}.",
            "Check that it is complete and a Parquet file.",
        )


@lru_cache(maxsize=2)
def _row_group(path: Path, state: tuple[int, ...], column: str, group: int) -> Any:
    """The values of a column in one row group; ``state`` changes with the file."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(column)


def holds_pictures(kind: Any) -> bool:
    """Whether values of a type of Arrow are bytes, or objects of ``bytes`` and ``path``."""
    from pyarrow import types

    if types.is_struct(kind):
        names = {kind.field(index).name for index in range(kind.num_fields)}
        return names == {"bytes", "path"} and holds_pictures(kind.field("bytes").type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_text(kind: Any) -> bool:
    """Whether values of a type are texts or missing."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_null(kind)
    )

"""Open a file by its suffix, or a folder, stream its rows, and check a column of texts.

A file is read twice, once to check it before anything is computed and once for the texts. Rows
are streamed, so memory does not grow with the file.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

from trunkline.data.readers.conll import ConllFile
from trunkline.data.readers.dataset_rows import DatasetRows, is_dataset, is_hub
from trunkline.data.readers.delimited import DelimitedFile
from trunkline.data.readers.folders import has_parts
from trunkline.data.readers.image_folder import ImageFolder, holds_pictures
from trunkline.data.readers.json_rows import JsonFile
from trunkline.data.readers.parquet_rows import ParquetFile
from trunkline.data.readers.rows import FileOptions, FileRow, missing_column
from trunkline.data.readers.text_folder import TextFolder
from trunkline.errors import DataError, NotFoundError, UsageError
from trunkline.files import sha256_file
from trunkline.labels import is_blank

FORMATS = {
    ".csv": "CSV",
    ".tsv": "TSV",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON",
    ".parquet": "Parquet",
    ".conll": "CoNLL",
    ".iob2": "CoNLL",
    ".bio": "CoNLL",
}
_WITH_LISTS = ("JSON lines", "JSON", "Parquet")
BATCH_ROWS = 256

_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz")
_WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")


def holds_split(path: Path) -> bool:
    """Whether a folder of texts or pictures has folders for the parts of a split.

    Raises:
        DataError: some of its folders are named like parts, and others are not; or as
            :func:`read_rows`.
    """
    kind = ImageFolder if holds_pictures(path) else TextFolder
    return has_parts(path, kind(path, FileOptions()).files())


class RowFile(Protocol):
    """A file of one format, or a folder."""

    def columns(self) -> tuple[str, ...]:
        """The names of its columns; in JSON, those of the first rows."""

    def rows(self, columns: Sequence[str] | None) -> Iterator[FileRow]:
        """Stream the rows, with these columns or all."""


@dataclass(frozen=True, slots=True)
class TextRow:
    """The text of a row.

    Attributes:
        number: of the row, counted from 1 without the header.
        place: where it is, as the start of a sentence.
    """

    number: int
    text: str
    place: str


@dataclass(frozen=True, slots=True)
class TextFile:
    """One column of a file that was checked by :func:`open_texts`.

    Attributes:
        path: the file.
        column: the column that holds the texts.
        rows: how many rows have a text.
        empty: how many do not.
        options: how the file is read.
    """

    path: Path
    column: str
    rows: int
    empty: int
    options: FileOptions
    _state: tuple[int, ...] = field(repr=False)

    def batches(self) -> Iterator[list[TextRow]]:
        """The rows that have a text, at most :data:`BATCH_ROWS` at a time.

        Raises:
            DataError: the file was changed after it was checked.
        """
        rows = _texts(self.path, self.column, self.options)
        texts = (row for row in rows if not is_blank(row.text))
        while batch := list(islice(texts, BATCH_ROWS)):
            self._check_unchanged()
            yield batch
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        if _state(self.path) != self._state:
            raise DataError(
                f"{self.path.name} was changed while it was read.", "Run the command again."
            )


def read_rows(
    path: Path,
    columns: Sequence[str] | None = None,
    options: FileOptions | None = None,
    nested: Sequence[str] = (),
) -> Iterator[FileRow]:
    """Stream the rows of a file, with texts as they are written: ``NA`` and ``007`` stay so.

    Args:
        path: a file with one of the suffixes of :data:`FORMATS`, a folder of texts or pictures, or
            what :class:`~trunkline.data.readers.dataset_rows.DatasetRows` reads.
        columns: read these; the others may hold anything. By default all.
        options: encoding, delimiter and quoting.
        nested: further columns, which hold lists, objects or pictures.

    Raises:
        NotFoundError: there is no such file or column. In JSON, where rows have keys of their own,
            a missing column is raised after the last row.
        UsageError: the suffix is of no known format, or an option does not apply to it.
        DataError: the file can't be read, or can be read in two ways; names the row or the line.
    """
    file = _open(path, options or FileOptions())
    if not nested:
        return file.rows(columns)
    if not isinstance(file, JsonFile | ParquetFile | DatasetRows):
        raise UsageError(
            f"{path.name} can't hold lists, such as the messages of a conversation.",
            "They are read from JSON lines, JSON, Parquet and data sets.",
        )
    return file.rows(columns, nested)


def holds_lists(path: Path) -> bool:
    """Whether the columns of a file may hold lists, by its suffix."""
    return is_hub(path) or is_dataset(path) or FORMATS.get(path.suffix.lower()) in _WITH_LISTS


def embeds_pictures(path: Path, column: str) -> bool:
    """Whether a column of Parquet or of a data set holds pictures themselves, not their paths.

    Raises:
        NotFoundError, UsageError, DataError: as :func:`read_rows`.
    """
    if not (is_dataset(path) or FORMATS.get(path.suffix.lower()) == "Parquet"):
        return False
    file = _open(path, FileOptions())
    return isinstance(file, ParquetFile | DatasetRows) and column in file.pictures()


def read_columns(path: Path, options: FileOptions | None = None) -> tuple[str, ...]:
    """The names of a file's columns, read from its beginning.

    Raises:
        NotFoundError, UsageError, DataError: as :func:`read_rows`.
    """
    return _open(path, options or FileOptions()).columns()


def digest_of(path: Path) -> str:
    """sha256 of a file; of a folder or a data set, that of its files' digests.

    Raises:
        NotFoundError, UsageError, DataError: as :func:`read_rows`.
    """
    if is_dataset(path):
        return DatasetRows(path).digest()
    if not path.is_dir():
        return sha256_file(path)
    kind = ImageFolder if holds_pictures(path) else TextFolder
    folder = kind(path, FileOptions())
    lines = [f"{sha256_file(path / file)}  {file.as_posix()}\n" for file in folder.files()]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def open_texts(
    path: Path, column: str, *, skip_empty: bool, options: FileOptions | None = None
) -> TextFile:
    """Check every row of a file and count the texts.

    Args:
        path: CSV, TSV, JSON lines, JSON or Parquet, by its suffix.
        column: the column that holds the texts.
        skip_empty: count rows without a text instead of refusing the file.
        options: encoding, delimiter and quoting.

    Raises:
        NotFoundError: there is no such file or column; names the nearest column.
        UsageError: the suffix is of no known format, or an option does not apply to it.
        DataError: the file can't be read, has no rows, or a row has no text.
    """
    options = options or FileOptions()
    if path.is_dir() or is_hub(path):
        kind = "a folder" if path.is_dir() else "a data set"
        raise UsageError(f"{str(path)!r} is {kind}.", "Give the path of one file.")
    file = _open(path, options)
    state = _state(path)
    rows = empty = 0
    for row in file.rows([column]):
        if not is_blank(row.values[column] or ""):
            rows += 1
        elif skip_empty:
            empty += 1
        else:
            if column not in (columns := file.columns()):
                raise missing_column(path.name, column, columns)
            raise DataError(
                f"{row.place} has no text in {column!r}.",
                "Add --skip-empty to leave such rows out.",
            )
    if not rows:
        reason = f"no row with a text in {column!r}" if empty else "no rows"
        raise DataError(f"{path.name} has {reason}.", "Add rows to the file.")
    return TextFile(path, column, rows, empty, options, state)


def _texts(path: Path, column: str, options: FileOptions) -> Iterator[TextRow]:
    for row in _open(path, options).rows([column]):
        yield TextRow(row.number, row.values[column] or "", row.place)


def _open(path: Path, options: FileOptions) -> RowFile:
    if is_dataset(path):
        if options != FileOptions():
            raise UsageError(
                f"--encoding, --delimiter and --quoting apply to text files, and {path.name} is a "
                "data set.",
                "Leave them out.",
            )
        return DatasetRows(path)
    if path.is_dir():
        if holds_pictures(path):
            return ImageFolder(path, options)
        if (options.delimiter, options.quoting) != (None, None):
            raise UsageError(
                "--delimiter and --quoting apply to CSV and TSV.", "Leave them out for a folder."
            )
        return TextFolder(path, options)
    _check_file(path)
    suffix = path.suffix.lower()
    kind = FORMATS.get(suffix)
    if kind is None:
        raise _unknown_suffix(path)
    if kind in ("CSV", "TSV"):
        return DelimitedFile(path, options, "\t" if kind == "TSV" else ",")
    if (options.delimiter, options.quoting) != (None, None):
        option = "--delimiter" if options.delimiter is not None else "--quoting"
        raise UsageError(
            f"{option} applies to CSV and TSV, and {path.name} is {kind}.", f"Leave out {option}."
        )
    if kind == "CoNLL":
        return ConllFile(path, options)
    if kind != "Parquet":
        return JsonFile(path, options, by_line=kind == "JSON lines")
    if options.encoding is not None:
        raise UsageError(
            f"--encoding applies to text files, and {path.name} is Parquet.",
            "Leave out --encoding.",
        )
    return ParquetFile(path)


def _check_file(path: Path) -> None:
    if path.is_file():
        return
    if str(path) == "-" or path.exists():
        raise UsageError(
            f"{str(path)!r} is not a regular file, and the rows are read twice.",
            "Save them in a file, and name that.",
        )
    raise NotFoundError(f"There is no file {str(path)!r}.", "Give the path of the rows.")


def _unknown_suffix(path: Path) -> UsageError:
    suffix = path.suffix.lower()
    if suffix in _PACKED:
        return UsageError(
            f"{path.name!r} is compressed, which is not read.",
            "Unpack it first, and name the file that was in it.",
        )
    if suffix in _WORKBOOKS:
        return UsageError(
            f"{path.name!r} is a workbook, which is not read.", "Save the sheet as CSV UTF-8."
        )
    return UsageError(
        f"{path.name!r} has no known suffix.",
        f"Rename it to end in one of: {', '.join(FORMATS)}.",
    )


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced; of a folder, when files come or go."""
    status = os.stat(path)
    return (status.st_ino, status.st_size, status.st_mtime_ns, stat.S_IFMT(status.st_mode))

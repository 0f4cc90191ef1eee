"""A folder of text files: each file is a row, and the folders above it are its label and split.

``reviews/good/1.txt`` has the label ``good``; ``reviews/train/good/1.txt`` also a split. All files
lie at one depth, so that no file is read in two ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from trunkline.data.readers.folders import (
    SPLIT_DEPTH,
    check_labels,
    row_files,
    unreadable_folder,
)
from trunkline.data.readers.rows import FileOptions, FileRow, missing_column
from trunkline.data.readers.text import TextReader
from trunkline.errors import DataError

_COLUMNS = ("text", "file", "label", "split")


class TextFolder:
    """The rows of a folder, in the order of their paths.

    Its columns are ``text``, ``file`` (the path in the folder), and where there are folders in it
    ``label`` and ``split``.
    """

    def __init__(self, path: Path, options: FileOptions) -> None:
        self._path, self._options = path, options

    def columns(self) -> tuple[str, ...]:
        return _COLUMNS[: 1 + self._depth(self.files())]

    def rows(self, columns: Sequence[str] | None) -> Iterator[FileRow]:
        files = self.files()
        known = _COLUMNS[: 1 + self._depth(files)]
        for column in columns or ():
            if column not in known:
                raise missing_column(self._path.name, column, known)
        for number, file in enumerate(files, start=1):
            *folders, _ = file.parts
            values = {"text": "", "file": file.as_posix()}
            values |= dict(zip(("label", "split"), reversed(folders), strict=False))
            if columns is None or "text" in columns:
                values["text"] = self._read(file)
            kept = {column: values[column] for column in columns or known}
            yield FileRow(f"{self._path.name} ({file.as_posix()})", number, None, kept)

    def files(self) -> list[Path]:
        """The text files, relative to the folder; files that begin with a dot are no rows.

        Raises:
            DataError: there is none, or something else than a text file.
        """
        files = row_files(self._path, (".txt",), "a text file")
        if not files:
            raise DataError(
                f"The folder {self._path.name!r} holds no text file.",
                "Put one .txt file for each row into it, or into a folder for each label.",
            )
        return files

    def _depth(self, files: Sequence[Path]) -> int:
        """How many parts the path of each file has."""
        first = files[0]
        for file in files:
            if len(file.parts) != len(first.parts):
                raise DataError(
                    f"In the folder {self._path.name!r} the files {first.as_posix()!r} and "
                    f"{file.as_posix()!r} lie at different depths.",
                    "Use one layout: FILE, LABEL/FILE or SPLIT/LABEL/FILE.",
                )
        if len(first.parts) > SPLIT_DEPTH:
            raise DataError(
                f"In the folder {self._path.name!r} the file {first.as_posix()!r} lies too deep.",
                "Use one layout: FILE, LABEL/FILE or SPLIT/LABEL/FILE.",
            )
        check_labels(self._path, files)
        return len(first.parts)

    def _read(self, file: Path) -> str:
        path = self._path / file
        try:
            reader = TextReader(
                file.as_posix(), lambda: path.open("rb"), encoding=self._options.encoding
            )
            with reader:
                return "".join(reader)
        except OSError as error:
            raise unreadable_folder(self._path, error) from error

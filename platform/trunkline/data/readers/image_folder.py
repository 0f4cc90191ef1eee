"""A folder of pictures: a folder for each class, or ``labels.csv`` with a row for each picture.

``cells/cracked/1.png`` has the label ``cracked``; ``cells/train/cracked/1.png`` also a split.
``labels.csv`` names pictures relative to its folder in the column ``path``, beside any other
columns. Rows hold paths; pictures are read when they are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NoReturn

from trunkline.data.readers.delimited import DelimitedFile
from trunkline.data.readers.folders import (
    check_labels,
    row_files,
    unreadable_folder,
    walk,
)
from trunkline.data.readers.rows import FileOptions, FileRow, missing_column
from trunkline.errors import DataError
from trunkline.images import SUFFIXES

PATH = "path"
"""The column with the path of a picture, relative to the folder."""

LABELS = "labels.csv"
_COLUMNS = (PATH, "label", "split")
_LAYOUTS = "Use one layout: LABEL/FILE or SPLIT/LABEL/FILE, or write labels.csv."


def holds_pictures(path: Path) -> bool:
    """Whether a path is a folder of pictures: it has ``labels.csv``, or its first file is one."""
    if not path.is_dir():
        return False
    return (path / LABELS).is_file() or any(
        file.suffix.lower() in SUFFIXES for file in islice(walk(path, lambda error: None), 1)
    )


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """The pictures of a folder and of those in it, to be answered.

    Attributes:
        pictures: their paths relative to ``path``, sorted.
        others: how many other files there are; those that begin with a dot are not counted.
    """

    path: Path
    pictures: tuple[Path, ...]
    others: int


def find_pictures(path: Path) -> PictureFolder:
    """Look for pictures in a folder, by their suffix; links are not followed.

    Raises:
        DataError: it is no folder, can't be read, or holds no picture.
    """
    if not path.is_dir():
        raise DataError(f"There is no folder {str(path)!r}.", "Name a folder of pictures.")
    pictures: list[Path] = []
    others = 0

    def unreadable(error: OSError) -> NoReturn:
        raise unreadable_folder(path, error) from error

    for file in walk(path, unreadable):
        if file.suffix.lower() in SUFFIXES and file.is_file() and not file.is_symlink():
            pictures.append(file.relative_to(path))
        else:
            others += 1
    if not pictures:
        raise DataError(
            f"The folder {str(path)!r} holds no picture.",
            f"Pictures are recognized by their suffix: {', '.join(SUFFIXES)}.",
        )
    return PictureFolder(path, tuple(sorted(pictures)), others)


class ImageFolder:
    """The rows of a folder of pictures, in the order of their paths or of ``labels.csv``.

    Its columns are ``path``, ``label`` and, where there are folders for it, ``split``; or those of
    ``labels.csv``.
    """

    def __init__(self, path: Path, options: FileOptions) -> None:
        self._path = path
        labels = path / LABELS
        self._labels = DelimitedFile(labels, options, ",") if labels.is_file() else None

    def columns(self) -> tuple[str, ...]:
        if self._labels is not None:
            return self._labels.columns()
        return _COLUMNS[: self._depth(self.files())]

    def rows(self, columns: Sequence[str] | None) -> Iterator[FileRow]:
        if self._labels is not None:
            yield from self._labels.rows(columns)
            return
        files = self.files()
        known = _COLUMNS[: self._depth(files)]
        for column in columns or ():
            if column not in known:
                raise missing_column(self._path.name, column, known)
        for number, file in enumerate(files, start=1):
            *folders, _ = file.parts
            values = dict(zip(_COLUMNS, (file.as_posix(), *reversed(folders)), strict=False))
            kept = {column: values[column] for column in columns or known}
            yield FileRow(f"{self._path.name} ({file.as_posix()})", number, None, kept)

    def files(self) -> list[Path]:
        """The pictures, or ``labels.csv`` alone, relative to the folder.

        Raises:
            DataError: there is none, or something else than a picture.
        """
        if self._labels is not None:
            return [Path(LABELS)]
        files = row_files(self._path, SUFFIXES, "a picture")
        if not files:
            raise DataError(f"The folder {self._path.name!r} holds no picture.", _LAYOUTS)
        return files

    def _depth(self, files: Sequence[Path]) -> int:
        """How many parts the path of each picture has."""
        first = files[0]
        for file in files:
            if len(file.parts) != len(first.parts) or not 2 <= len(file.parts) <= len(_COLUMNS):
                raise DataError(
                    f"In the folder {self._path.name!r} the picture {file.as_posix()!r} lies at "
                    "another depth than its label needs.",
                    _LAYOUTS,
                )
        check_labels(self._path, files)
        return len(first.parts)

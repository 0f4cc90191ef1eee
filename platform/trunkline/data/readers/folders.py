"""List the files of a folder of texts or pictures; refuse what can't be a row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from trunkline.errors import DataError, reason_of

SPLITS: Mapping[str, str] = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""The name of a part of an official split, in lower case → the part."""

_LABEL_DEPTH, SPLIT_DEPTH = 2, 3
"""How many parts the path of a file has below folders for labels, and for parts of a split."""


def walk(path: Path, on_error: Callable[[OSError], object]) -> Iterator[Path]:
    """All files below a folder, sorted, and links to folders, which are not followed.

    What begins with a dot is left out.
    """
    for folder, folders, names in os.walk(path, onerror=on_error):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name)
        yield from (one for one in (Path(folder, name) for name in folders) if one.is_symlink())


def row_files(path: Path, suffixes: Sequence[str], kind: str) -> list[Path]:
    """The files of a folder, each a row, relative to it and sorted.

    Args:
        suffixes: of the files, in lower case.
        kind: what each file is: ``a picture``.

    Raises:
        DataError: it holds something else, or can't be read.
    """

    def unreadable(error: OSError) -> NoReturn:
        raise unreadable_folder(path, error) from error

    files: list[Path] = []
    for file in walk(path, unreadable):
        shown = file.relative_to(path)
        if file.is_symlink() and file.is_dir():
            raise DataError(
                f"The folder {path.name!r} holds {shown.as_posix()!r}, a link to a folder, which "
                "is not followed.",
                "Copy the folder here, or leave out the link.",
            )
        if file.suffix.lower() not in suffixes or file.is_symlink() or not file.is_file():
            raise DataError(
                f"The folder {path.name!r} holds {shown.as_posix()!r}, which is not {kind}.",
                f"It holds files of one kind only ({', '.join(suffixes)}); move others elsewhere.",
            )
        files.append(shown)
    return sorted(files)


def check_labels(path: Path, files: Sequence[Path]) -> None:
    """Refuse folders for labels that are all named like the parts of a split.

    Args:
        files: relative to the folder, all at one depth.

    Raises:
        DataError: a model would learn the parts of the split as labels.
    """
    labels = sorted({file.parts[-2] for file in files if len(file.parts) >= _LABEL_DEPTH})
    if labels and all(label.casefold() in SPLITS for label in labels):
        raise DataError(
            f"In the folder {path.name!r} the labels would be {' and '.join(labels)}, which are "
            "parts of a split.",
            "Use the layout SPLIT/LABEL/FILE, with folders for the labels.",
        )


def has_parts(path: Path, files: Sequence[Path]) -> bool:
    """Whether the files lie in folders for the parts of a split: ``train/good/1.txt``.

    Args:
        files: relative to the folder.

    Raises:
        DataError: some of the folders are named like parts, and others are not.
    """
    if not files or any(len(file.parts) != SPLIT_DEPTH for file in files):
        return False
    names = sorted({file.parts[0] for file in files})
    parts = [name for name in names if name.casefold() in SPLITS]
    if parts and len(parts) < len(names):
        other = next(name for name in names if name not in parts)
        raise DataError(
            f"In the folder {path.name!r} the folder {other!r} is no part of a split, and "
            f"{parts[0]!r} is.",
            "Name all of them train, validation or test, or none.",
        )
    return bool(parts)


def unreadable_folder(path: Path, error: OSError) -> DataError:
    """The error for a folder that the system does not let us read."""
    return DataError(
        f"The folder {path.name!r} can't be read: {reason_of(error)}.",
        "Grant permission to read it.",
    )

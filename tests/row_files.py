"""Write a file of rows, read its column ``text``, or expect a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trunkline.data.readers import FileOptions, TextFile, open_texts
from trunkline.errors import DataError, NotFoundError, TrunklineError, UsageError


def texts_of(file: TextFile) -> list[str]:
    return [row.text for batch in file.batches() for row in batch]


def numbers_of(file: TextFile) -> list[int]:
    return [row.number for batch in file.batches() for row in batch]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(folder: Path, name: str, content: str | bytes, **options: Any) -> list[str]:
    """The texts of a file with this content; rows without one are skipped."""
    path = written(folder, name, content)
    return texts_of(open_texts(path, "text", skip_empty=True, options=FileOptions(**options)))


def refusal(folder: Path, name: str, content: str | bytes, **options: Any) -> TrunklineError:
    """The error for a file with this content; it names the file and has a hint."""
    with pytest.raises((DataError, UsageError)) as caught:
        read(folder, name, content, **options)
    assert name in caught.value.message or isinstance(caught.value, NotFoundError)
    assert caught.value.hint
    return caught.value

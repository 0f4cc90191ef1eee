"""Folders for trainings that publish nothing; what a killed process leaves is found by ``gc``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from trunkline.errors import RefusedError
from trunkline.workspace import Workspace


@contextmanager
def scratch_folder(workspace: Workspace, name: str) -> Iterator[Path]:
    """An empty folder below the workspace's runs, removed at the end.

    Raises:
        RefusedError: another process uses it.
    """
    folder = workspace.runs / name
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RefusedError(
            "The same search or evaluation runs in another process.", "Wait for it, or stop it."
        ) from None
    try:
        for path in folder.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path, ignore_errors=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()

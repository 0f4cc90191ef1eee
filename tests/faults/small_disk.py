"""A disk (tmpfs) of a few hundred kilobytes that can be filled up and made read-only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = 4096
"""The allocation unit of a tmpfs, in bytes."""

BALLAST = "ballast"


class MountError(Exception):
    """Mounting is forbidden; the message is that of the system."""


class SmallDisk:
    """A tmpfs at ``folder``.

    Args:
        size: bytes, all files together.

    Raises:
        MountError: mounting is forbidden.
    """

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        _mount("-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(folder))

    def fill(self, free: int) -> None:
        """Leave about ``free`` bytes of space."""
        ballast = self.folder / BALLAST
        ballast.unlink(missing_ok=True)
        state = os.statvfs(self.folder)
        size = state.f_bavail * state.f_frsize - free
        if size > 0:
            ballast.write_bytes(b"\0" * size)

    def empty(self) -> None:
        """Free the space."""
        (self.folder / BALLAST).unlink(missing_ok=True)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Make the disk read-only within a block."""
        _mount("-o", "remount,ro", str(self.folder))
        try:
            yield
        finally:
            _mount("-o", "remount,rw", str(self.folder))

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False, capture_output=True)


def _mount(*args: str) -> None:
    try:
        done = subprocess.run(["mount", *args], capture_output=True, text=True, check=False)
    except OSError as error:
        raise MountError(str(error)) from error
    if done.returncode != 0:
        raise MountError(done.stderr.strip() or f"mount ended with {done.returncode}")

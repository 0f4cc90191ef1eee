"""A disk of a few hundred kilobytes that can be filled up and made read-only.

Owns: mounting and unmounting a tmpfs. Must not know: what is put on it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = 4096
"""What a tmpfs gives out at a time, in bytes."""

BALLAST = "ballast"


class CantMountError(Exception):
    """This user may not mount here; the text says what the system said."""


class SmallDisk:
    """A tmpfs at ``folder``.

    Args:
        size: bytes, all files together.

    Raises:
        CantMountError: mounting is forbidden.
    """

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        _mount("-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(folder))

    def fill(self, free: int) -> None:
        """Leave about so many bytes free, of files and of folders both."""
        ballast = self.folder / BALLAST
        ballast.unlink(missing_ok=True)
        there = os.statvfs(self.folder)
        size = there.f_bavail * there.f_frsize - free
        if size > 0:
            ballast.write_bytes(b"\0" * size)

    def empty(self) -> None:
        """Take the ballast away."""
        (self.folder / BALLAST).unlink(missing_ok=True)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """For a while nothing on it can be written."""
        _mount("-o", "remount,ro", str(self.folder))
        try:
            yield
        finally:
            _mount("-o", "remount,rw", str(self.folder))

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False, capture_output=True)


def _mount(*words: str) -> None:
    try:
        done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise CantMountError(str(error)) from error
    if done.returncode != 0:
        raise CantMountError(done.stderr.strip() or f"mount ended with {done.returncode}")

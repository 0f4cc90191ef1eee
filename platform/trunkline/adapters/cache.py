"""Verified copies of artifacts that lie elsewhere, in folders named by their digest.

Owns: that an entry is whole, however many processes make it at once. Must not know: where the
files come from, or which versions there are.

An entry is made beside and renamed into place by whoever holds the digest's lock; a killed holder
lets go by itself. Each use verifies the entry anew, so nothing here needs to outlive a power cut.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import Artifact, read_artifact
from trunkline.adapters.storage import described, is_known
from trunkline.errors import IntegrityError, RegistryError

_ENTRY = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HALF = re.compile(r"\.fetching-([0-9a-f]{64})-.*", re.ASCII)


@dataclass(frozen=True, slots=True)
class CachedFolder:
    """An entry, or one half made, of the version with ``digest``."""

    folder: Path
    digest: str
    bytes: int
    whole: bool


class Cache:
    """Copies below one folder, which is made when it is needed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, digest: str, files: Mapping[str, Any] | None) -> Artifact | None:
        """The entry, if there is a sound one that is up to date.

        Args:
            files: what the registry knows of each file; those outside of the identity may have
                been written anew since the entry was made.
        """
        folder = self._folder(digest)
        if not folder.is_dir():
            return None
        try:
            found = read_artifact(folder, digest)
            now = described(found)
            if not all(is_known(known, now.get(name)) for name, known in (files or {}).items()):
                return None
        except (IntegrityError, OSError):
            return None
        return found

    @contextmanager
    def making(self, digest: str) -> Iterator[Path]:
        """An empty folder to make an entry in, alone with this digest until the block ends.

        Raises:
            RegistryError: the cache can't be written.
        """
        with self._writing(), self._lock(digest):
            work = Path(tempfile.mkdtemp(prefix=f".fetching-{_hex(digest)}-", dir=self.root))
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def adopt(self, work: Path, digest: str) -> Artifact:
        """Make a folder of :meth:`making` the entry, in the place of one that is not good.

        Raises:
            IntegrityError: it is not the artifact of this digest.
        """
        checked = read_artifact(work, digest)
        folder = self._folder(digest)
        if os.path.lexists(folder):
            aside = Path(tempfile.mkdtemp(prefix=f".fetching-{_hex(digest)}-", dir=self.root))
            os.rename(folder, aside / "old")
            shutil.rmtree(aside, ignore_errors=True)
        os.rename(work, folder)
        return replace(checked, folder=folder)

    def folders(self) -> list[CachedFolder]:
        """Every entry, and those half made that nobody works on."""
        found = []
        for folder in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            half = _HALF.fullmatch(folder.name)
            if half is None and not _ENTRY.fullmatch(folder.name):
                continue
            digest = "sha256:" + (half[1] if half else folder.name)
            if half is None or self._is_free(digest):
                size = sum(path.lstat().st_size for path in folder.rglob("*"))
                found.append(CachedFolder(folder, digest, size, half is None))
        return found

    def drop(self, cached: CachedFolder) -> bool:
        """Take an entry away; False while somebody works on its digest."""
        from filelock import Timeout

        try:
            with self._writing(), self._lock(cached.digest, wait=0):
                shutil.rmtree(cached.folder)
                (self.root / f".{_hex(cached.digest)}.lock").unlink(missing_ok=True)
        except Timeout:
            return False
        except FileNotFoundError:
            return True
        return True

    def _folder(self, digest: str) -> Path:
        return self.root / _hex(digest)

    def _is_free(self, digest: str) -> bool:
        from filelock import Timeout

        path = self.root / f".{_hex(digest)}.lock"
        if not path.exists():
            return True
        try:
            with self._lock(digest, wait=0):
                return True
        except Timeout:
            return False

    @contextmanager
    def _lock(self, digest: str, wait: float = -1) -> Iterator[None]:
        from filelock import FileLock

        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f".{_hex(digest)}.lock", timeout=wait):
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        from filelock import Timeout

        try:
            yield
        except (FileNotFoundError, Timeout):
            raise
        except OSError as error:
            raise RegistryError(
                f"The cache {self.root} can't be written: {error.strerror or error}.",
                "Make room or give write permission, then try again.",
            ) from error


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")

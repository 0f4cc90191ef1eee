"""Where the files of versions are stored: the :class:`Storage` protocol and a folder on disk.

A version's ``path`` is ``domain/name/number``, relative to the root of the storage.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from trunkline.adapters.artifact import MANIFEST, WEIGHTS, Artifact, read_artifact
from trunkline.errors import IntegrityError, RegistryError, reason_of
from trunkline.files import MAX_JSON_BYTES, REPAIR, fsync_path, sha256_file

DOMAIN = re.compile(r"[a-z][a-z0-9-]{0,39}", re.ASCII)
NAME = re.compile(r"[a-z][a-z0-9-]{0,63}", re.ASCII)
NUMBER = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)

_RENAME_ATTEMPTS = 5

PARTIAL = ".publishing-"
"""The prefix of folders that are being written; they are next to the domains."""

PROBE = "probe"
"""In the name of what :meth:`Storage.probe` writes."""

_PARTIAL_VERSION = re.compile(r"\.publishing-([a-z0-9-]+)\.([a-z0-9-]+)\.([0-9]{1,9})-.*", re.ASCII)

Files = Mapping[str, Any]
"""File name → ``{"bytes", "sha256"}``."""


@dataclass(frozen=True, slots=True)
class StoredFolder:
    """A folder in a storage: the files of a version, or a partial write.

    Attributes:
        path: relative to the root; a partial write begins with :data:`PARTIAL`.
        version: its domain, name and number; None if unknown.
        names: of its files.
        bytes: the total size of its files.
        modified: when its newest file was written; None if the storage doesn't record it.
    """

    path: str
    version: tuple[str, str, int] | None
    names: frozenset[str]
    bytes: int
    modified: datetime | None


class Storage(Protocol):
    """Stores the files of versions by path.

    Methods raise ``OSError`` or :class:`RegistryError` if the storage can't be read or written, and
    :class:`IntegrityError` if the stored files are damaged.
    """

    def location(self, path: str) -> str:
        """A path as the user sees it: a folder or a URL."""

    def exists(self, path: str) -> bool:
        """Whether there is anything under a path."""

    def add(self, artifact: Artifact, path: str) -> Files:
        """Store an artifact under a free path, completely or not at all, and describe its files.

        An interrupted write leaves no version: it has no manifest, or is a partial folder.
        """

    def fetch(self, path: str, digest: str, files: Files | None) -> Artifact:
        """The verified artifact in a local folder.

        Args:
            digest: the recorded digest, ``sha256:…``.
            files: the recorded description of each file, if there is one.
        """

    def open(self, path: str, digest: str, files: Files | None) -> AbstractContextManager[Artifact]:
        """A context with the verified artifact as it is in the storage, bypassing any cache."""

    def open_file(self, path: str, name: str) -> AbstractContextManager[BinaryIO]:
        """A context with one file of a version, to be read from its start; nothing is verified."""

    def read_manifest(self, path: str) -> bytes:
        """The bytes of a version's manifest, at most the size of a JSON file."""

    def write_file(self, path: str, name: str, data: bytes) -> None:
        """Create or replace one file of a version atomically."""

    def remove(self, path: str) -> None:
        """Delete everything under a path, the manifest first; a missing path is no error."""

    def folders(self) -> Iterator[StoredFolder]:
        """Everything in the storage, in no particular order."""

    def remove_empty_folders(self) -> None:
        """Delete empty folders of domains and adapters."""

    def probe(self) -> None:
        """Write a file, read it back, and delete it."""


class LocalStorage:
    """A folder on disk: files are written to a partial folder, synced, and renamed into place."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def location(self, path: str) -> str:
        return str(self.root / path)

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.root / path)

    def add(self, artifact: Artifact, path: str) -> Files:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = self._partial_folder(path)
        try:
            files = copy_artifact(artifact, partial)
            self._rename(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return files

    def fetch(self, path: str, digest: str, files: Files | None) -> Artifact:
        return read_artifact(self.root / path, digest)

    @contextmanager
    def open(self, path: str, digest: str, files: Files | None) -> Iterator[Artifact]:
        yield read_artifact(self.root / path, digest)

    @contextmanager
    def open_file(self, path: str, name: str) -> Iterator[BinaryIO]:
        source = self.root / path / name
        if source.is_symlink() or not source.is_file():
            raise IntegrityError(f"{source} is not a plain file.", REPAIR)
        with source.open("rb") as file:
            yield file

    def read_manifest(self, path: str) -> bytes:
        with self.open_file(path, MANIFEST) as file:
            return file.read(MAX_JSON_BYTES + 1)

    def write_file(self, path: str, name: str, data: bytes) -> None:
        partial = self._partial_folder(path)
        try:
            (partial / name).write_bytes(data)
            fsync_path(partial / name)
            os.replace(partial / name, self.root / path / name)
            fsync_path(self.root / path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def remove(self, path: str) -> None:
        target = self.root / path
        if target.is_symlink():
            target.unlink()
        else:
            with suppress(FileNotFoundError, NotADirectoryError):
                (target / MANIFEST).unlink()
            with suppress(FileNotFoundError):
                shutil.rmtree(target)
        for folder in target.parents:
            if folder == self.root or not _remove_if_empty(folder):
                return

    def folders(self) -> Iterator[StoredFolder]:
        for folder in _entries(self.root):
            if folder.name.startswith(PARTIAL):
                match = _PARTIAL_VERSION.fullmatch(folder.name)
                version = (match[1], match[2], int(match[3])) if match else None
                yield _describe_folder(folder, folder.name, version)
        for domain in _matching(self.root, DOMAIN):
            for name in _matching(domain, NAME):
                for number in _matching(name, NUMBER):
                    path = number.relative_to(self.root).as_posix()
                    version = (domain.name, name.name, int(number.name))
                    yield _describe_folder(number, path, version)

    def remove_empty_folders(self) -> None:
        for domain in _matching(self.root, DOMAIN):
            for name in _matching(domain, NAME):
                _remove_if_empty(name)
            _remove_if_empty(domain)

    def probe(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        folder, data = self._partial_folder(PROBE), PROBE.encode()
        try:
            (folder / PROBE).write_bytes(data)
            fsync_path(folder / PROBE)
            if (folder / PROBE).read_bytes() != data:
                raise RegistryError(*not_written_back(str(self.root)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _partial_folder(self, path: str) -> Path:
        version = path.replace("/", ".")
        return Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{version}-", dir=self.root))

    def _rename(self, partial: Path, target: Path) -> None:
        """Rename into place, although gc may delete the empty parent folders concurrently."""
        for attempt in range(_RENAME_ATTEMPTS):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(partial, target)
                break
            except FileNotFoundError:
                if attempt == _RENAME_ATTEMPTS - 1 or not partial.exists():
                    raise
        for folder in target.parents:
            fsync_path(folder)
            if folder == self.root:
                break
        fsync_path(self.root.parent)


def not_written_back(location: str) -> tuple[str, str]:
    """Message and hint for a storage that returns something else than was written."""
    return (
        f"The store {location} returned something else than was written to it.",
        "Read the store's own log, and check the disk.",
    )


def copy_artifact(artifact: Artifact, folder: Path) -> Files:
    """Copy an artifact into an empty folder, sync and verify it, and describe its files.

    Raises:
        IntegrityError: the source changed during the copy.
    """
    for path in sorted(artifact.folder.iterdir()):
        shutil.copyfile(path, folder / path.name)
        fsync_path(folder / path.name)
    copy = read_artifact(folder, artifact.digest)
    os.chmod(folder, 0o755)
    fsync_path(folder)
    return describe_files(copy)


def describe_files(artifact: Artifact) -> Files:
    """The size and sha256 of each file of a verified artifact, as the registry records them."""
    return {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": artifact.manifest.weights if path.name == WEIGHTS else sha256_file(path),
        }
        for path in sorted(artifact.folder.iterdir())
    }


def matches_record(entry: Mapping[str, Any], current: Mapping[str, Any] | None) -> bool:
    """Whether a file (None if it is absent) is as the registry recorded it.

    While a file is being replaced, both its old and its next content match.
    """
    recorded = None
    if entry.get("sha256"):
        recorded = {"bytes": entry["bytes"], "sha256": entry["sha256"]}
    return current == recorded or (current is not None and current == entry.get("next"))


@contextmanager
def write_errors(location: str, retry: str) -> Iterator[None]:
    """Turn ``OSError`` into :class:`RegistryError`; ``retry`` tells the user how to try again."""
    try:
        yield
    except OSError as error:
        raise RegistryError(
            f"The artifact can't be written to {location}: {reason_of(error)}.",
            f"Free disk space or grant write permission, then {retry}.",
        ) from error


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _matching(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    return [path for path in _entries(folder) if pattern.fullmatch(path.name)]


def _describe_folder(folder: Path, path: str, version: tuple[str, str, int] | None) -> StoredFolder:
    """Names, sizes and times; links are not followed."""
    names: list[str] = []
    size, newest = 0, 0.0
    children = [] if folder.is_symlink() else _entries(folder)
    for entry in (folder, *children):
        with suppress(FileNotFoundError):
            state = entry.lstat()
            newest = max(newest, state.st_mtime)
            if entry is not folder:
                names.append(entry.name)
                size += state.st_size
    modified = datetime.fromtimestamp(newest, UTC)
    return StoredFolder(path, version, frozenset(names), size, modified)


def _remove_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True

"""Where artifacts lie: the protocol of a storage, and the one that is a folder on a disk.

Owns: how a version's files come to stand all at once, or not at all, and how they are taken away.
Must not know: the registry, or which versions there should be.

A version's ``path`` is ``domain/name/number``, relative to the storage's root.
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
from typing import Any, Protocol

from trunkline.adapters.artifact import MANIFEST, WEIGHTS, Artifact, read_artifact
from trunkline.errors import RegistryError
from trunkline.files import fsync_path, sha256_file

DOMAIN = re.compile(r"[a-z][a-z0-9-]{0,39}", re.ASCII)
NAME = re.compile(r"[a-z][a-z0-9-]{0,63}", re.ASCII)
NUMBER = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_TRIES = 5

LEFTOVER = ".publishing-"
"""What is being written lies under a name that begins so, beside the domains."""

_OF_VERSION = re.compile(r"\.publishing-([a-z0-9-]+)\.([a-z0-9-]+)\.([0-9]{1,9})-.*", re.ASCII)

Files = Mapping[str, Any]
"""File name → ``{"bytes", "sha256"}``."""


@dataclass(frozen=True, slots=True)
class StoredFolder:
    """Something that a storage holds: a version's files, or what was being written.

    Attributes:
        path: relative to the root; begins with :data:`LEFTOVER` where it is no version's place.
        version: domain, name and number that it is of, or is meant for; None if it doesn't say.
        names: of its files.
        bytes: of its files together.
        modified: when the newest of them was written; None where the storage can't tell.
    """

    path: str
    version: tuple[str, str, int] | None
    names: frozenset[str]
    bytes: int
    modified: datetime | None


class Storage(Protocol):
    """Keeps the files of versions by path.

    ``OSError`` and :class:`RegistryError` mean that it can't be read or written;
    :class:`IntegrityError` that what it holds is not what it should.
    """

    def place(self, path: str) -> str:
        """Where a version lies, for people: a folder or a URL."""

    def holds(self, path: str) -> bool:
        """Whether there is anything at all under a path."""

    def add(self, artifact: Artifact, path: str) -> Files:
        """Store an artifact under a free path, all of it or nothing; gives what was written.

        Killed half-way, what is there is no version: it has no manifest, or is a leftover.
        """

    def fetch(self, path: str, digest: str, files: Files | None) -> Artifact:
        """The verified artifact in a local folder.

        Args:
            digest: ``sha256:…`` that the registry knows.
            files: what the registry knows of each file, if it does.
        """

    def examined(
        self, path: str, digest: str, files: Files | None
    ) -> AbstractContextManager[Artifact]:
        """The verified artifact as it lies in the storage itself, past any copy; for a while."""

    def write_file(self, path: str, name: str, data: bytes) -> None:
        """Put one file of a version in the place of an earlier one, at once."""

    def remove(self, path: str) -> None:
        """Take everything under a path away, the manifest first; nothing there is no error."""

    def folders(self) -> Iterator[StoredFolder]:
        """Everything that it holds, in no order."""

    def tidy(self) -> None:
        """Drop what is empty."""


class LocalStorage:
    """A folder on a disk: written beside, synced, and renamed into place."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, path: str) -> str:
        return str(self.root / path)

    def holds(self, path: str) -> bool:
        return os.path.lexists(self.root / path)

    def add(self, artifact: Artifact, path: str) -> Files:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        work = self._work_folder(path)
        try:
            files = copy_in(artifact, work)
            self._rename_in(work, target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        return files

    def fetch(self, path: str, digest: str, files: Files | None) -> Artifact:
        return read_artifact(self.root / path, digest)

    @contextmanager
    def examined(self, path: str, digest: str, files: Files | None) -> Iterator[Artifact]:
        yield read_artifact(self.root / path, digest)

    def write_file(self, path: str, name: str, data: bytes) -> None:
        work = self._work_folder(path)
        try:
            (work / name).write_bytes(data)
            fsync_path(work / name)
            os.replace(work / name, self.root / path / name)
            fsync_path(self.root / path)
        finally:
            shutil.rmtree(work, ignore_errors=True)

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
            if folder == self.root or not _drop_empty(folder):
                return

    def folders(self) -> Iterator[StoredFolder]:
        for found in _entries(self.root):
            if found.name.startswith(LEFTOVER):
                said = _OF_VERSION.fullmatch(found.name)
                of = (said[1], said[2], int(said[3])) if said else None
                yield _stored(found, found.name, of)
        for domain in _named(self.root, DOMAIN):
            for name in _named(domain, NAME):
                for number in _named(name, NUMBER):
                    path = number.relative_to(self.root).as_posix()
                    yield _stored(number, path, (domain.name, name.name, int(number.name)))

    def tidy(self) -> None:
        for domain in _named(self.root, DOMAIN):
            for name in _named(domain, NAME):
                _drop_empty(name)
            _drop_empty(domain)

    def _work_folder(self, path: str) -> Path:
        of = path.replace("/", ".")
        return Path(tempfile.mkdtemp(prefix=f"{LEFTOVER}{of}-", dir=self.root))

    def _rename_in(self, work: Path, target: Path) -> None:
        """Rename into place, though upkeep may drop the empty folders above meanwhile."""
        for attempt in range(_TRIES):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(work, target)
                break
            except FileNotFoundError:
                if attempt == _TRIES - 1 or not work.exists():
                    raise
        for folder in target.parents:
            fsync_path(folder)
            if folder == self.root:
                break
        fsync_path(self.root.parent)


def copy_in(artifact: Artifact, work: Path) -> Files:
    """Copy an artifact into an empty folder, synced, and check the copy; gives what was written.

    Raises:
        IntegrityError: the source changed meanwhile.
    """
    for path in sorted(artifact.folder.iterdir()):
        shutil.copyfile(path, work / path.name)
        fsync_path(work / path.name)
    copied = read_artifact(work, artifact.digest)
    os.chmod(work, 0o755)
    fsync_path(work)
    return described(copied)


def described(artifact: Artifact) -> Files:
    """What each file of a checked artifact is, as the registry keeps it."""
    return {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": artifact.manifest.weights if path.name == WEIGHTS else sha256_file(path),
        }
        for path in sorted(artifact.folder.iterdir())
    }


def is_known(entry: Mapping[str, Any], now: Mapping[str, Any] | None) -> bool:
    """Whether a file, None where it is absent, is what the registry knows of it.

    While a file is written anew, what it was and what it will be are both right.
    """
    was = {"bytes": entry["bytes"], "sha256": entry["sha256"]} if entry.get("sha256") else None
    return now == was or (now is not None and now == entry.get("next"))


@contextmanager
def writing(place: str, again: str) -> Iterator[None]:
    """Turn a disk's errors into :class:`RegistryError`; ``again`` is what to do once it is well."""
    try:
        yield
    except OSError as error:
        raise RegistryError(
            f"The artifact can't be written to {place}: {error.strerror or error}.",
            f"Make room or give write permission, then {again}.",
        ) from error


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _named(folder: Path, grammar: re.Pattern[str]) -> list[Path]:
    return [path for path in _entries(folder) if grammar.fullmatch(path.name)]


def _stored(folder: Path, path: str, version: tuple[str, str, int] | None) -> StoredFolder:
    """Sizes and times without following a link."""
    names: list[str] = []
    size, newest = 0, 0.0
    inside = [] if folder.is_symlink() else _entries(folder)
    for one in (folder, *inside):
        with suppress(FileNotFoundError):
            state = one.lstat()
            newest = max(newest, state.st_mtime)
            if one is not folder:
                names.append(one.name)
                size += state.st_size
    modified = datetime.fromtimestamp(newest, UTC)
    return StoredFolder(path, version, frozenset(names), size, modified)


def _drop_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True

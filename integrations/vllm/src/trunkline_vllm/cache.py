"""Copies of adapters on the disk, from which vLLM loads: read-only, leased, of limited size."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from trunkline.adapters.artifact import Artifact
from trunkline.adapters.object_store import ArtifactCache, CachedFolder
from trunkline.adapters.storage import Storage, matches_record
from trunkline.errors import (
    IntegrityError,
    RefusedError,
    RegistryError,
    UnavailableError,
    reason_of,
)
from trunkline.files import REPAIR, fsync_path
from trunkline.registry.records import VersionRecord

_CHUNK = 1 << 20

_Stamp = tuple[tuple[int, int, int, int], ...]


class AdapterCache(ArtifactCache):
    """Local copies of artifacts in ``root/<digest>/``, which processes may share.

    A copy is hashed while it is written, verified, made read-only and renamed into place; of any
    number of callers, one fetches it. A lease keeps a copy on the disk while vLLM may read it.
    Beyond ``max_bytes``, copies without a lease are deleted, the least recently used first.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        super().__init__(root)
        self._max_bytes = max_bytes
        self._verified: dict[str, tuple[_Stamp, Artifact]] = {}

    def load(
        self,
        storage: Storage,
        version: VersionRecord,
        names: Sequence[str],
        *,
        max_bytes: int,
        deadline: float,
    ) -> Artifact:
        """The verified copy of a version; fetched if there is none, or a damaged one; blocks.

        Args:
            storage: of the version.
            version: from the registry.
            names: the files to copy.
            max_bytes: their largest total size.
            deadline: of the monotonic clock, for the download.

        Raises:
            IntegrityError: the files in the store are not the version's.
            RefusedError: they are too large.
            RegistryError: the store can't be read, or the cache can't be written.
            UnavailableError: the deadline passed.
        """
        if (artifact := self._current(version.digest, names)) is not None:
            return artifact
        with self.new_entry(version.digest) as folder:
            artifact = self._current(version.digest, names)  # another process may have finished it
            if artifact is None:
                _download(storage, version, names, folder, max_bytes, deadline)
                artifact = self.commit(folder, version.digest)
                self._verified[version.digest] = _stamp(artifact, names), artifact
        self.evict()
        return artifact

    def commit(self, folder: Path, digest: str) -> Artifact:
        """Verify a new entry, make it read-only, and rename it into place."""
        for file in folder.iterdir():
            file.chmod(0o444)
        with suppress(FileNotFoundError):
            self._folder(digest).chmod(0o755)  # a damaged entry, which is replaced
        artifact = super().commit(folder, digest)
        artifact.folder.chmod(0o555)
        return artifact

    @contextmanager
    def lease(self, digest: str) -> Iterator[None]:
        """Keep the entry of a digest, also one that is yet to be fetched, until the block ends.

        The operating system ends the leases of a killed process.

        Raises:
            RegistryError: the cache can't be written.
        """
        with self._write_errors():
            self.root.mkdir(parents=True, exist_ok=True)
            handle = self._locked(digest, fcntl.LOCK_SH)
            os.utime(handle)  # the time of the last use
        try:
            yield
        finally:
            os.close(handle)

    def evict(self) -> None:
        """Delete entries without a lease until the rest fits, and what killed processes left."""
        entries = self.folders()
        total = sum(entry.bytes for entry in entries)
        for entry in sorted(entries, key=lambda one: (one.complete, self._last_use(one.digest))):
            if entry.complete and total <= self._max_bytes:
                return
            try:
                total -= entry.bytes if self._evict(entry) else 0
            except RegistryError as error:
                logging.getLogger(__name__).warning("%s", error.message)

    def _evict(self, entry: CachedFolder) -> bool:
        with self._write_errors():
            try:
                handle = self._locked(entry.digest, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            try:
                with suppress(FileNotFoundError):
                    entry.folder.chmod(0o755)
                removed = self.remove(entry)
                if removed:
                    self._verified.pop(entry.digest, None)
                    self._lease_file(entry.digest).unlink(missing_ok=True)
                return removed
            finally:
                os.close(handle)

    def _locked(self, digest: str, operation: int) -> int:
        """The open and locked lease file of a digest; another process may delete it meanwhile."""
        path = self._lease_file(digest)
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, operation)
                if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
            except BaseException as error:
                os.close(handle)
                if isinstance(error, FileNotFoundError):
                    continue
                raise
            os.close(handle)

    def _current(self, digest: str, names: Sequence[str]) -> Artifact | None:
        """The entry; its content is read again only after a file changed."""
        stamp, artifact = self._verified.get(digest, ((), None))
        try:
            if artifact is not None and _stamp(artifact, names) == stamp:
                return artifact
            artifact = self.get(digest, None)
            if artifact is None:
                return None
            self._verified[digest] = _stamp(artifact, names), artifact
        except OSError:  # it was deleted, or lacks a file
            return None
        return artifact

    def _last_use(self, digest: str) -> float:
        try:
            return self._lease_file(digest).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _lease_file(self, digest: str) -> Path:
        return self.root / f".{self._folder(digest).name}.lease"


def _stamp(artifact: Artifact, names: Sequence[str]) -> _Stamp:
    """What changes with any write to a file, or its replacement.

    Raises:
        OSError: a file is missing.
    """
    states = [(artifact.folder / name).lstat() for name in names]
    return tuple((one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in states)


def _download(
    storage: Storage,
    version: VersionRecord,
    names: Sequence[str],
    folder: Path,
    max_bytes: int,
    deadline: float,
) -> None:
    """Copy files into an empty folder, and compare their hashes with the registry's."""
    recorded = version.files or {}
    total = sum(entry["bytes"] for name, entry in recorded.items() if name in names)
    if total > max_bytes:
        raise _too_large(version, max_bytes)
    left = max_bytes
    for name in names:
        hashed, size = hashlib.sha256(), 0
        with (folder / name).open("xb") as target:
            for chunk in _chunks(storage, version, name):
                size += len(chunk)
                if size > left:
                    raise _too_large(version, max_bytes)
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"The files of {version.ref} did not arrive in time.",
                        "Retry; the operator can set TRUNKLINE_VLLM_LOAD_SECONDS.",
                    )
                hashed.update(chunk)
                target.write(chunk)
        fsync_path(folder / name)
        left -= size
        if name in recorded and not matches_record(
            recorded[name], {"bytes": size, "sha256": hashed.hexdigest()}
        ):
            location = storage.location(version.path)
            raise IntegrityError(f"{location}/{name} is not what the registry recorded.", REPAIR)


def _chunks(storage: Storage, version: VersionRecord, name: str) -> Iterator[bytes]:
    """The bytes of a file in the store; its errors are not those of the cache."""
    location = storage.location(version.path)
    try:
        with storage.open_file(version.path, name) as source:
            while chunk := source.read(_CHUNK):
                yield chunk
    except FileNotFoundError:
        raise IntegrityError(f"{location}/{name} is missing.", REPAIR) from None
    except OSError as error:
        raise RegistryError(
            f"{location}/{name} can't be read: {reason_of(error)}.",
            "Check [store] in trunkline.toml and the permissions; then try again.",
        ) from error


def _too_large(version: VersionRecord, most: int) -> RefusedError:
    return RefusedError(
        f"The files of {version.ref} have more than {most:,} bytes, which this server does not "
        "fetch.",
        "The operator can set TRUNKLINE_VLLM_MAX_BYTES.",
    )

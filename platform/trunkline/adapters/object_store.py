"""Versions in an object store behind any URL that fsspec supports: ``s3://``, ``gs://``,
``memory://``; and the local cache that they are read through.

Objects can't be renamed together. A version therefore exists when its manifest does: the manifest
is written last and deleted first. Objects without a manifest belong to no version, and gc deletes
them.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from trunkline.adapters.artifact import KNOWN, MANIFEST, REQUIRED, Artifact, read_artifact
from trunkline.adapters.storage import (
    DOMAIN,
    NAME,
    NUMBER,
    PROBE,
    Files,
    StoredFolder,
    copy_artifact,
    describe_files,
    matches_record,
    not_written_back,
)
from trunkline.errors import IntegrityError, RegistryError, TrunklineError, UsageError, one_line
from trunkline.files import MAX_JSON_BYTES, REPAIR
from trunkline.redaction import redact_exception, redact_url, remember_options, remember_url

_DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
_EXTRAS = {"s3": "pip install 'trunkline[s3]'"}
_ENTRY = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PARTIAL = re.compile(r"\.fetching-([0-9a-f]{64})-.*", re.ASCII)


class ObjectStorage:
    """Versions below a URL, read through a verified copy in a local cache.

    Args:
        url: of the root, such as ``s3://models/trunkline``.
        options: passed to fsspec unchanged.
        cache: of local copies.
    """

    def __init__(self, url: str, options: Mapping[str, Any], cache: ArtifactCache) -> None:
        self._url = url.rstrip("/")
        self._shown = redact_url(self._url)
        self._options = dict(options)
        remember_url(url)
        remember_options(self._options)
        self._cache = cache
        self._connection: tuple[int, Any, str] | None = None

    def location(self, path: str) -> str:
        return f"{self._shown}/{path}"

    def exists(self, path: str) -> bool:
        return bool(self._objects(path))

    def add(self, artifact: Artifact, path: str) -> Files:
        with self._cache.new_entry(artifact.digest) as folder:
            files = copy_artifact(artifact, folder)
            with self._connected() as (fs, root):
                for name in sorted(files, key=lambda file: (file == MANIFEST, file)):
                    fs.put_file(str(folder / name), f"{root}/{path}/{name}")
            stored = {name: entry["size"] for name, entry in self._objects(path).items()}
            if stored != {name: entry["bytes"] for name, entry in files.items()}:
                raise RegistryError(
                    f"The files in {self.location(path)} have other sizes than those sent.",
                    "Try again; if the problem persists, read the object store's own log.",
                )
            self._cache.commit(folder, artifact.digest)
        return files

    def fetch(self, path: str, digest: str, files: Files | None) -> Artifact:
        cached = self._cache.get(digest, files)
        if cached is not None:
            return cached
        with self._cache.new_entry(digest) as folder:
            cached = self._cache.get(digest, files)  # another process may have finished it
            if cached is not None:
                return cached
            self._download(path, folder, digest, files)
            return self._cache.commit(folder, digest)

    @contextmanager
    def open(self, path: str, digest: str, files: Files | None) -> Iterator[Artifact]:
        with self._cache.new_entry(digest) as folder:
            yield self._download(path, folder, digest, files)

    @contextmanager
    def open_file(self, path: str, name: str) -> Iterator[BinaryIO]:
        with self._connected() as (fs, root), fs.open(f"{root}/{path}/{name}", "rb") as file:
            yield file

    def read_manifest(self, path: str) -> bytes:
        with self.open_file(path, MANIFEST) as file:
            return file.read(MAX_JSON_BYTES + 1)

    def write_file(self, path: str, name: str, data: bytes) -> None:
        with self._connected() as (fs, root):
            fs.pipe_file(f"{root}/{path}/{name}", data)

    def remove(self, path: str) -> None:
        names = sorted(self._objects(path), key=lambda name: (name != MANIFEST, name))
        with self._connected() as (fs, root):
            for name in names:
                with suppress(FileNotFoundError):
                    fs.rm_file(f"{root}/{path}/{name}")

    def folders(self) -> Iterator[StoredFolder]:
        for domain in self._subfolders("", DOMAIN):
            for name in self._subfolders(domain, NAME):
                versions: dict[str, dict[str, Any]] = {}
                for key, entry in self._objects(f"{domain}/{name}").items():
                    number, _, file = key.partition("/")
                    if NUMBER.fullmatch(number):
                        versions.setdefault(number, {})[file] = entry
                for number, objects in versions.items():
                    times = [time for entry in objects.values() if (time := _modified(entry))]
                    yield StoredFolder(
                        f"{domain}/{name}/{number}",
                        (domain, name, int(number)),
                        frozenset(objects),
                        sum(entry.get("size") or 0 for entry in objects.values()),
                        max(times, default=None),
                    )

    def remove_empty_folders(self) -> None:
        """Do nothing: an object store has no folders."""

    def probe(self) -> None:
        name = f".{PROBE}-{uuid.uuid4().hex}"
        try:
            with self._connected() as (fs, root):
                fs.pipe_file(f"{root}/{name}", name.encode())
                try:
                    data = fs.cat_file(f"{root}/{name}")
                finally:
                    fs.rm_file(f"{root}/{name}")
        except FileNotFoundError as error:
            raise RegistryError(
                f"The store {self._shown} does not exist.", "Create its bucket or its folder."
            ) from redact_exception(error)
        if data != name.encode():
            raise RegistryError(*not_written_back(self._shown))

    def _download(self, path: str, folder: Path, digest: str, files: Files | None) -> Artifact:
        """Download a version's objects into an empty folder and verify them.

        Raises:
            IntegrityError: an object is missing, foreign, or not as recorded; nothing is downloaded
                if names or sizes already show it.
        """
        location, objects = self.location(path), self._objects(path)
        if not objects:
            raise IntegrityError(f"There is no artifact at {location}.", REPAIR)
        for name, entry in objects.items():
            if name not in KNOWN:
                raise IntegrityError(
                    f"{location} holds {name!r}, which an artifact may not hold; nothing was "
                    "opened.",
                    "An artifact is safetensors and JSON only. Delete the file if you know its "
                    "origin.",
                )
            recorded = (files or {}).get(name)
            if name in REQUIRED and recorded is not None and entry["size"] != recorded["bytes"]:
                raise IntegrityError(
                    f"{location}/{name} has {entry['size']:,} bytes, but the registry recorded "
                    f"{recorded['bytes']:,}.",
                    REPAIR,
                )
        try:
            with self._connected() as (fs, root):
                for name in objects:
                    fs.get_file(f"{root}/{path}/{name}", str(folder / name))
            return read_artifact(folder, digest)
        except FileNotFoundError as error:
            raise IntegrityError(
                f"An object of {location} disappeared: {error}.", REPAIR
            ) from error
        except IntegrityError as error:
            message = error.message.replace(str(folder), location)
            raise IntegrityError(message, error.hint) from error

    def _objects(self, path: str) -> dict[str, dict[str, Any]]:
        """The objects under a path, by their name relative to it."""
        with self._connected() as (fs, root):
            prefix = f"{root}/{path}/"
            try:
                entries = fs.find(f"{root}/{path}", detail=True)
            except FileNotFoundError:
                return {}
            return {
                key[len(prefix) :]: entry
                for key, entry in entries.items()
                if len(key) > len(prefix)
            }

    def _subfolders(self, path: str, pattern: re.Pattern[str]) -> list[str]:
        with self._connected() as (fs, root):
            try:
                entries = fs.ls(f"{root}/{path}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return []
            names = [
                entry["name"].rstrip("/").rpartition("/")[2]
                for entry in entries
                if entry["type"] == "directory"
            ]
            return sorted(name for name in names if pattern.fullmatch(name))

    @contextmanager
    def _connected(self) -> Iterator[tuple[Any, str]]:
        """fsspec's file system and root path; its failures become :class:`RegistryError`."""
        try:
            yield self.connect()
        except (TrunklineError, FileNotFoundError):
            raise
        except Exception as error:  # each driver raises exceptions of its own
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise
            raise RegistryError(
                f"The store {self._shown} can't be reached: {one_line(error)}.",
                "Check [store] in trunkline.toml, the network and the credentials; then try again.",
            ) from redact_exception(error)

    def connect(self) -> tuple[Any, str]:
        """fsspec's file system and the root path; each process has its own, since none survives a
        fork."""
        if self._connection is None or self._connection[0] != os.getpid():
            from fsspec.core import url_to_fs

            protocol = self._url.partition("://")[0]
            try:
                fs, root = url_to_fs(
                    self._url,
                    **self._options,
                    use_listings_cache=False,
                    skip_instance_cache=True,
                )
            except ImportError as error:
                install = _EXTRAS.get(protocol, f"pip install {error.name or protocol}")
                raise UsageError(
                    f"The store {self._shown} needs a package that is not installed: "
                    f"{one_line(error)}.",
                    f"Install it with: {install}.",
                ) from redact_exception(error)
            except ValueError as error:
                raise UsageError(
                    f"The store's URL '{self._shown}' can't be used: {one_line(error)}.",
                    "Write for example s3://bucket/folder, or the path of a folder.",
                ) from redact_exception(error)
            self._connection = (os.getpid(), fs, str(root).rstrip("/"))
        return self._connection[1], self._connection[2]


@dataclass(frozen=True, slots=True)
class CachedFolder:
    """An entry of the cache, or an incomplete one, for the version with ``digest``."""

    folder: Path
    digest: str
    bytes: int
    complete: bool


class ArtifactCache:
    """Verified local copies of artifacts, in folders named by digest.

    An entry is written to a partial folder and renamed into place under a lock per digest, so many
    processes may share a cache; the operating system releases the lock of a killed process. Each
    use verifies the entry again, so an entry need not survive a power cut.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, digest: str, files: Mapping[str, Any] | None) -> Artifact | None:
        """The entry, if it is valid and up to date.

        Args:
            digest: of the version.
            files: the recorded description of each file; those outside of the identity may have
                changed since the entry was created.
        """
        folder = self._folder(digest)
        if not folder.is_dir():
            return None
        try:
            artifact = read_artifact(folder, digest)
            current = describe_files(artifact)
        except (IntegrityError, OSError):
            return None
        up_to_date = all(
            matches_record(recorded, current.get(name)) for name, recorded in (files or {}).items()
        )
        return artifact if up_to_date else None

    @contextmanager
    def new_entry(self, digest: str) -> Iterator[Path]:
        """An empty folder for a new entry; the block holds the lock of the digest.

        Raises:
            RegistryError: the cache can't be written.
        """
        with self._write_errors(), self._lock(digest):
            folder = self._partial_folder(digest)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def commit(self, folder: Path, digest: str) -> Artifact:
        """Verify a folder of :meth:`new_entry` and rename it to the entry, replacing a bad one.

        Raises:
            IntegrityError: it is not the artifact of this digest.
        """
        artifact = read_artifact(folder, digest)
        target = self._folder(digest)
        if os.path.lexists(target):
            old = self._partial_folder(digest)
            os.rename(target, old / "old")
            shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, target)
        return replace(artifact, folder=target)

    def folders(self) -> list[CachedFolder]:
        """All entries, and the incomplete ones that no process is writing."""
        cached = []
        for folder in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            partial = _PARTIAL.fullmatch(folder.name)
            if partial is None and not _ENTRY.fullmatch(folder.name):
                continue
            digest = "sha256:" + (partial[1] if partial else folder.name)
            if partial is None or self._is_free(digest):
                size = sum(path.lstat().st_size for path in folder.rglob("*"))
                cached.append(CachedFolder(folder, digest, size, partial is None))
        return cached

    def remove(self, cached: CachedFolder) -> bool:
        """Delete an entry; False if another process is working on its digest."""
        from filelock import Timeout

        try:
            with self._write_errors(), self._lock(cached.digest, timeout=0):
                shutil.rmtree(cached.folder)
                self._lock_file(cached.digest).unlink(missing_ok=True)
        except Timeout:
            return False
        except FileNotFoundError:
            return True
        return True

    def _folder(self, digest: str) -> Path:
        return self.root / _hex(digest)

    def _partial_folder(self, digest: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f".fetching-{_hex(digest)}-", dir=self.root))

    def _lock_file(self, digest: str) -> Path:
        return self.root / f".{_hex(digest)}.lock"

    def _is_free(self, digest: str) -> bool:
        from filelock import Timeout

        if not self._lock_file(digest).exists():
            return True
        try:
            with self._lock(digest, timeout=0):
                return True
        except Timeout:
            return False

    @contextmanager
    def _lock(self, digest: str, timeout: float = -1) -> Iterator[None]:
        from filelock import FileLock

        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self._lock_file(digest), timeout=timeout):
            yield

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        from filelock import Timeout

        try:
            yield
        except (FileNotFoundError, Timeout):
            raise
        except OSError as error:
            raise RegistryError(
                f"The cache {self.root} can't be written: {error.strerror or error}.",
                "Free disk space or grant write permission, then try again.",
            ) from error


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _modified(entry: Mapping[str, Any]) -> datetime | None:
    for key in ("LastModified", "last_modified", "updated", "mtime", "created"):
        time = entry.get(key)
        if isinstance(time, datetime):
            return time if time.tzinfo else time.replace(tzinfo=UTC)
    return None

"""Artifacts in an object store, behind any URL that fsspec knows: ``s3://``, ``gs://``,
``memory://``.

Owns: the order in which a version's objects are written and taken away, the copies that are read
from, and what a store's failures mean. Must not know: the registry.

Objects can't be renamed together, so a version is there when its manifest is: the manifest is
written last and removed first. What has none is nobody's version, and upkeep takes it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import KNOWN, MANIFEST, REQUIRED, Artifact, read_artifact
from trunkline.adapters.cache import Cache
from trunkline.adapters.storage import (
    DOMAIN,
    NAME,
    NUMBER,
    Files,
    StoredFolder,
    copy_in,
)
from trunkline.errors import IntegrityError, RegistryError, TrunklineError, UsageError
from trunkline.files import REPAIR

_OF_THE_DISK = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
_EXTRAS = {"s3": "pip install 'trunkline[s3]'"}


class ObjectStorage:
    """Versions below a URL; each is read through a verified copy in the workspace's cache.

    Args:
        url: of the root, such as ``s3://models/trunkline``.
        options: handed to fsspec as they stand.
        cache: of local copies.
    """

    def __init__(self, url: str, options: Mapping[str, Any], cache: Cache) -> None:
        self._url = url.rstrip("/")
        self._options = dict(options)
        self._cache = cache
        self._opened: tuple[int, Any, str] | None = None

    def place(self, path: str) -> str:
        return f"{self._url}/{path}"

    def holds(self, path: str) -> bool:
        return bool(self._objects(path))

    def add(self, artifact: Artifact, path: str) -> Files:
        with self._cache.making(artifact.digest) as work:
            files = copy_in(artifact, work)
            with self._reached() as (fs, root):
                for name in sorted(files, key=lambda one: (one == MANIFEST, one)):
                    fs.put_file(str(work / name), f"{root}/{path}/{name}")
            stored = {name: entry["size"] for name, entry in self._objects(path).items()}
            if stored != {name: entry["bytes"] for name, entry in files.items()}:
                raise RegistryError(
                    f"The store did not keep the files of {self.place(path)} as they were sent.",
                    "Try again; if it stays so, look at the store's own log.",
                )
            self._cache.adopt(work, artifact.digest)
        return files

    def fetch(self, path: str, digest: str, files: Files | None) -> Artifact:
        found = self._cache.read(digest, files)
        if found is not None:
            return found
        with self._cache.making(digest) as work:
            found = self._cache.read(digest, files)
            if found is not None:
                return found
            self._download(path, work, digest, files)
            return self._cache.adopt(work, digest)

    @contextmanager
    def examined(self, path: str, digest: str, files: Files | None) -> Iterator[Artifact]:
        with self._cache.making(digest) as work:
            yield self._download(path, work, digest, files)

    def write_file(self, path: str, name: str, data: bytes) -> None:
        with self._reached() as (fs, root):
            fs.pipe_file(f"{root}/{path}/{name}", data)

    def remove(self, path: str) -> None:
        names = sorted(self._objects(path), key=lambda one: (one != MANIFEST, one))
        with self._reached() as (fs, root):
            for name in names:
                with suppress(FileNotFoundError):
                    fs.rm_file(f"{root}/{path}/{name}")

    def folders(self) -> Iterator[StoredFolder]:
        for domain in self._below("", DOMAIN):
            for name in self._below(domain, NAME):
                found: dict[str, dict[str, Any]] = {}
                for key, entry in self._objects(f"{domain}/{name}").items():
                    number, _, rest = key.partition("/")
                    if NUMBER.fullmatch(number):
                        found.setdefault(number, {})[rest] = entry
                for number, objects in found.items():
                    times = [time for entry in objects.values() if (time := _written(entry))]
                    yield StoredFolder(
                        f"{domain}/{name}/{number}",
                        (domain, name, int(number)),
                        frozenset(objects),
                        sum(entry.get("size") or 0 for entry in objects.values()),
                        max(times, default=None),
                    )

    def tidy(self) -> None:
        """Nothing: an object store has no folders."""

    def _download(self, path: str, work: Path, digest: str, files: Files | None) -> Artifact:
        """Copy a version's objects into an empty folder and verify them there.

        Raises:
            IntegrityError: an object is missing, foreign, or not what the registry knows; nothing
                is downloaded where names or sizes tell already.
        """
        place, objects = self.place(path), self._objects(path)
        if not objects:
            raise IntegrityError(f"There is no artifact at {place}.", REPAIR)
        for name, entry in objects.items():
            if name not in KNOWN:
                raise IntegrityError(
                    f"{place} holds {name!r}, which an artifact may not hold; nothing was opened.",
                    "An artifact is safetensors and JSON only. Remove it if you know its origin.",
                )
            known = (files or {}).get(name)
            if name in REQUIRED and known is not None and entry["size"] != known["bytes"]:
                raise IntegrityError(
                    f"{place}/{name} has {entry['size']:,} bytes, the registry knows "
                    f"{known['bytes']:,}.",
                    REPAIR,
                )
        try:
            with self._reached() as (fs, root):
                for name in objects:
                    fs.get_file(f"{root}/{path}/{name}", str(work / name))
            return read_artifact(work, digest)
        except FileNotFoundError as error:
            raise IntegrityError(f"An object of {place} has just gone: {error}.", REPAIR) from error
        except IntegrityError as error:
            message = error.message.replace(str(work), place)
            raise IntegrityError(message, error.hint) from error

    def _objects(self, path: str) -> dict[str, dict[str, Any]]:
        """What lies under a path, by the rest of its name."""
        with self._reached() as (fs, root):
            try:
                found = fs.find(f"{root}/{path}", detail=True)
            except FileNotFoundError:
                return {}
            begin = len(f"{root}/{path}/")
            return {key[begin:]: entry for key, entry in found.items() if len(key) > begin}

    def _below(self, path: str, grammar: re.Pattern[str]) -> list[str]:
        """The folders under a path whose name may stand in a ref."""
        with self._reached() as (fs, root):
            try:
                entries = fs.ls(f"{root}/{path}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return []
            names = [
                entry["name"].rstrip("/").rpartition("/")[2]
                for entry in entries
                if entry["type"] == "directory"
            ]
            return sorted(name for name in names if grammar.fullmatch(name))

    @contextmanager
    def _reached(self) -> Iterator[tuple[Any, str]]:
        """fsspec's file system and the root in its own words; each failure told in a sentence."""
        try:
            yield self._file_system()
        except (TrunklineError, FileNotFoundError):
            raise
        except Exception as error:  # each store's driver has exceptions of its own
            if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise RegistryError(
                f"The store {self._url} can't be reached: {reason}.",
                "Check [store] in trunkline.toml, the network and the credentials; then try again.",
            ) from error

    def _file_system(self) -> tuple[Any, str]:
        """One a process, since a connection does not outlive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
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
                    f"The store {self._url} needs a package that is not installed: {error}.",
                    f"Install it with: {install}.",
                ) from error
            except ValueError as error:
                raise UsageError(
                    f"The store's URL '{self._url}' can't be used: {error}.",
                    "Write for example s3://bucket/folder, or the path of a folder.",
                ) from error
            self._opened = (os.getpid(), fs, str(root).rstrip("/"))
        return self._opened[1], self._opened[2]


def _written(entry: Mapping[str, Any]) -> datetime | None:
    for key in ("LastModified", "last_modified", "updated", "mtime", "created"):
        time = entry.get(key)
        if isinstance(time, datetime):
            return time if time.tzinfo else time.replace(tzinfo=UTC)
    return None

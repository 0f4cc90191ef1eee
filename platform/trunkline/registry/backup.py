"""Backups: the whole registry in one SQLite file, out of either engine.

Owns: the file and how it comes into being.
Must not know: what the rows say, or how they come back
(:mod:`trunkline.registry.from_backup`).

A backup is the registry at one moment: SQLite's own page copy under a reading transaction, or
every table of PostgreSQL in one repeatable-read transaction. It is written beside its name and
renamed, so it is complete or it is not there.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from sqlalchemy import URL, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from trunkline.errors import RegistryError, UsageError
from trunkline.registry import copying
from trunkline.registry.chain import EVENTS, REQUESTS, Head, head_of
from trunkline.registry.engine import BUSY_SECONDS, Engines, connect, rewriting, translated
from trunkline.registry.schema import HEAD, bring_to_head, revision_of
from trunkline.registry.tables import ChainHead

_PAGES = 1000
UNWRITABLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)
"""SQLite's codes for a file that takes no more."""


class Listener(Protocol):
    """Who is told how far the work is."""

    def stage(self, text: str) -> None: ...

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None: ...


def progress_to(listener: Listener | None) -> copying.Told:
    """A listener, if there is one, as something to call."""
    return lambda done, total: None if listener is None else listener.progress(done, total, {})


@dataclass(frozen=True, slots=True)
class Backup:
    """A file that holds the registry; ``heads`` are the recorded ones of its chains, by name."""

    path: Path
    revision: str
    bytes: int
    heads: Mapping[str, Head]


def back_up(
    url: str | URL,
    target: Path,
    *,
    listener: Listener | None = None,
    busy_seconds: float = BUSY_SECONDS,
) -> Backup:
    """Copy the registry at ``url`` into the new SQLite file ``target`` while others go on.

    A SQLite registry of an older schema is copied as it is; on PostgreSQL it is migrated first.

    Raises:
        UsageError: ``target`` exists already.
        RegistryError: the registry can't be read or is newer than this code, or the file can't be
            written.
    """
    target = target.absolute()
    if os.path.lexists(target):
        raise UsageError(
            f"The file '{target}' exists already, and no backup is written over.",
            "Name another file.",
        )
    if not target.parent.is_dir():
        raise _unwritten(target, "its folder does not exist")
    if not os.access(target.parent, os.W_OK):
        raise _unwritten(target, "its folder is read-only")
    part = target.with_name(f".{target.name}.part")
    engines = connect(url, create=False, busy_seconds=busy_seconds)
    try:
        with _writable(target), translated(engines.where):
            _remove(part)
            revision_of(engines)
            if engines.sqlite:
                _copy_pages(engines, part, listener)
            else:
                bring_to_head(engines, busy_seconds)
                _copy_tables(engines, part, listener)
            found = _described(part)
            _settle(part, target)
            return replace(found, path=target)
    finally:
        engines.reading.dispose()
        _remove(part)


def _copy_pages(engines: Engines, part: Path, listener: Listener | None) -> None:
    """SQLite's own copy. The source stays in one reading transaction, so that writers, who go on,
    don't make it begin anew."""

    def tell(status: int, left: int, total: int) -> None:
        if listener is not None:
            listener.progress(total - left, total, {})

    pooled = engines.reading.raw_connection()
    try:
        source = pooled.driver_connection
        assert isinstance(source, sqlite3.Connection)
        with closing(bare_file(part)) as target:
            source.execute("BEGIN")
            try:
                source.execute("SELECT 1 FROM sqlite_master").fetchone()
                source.backup(target, pages=_PAGES, progress=tell)
            finally:
                source.execute("ROLLBACK")
    finally:
        pooled.close()
    _leave_write_ahead_log(part)


def _copy_tables(engines: Engines, part: Path, listener: Listener | None) -> None:
    made = connect(sqlite_url(part), create=True, busy_seconds=0)
    try:
        bring_to_head(made, 0)
        with (
            engines.reading.connect() as source,
            source.begin(),
            rewriting(made) as target,
        ):
            copying.empty(target)
            copying.copy(source, target, progress_to(listener))
    finally:
        made.reading.dispose()
    _leave_write_ahead_log(part)


def heads_of(session: Session) -> dict[str, Head]:
    """Where both chains end."""
    return {chain.name: head_of(session, chain) for chain in (EVENTS, REQUESTS)}


def _described(path: Path) -> Backup:
    """What is in a backup, out of the file itself."""
    made = connect(sqlite_url(path), create=False, busy_seconds=0)
    try:
        revision = revision_of(made)
        with Session(made.reading) as session:
            heads = _recorded_heads(session) if revision == HEAD else {}
    finally:
        made.reading.dispose()
    return Backup(path, revision or "", path.stat().st_size, heads)


def _recorded_heads(session: Session) -> dict[str, Head]:
    """The heads that are there: a registry that somebody tampered with is copied too."""
    return {row.name: Head(row.seq, row.hash) for row in session.scalars(select(ChainHead))}


def bare_file(path: Path) -> sqlite3.Connection:
    """A new file that is written once, without a journal beside it, and synced at the end."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def _leave_write_ahead_log(path: Path) -> None:
    """One file, which nothing beside it belongs to."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def _settle(part: Path, target: Path) -> None:
    _sync(part)
    os.rename(part, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _remove(part: Path) -> None:
    for path in (
        part,
        *(part.with_name(f"{part.name}-{end}") for end in ("journal", "wal", "shm")),
    ):
        with suppress(FileNotFoundError):
            path.unlink()


@contextmanager
def _writable(target: Path) -> Iterator[None]:
    """What keeps the backup's file from being written is told as that, not as the registry's."""
    try:
        yield
    except OSError as error:
        raise _unwritten(target, error.strerror or str(error)) from error
    except RegistryError as error:
        if sqlite_code(error) not in UNWRITABLE:
            raise
        raise _unwritten(target, _reason(error)) from error


def _unwritten(target: Path, reason: str) -> RegistryError:
    return RegistryError(
        f"The backup '{target}' can't be written: {reason}.",
        "Check its folder and the free space, or name another file.",
    )


def _reason(error: RegistryError) -> str:
    cause = error.__cause__
    return str(cause.orig if isinstance(cause, DBAPIError) else cause)


def sqlite_code(error: BaseException | None) -> int:
    """SQLite's primary result code behind an error, 0 if another failed."""
    for cause in (error, error and error.__cause__):
        known = cause.orig if isinstance(cause, DBAPIError) else cause
        if isinstance(known, sqlite3.Error):
            return getattr(known, "sqlite_errorcode", 0) & 0xFF
    return 0


def sqlite_url(path: Path) -> URL:
    """The URL of a file, whatever stands in its name."""
    return URL.create("sqlite", database=str(path))

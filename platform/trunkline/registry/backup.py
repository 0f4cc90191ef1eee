"""Backups: the whole registry in one SQLite file, from either database engine.

A backup is the registry at one moment: SQLite's own page copy under a reading transaction, or
every table of PostgreSQL in one repeatable-read transaction. It is written under a temporary name
and renamed, so it is complete or absent. :mod:`trunkline.registry.restore` reads it back.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from sqlalchemy import URL, Connection, delete, func, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from trunkline.errors import RegistryError, UsageError, one_line, reason_of
from trunkline.files import fsync_path
from trunkline.registry.chain import Head
from trunkline.registry.engine import BUSY_SECONDS, Engines, connect, exclusive, translate_errors
from trunkline.registry.session import head_revision, migrate_to_head, revision_of
from trunkline.registry.tables import ChainHead, Table

UNWRITABLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)
"""SQLite's codes for a file that can't be written."""

TABLES = Table.metadata.sorted_tables
"""Every table, parents before children."""

_PAGES = 1000
_ROWS = 1000


class Listener(Protocol):
    """Receives the progress of a backup or restore."""

    def stage(self, text: str) -> None: ...

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None: ...


Progress = Callable[[int, int], None]
"""Called with the rows done and the rows expected."""


def progress_of(listener: Listener | None) -> Progress:
    """The listener as a function; without one, a function that does nothing."""
    return lambda done, total: None if listener is None else listener.progress(done, total, {})


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup file; ``heads`` are the stored heads of its chains, by name."""

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
    """Copy the registry at ``url`` into the new SQLite file ``target``; writers are not blocked.

    A SQLite registry with an older schema is copied as it is; PostgreSQL is migrated first.

    Raises:
        UsageError: ``target`` exists already.
        RegistryError: the registry can't be read or is newer than this code, or the file can't be
            written.
    """
    target = target.absolute()
    if os.path.lexists(target):
        raise UsageError(
            f"The file '{target}' exists already; backups are never overwritten.",
            "Name another file.",
        )
    if not target.parent.is_dir():
        raise _write_error(target, "its folder does not exist")
    if not os.access(target.parent, os.W_OK):
        raise _write_error(target, "its folder is read-only")
    part = target.with_name(f".{target.name}.part")
    engines = connect(url, create=False, busy_seconds=busy_seconds)
    try:
        with _translate_write_errors(target), translate_errors(engines.where):
            _remove(part)
            revision_of(engines)
            if engines.sqlite:
                _copy_pages(engines, part, listener)
            else:
                migrate_to_head(engines, busy_seconds)
                _copy_tables(engines, part, listener)
            backup = _describe(part)
            _rename_synced(part, target)
            return replace(backup, path=target)
    finally:
        engines.reading.dispose()
        _remove(part)


def _copy_pages(engines: Engines, part: Path, listener: Listener | None) -> None:
    """SQLite's page copy, in one reading transaction, so that writers don't make it start over."""

    def progress(status: int, remaining: int, total: int) -> None:
        if listener is not None:
            listener.progress(total - remaining, total, {})

    pooled = engines.reading.raw_connection()
    try:
        source = pooled.driver_connection
        assert isinstance(source, sqlite3.Connection)
        with closing(create_unjournaled(part)) as target:
            source.execute("BEGIN")
            try:
                source.execute("SELECT 1 FROM sqlite_master").fetchone()
                source.backup(target, pages=_PAGES, progress=progress)
            finally:
                source.execute("ROLLBACK")
    finally:
        pooled.close()
    _leave_write_ahead_log(part)


def _copy_tables(engines: Engines, part: Path, listener: Listener | None) -> None:
    copy = connect(sqlite_url(part), create=True, busy_seconds=0)
    try:
        migrate_to_head(copy, 0)
        with (
            engines.reading.connect() as source,
            source.begin(),
            exclusive(copy) as target,
        ):
            delete_rows(target)
            copy_rows(source, target, progress_of(listener))
    finally:
        copy.reading.dispose()
    _leave_write_ahead_log(part)


def copy_rows(source: Connection, target: Connection, progress: Progress) -> int:
    """Copy every row of every table between databases of any engine; return how many."""
    total = sum(source.scalar(select(func.count()).select_from(table)) or 0 for table in TABLES)
    done = 0
    for table in TABLES:
        query = select(table).order_by(*table.primary_key.columns)
        rows = source.execution_options(yield_per=_ROWS).execute(query).mappings()
        for page in rows.partitions():
            target.execute(insert(table), [dict(row) for row in page])
            done += len(page)
            progress(done, total)
    return done


def delete_rows(connection: Connection) -> None:
    """Delete every row."""
    if connection.dialect.name == "sqlite":
        for table in reversed(TABLES):
            connection.execute(delete(table))
    else:
        connection.execute(text(f"TRUNCATE {table_names()}"))


def table_names() -> str:
    """The quoted names of all tables, for SQL."""
    return ", ".join(f'"{table.name}"' for table in TABLES)


def _describe(path: Path) -> Backup:
    """Revision and heads, read from the backup file itself."""
    copy = connect(sqlite_url(path), create=False, busy_seconds=0)
    try:
        revision = revision_of(copy)
        with Session(copy.reading) as session:
            heads = _stored_heads(session) if revision == head_revision() else {}
    finally:
        copy.reading.dispose()
    return Backup(path, revision or "", path.stat().st_size, heads)


def _stored_heads(session: Session) -> dict[str, Head]:
    """The heads that are stored; a registry that was tampered with may lack one."""
    return {row.name: Head(row.seq, row.hash) for row in session.scalars(select(ChainHead))}


def create_unjournaled(path: Path) -> sqlite3.Connection:
    """A new SQLite file that is written once, without a journal; sync it afterwards."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def _leave_write_ahead_log(path: Path) -> None:
    """Make the database a single file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def _rename_synced(part: Path, target: Path) -> None:
    fsync_path(part)
    os.rename(part, target)
    fsync_path(target.parent)


def _remove(part: Path) -> None:
    for path in (
        part,
        *(part.with_name(f"{part.name}-{end}") for end in ("journal", "wal", "shm")),
    ):
        with suppress(FileNotFoundError):
            path.unlink()


@contextmanager
def _translate_write_errors(target: Path) -> Iterator[None]:
    """Report that the backup's file can't be written as such, not as an error of the registry."""
    try:
        yield
    except OSError as error:
        raise _write_error(target, reason_of(error)) from error
    except RegistryError as error:
        if sqlite_code(error) not in UNWRITABLE:
            raise
        cause = error.__cause__ or error
        original = cause.orig if isinstance(cause, DBAPIError) else None
        raise _write_error(target, one_line(original or cause)) from error


def _write_error(target: Path, reason: str) -> RegistryError:
    return RegistryError(
        f"The backup '{target}' can't be written: {reason}.",
        "Check its folder and the free disk space, or choose another file.",
    )


def sqlite_code(error: BaseException | None) -> int:
    """SQLite's primary result code behind an error, 0 if the cause is another one."""
    for cause in (error, error and error.__cause__):
        driver_error = cause.orig if isinstance(cause, DBAPIError) else cause
        if isinstance(driver_error, sqlite3.Error):
            return getattr(driver_error, "sqlite_errorcode", 0) & 0xFF
    return 0


def sqlite_url(path: Path) -> URL:
    """The URL of a file with any name."""
    return URL.create("sqlite", database=str(path))

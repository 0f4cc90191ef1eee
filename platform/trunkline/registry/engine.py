"""The database connection: everything that differs between engines, and what its failures mean.

Owns: SQLite's set-up (WAL, foreign keys, who takes the write lock when), read-only opening, and
the translation of driver errors into :class:`RegistryError`.
Must not know: tables and queries.

Read-then-write under a plain BEGIN fails at the lock upgrade whatever the time-out, so writers
begin with BEGIN IMMEDIATE and wait for their turn; readers use a plain BEGIN and never wait.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from trunkline.errors import RegistryError

_WRITES = "trunkline_writes"


@dataclass(frozen=True, slots=True)
class Engines:
    """Two views of one connection pool, by what their transactions are for."""

    url: URL
    where: str
    read_only: bool
    reading: Engine
    writing: Engine


def connect(url: str, *, create: bool, busy_seconds: float) -> Engines:
    """Prepare the engines for ``url``; a SQLite file is opened read-only where it must be.

    Args:
        url: any SQLAlchemy URL.
        create: whether a missing SQLite file may come into being.
        busy_seconds: how long to wait for another process's write lock.

    Raises:
        RegistryError: the URL is wrong, its driver is missing, or the file can't be opened.
    """
    try:
        parsed = make_url(url)
        options: dict[str, Any] = {"json_serializer": dump_json}
        read_only = False
        if parsed.get_backend_name() == "sqlite":
            options["connect_args"] = {"timeout": busy_seconds}
            read_only = _prepare_file(parsed, create, options, busy_seconds)
        engine = create_engine(parsed, **options)
    except OSError as error:
        raise RegistryError(
            f"The registry {_hidden(url)!r} can't be reached: {error.strerror}.",
            "Check that its folder exists and that you may read it.",
        ) from error
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise RegistryError(
            f"The registry's URL {_hidden(url)!r} is not one.",
            "Write for example TRUNKLINE_REGISTRY=sqlite:////data/registry.db.",
        ) from error
    except ModuleNotFoundError as error:
        raise RegistryError(
            f"The registry's URL {_hidden(url)!r} needs the package {error.name!r}.",
            f"Install it with: pip install {error.name}.",
        ) from error
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    where = parsed.database or "in memory"
    if parsed.get_backend_name() != "sqlite":
        where = parsed.render_as_string(hide_password=True)
    writing = engine.execution_options(**{_WRITES: True})
    return Engines(parsed, where, read_only, engine, writing)


def _prepare_file(url: URL, create: bool, options: dict[str, Any], busy_seconds: float) -> bool:
    """Look at the file before SQLite does; gives whether it can only be read."""
    name = url.database
    if not name or name == ":memory:":
        return False
    if name.startswith("file:"):
        return url.query.get("mode") == "ro" or "immutable" in url.query
    path = Path(name)
    if path.is_dir():
        raise RegistryError(
            f"The registry '{path}' is a folder, not a database file.",
            "Name a file, for example TRUNKLINE_REGISTRY=sqlite:////data/registry.db.",
        )
    if not path.exists():
        if not create:
            raise RegistryError(
                f"There is no registry at '{path}'.",
                "Name the workspace with --workspace, or make a registry by training an adapter.",
            )
        if not path.parent.is_dir():
            raise RegistryError(
                f"The registry can't be made: the folder '{path.parent}' does not exist.",
                f"Make it with: mkdir -p '{path.parent}'.",
            )
        if not os.access(path.parent, os.W_OK):
            raise RegistryError(
                f"The registry '{path}' can't be made: the folder is read-only.",
                "Name a workspace that you may write with --workspace.",
            )
        return False
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return False
    if not os.access(path, os.R_OK):
        raise RegistryError(
            f"The registry '{path}' can't be read by this user.",
            "Ask its owner for the right to read it.",
        )

    def open_read_only() -> sqlite3.Connection:
        log = Path(f"{path}-wal")
        settled = not log.exists() or log.stat().st_size == 0
        query = "mode=ro&immutable=1" if settled else "mode=ro"
        return sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?{query}",
            uri=True,
            timeout=busy_seconds,
            check_same_thread=False,
        )

    options.update(creator=open_read_only, poolclass=QueuePool)
    return True


def _set_up_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def use_write_ahead_log(engine: Engine, busy_seconds: float) -> None:
    """Let readers go on while one writes; SQLite only, kept in the file, done before its tables.

    SQLite does not wait for the lock that this takes, so processes that start together retry.
    """
    deadline = time.monotonic() + busy_seconds
    pooled = engine.raw_connection()
    try:
        cursor = pooled.cursor()
        while True:
            try:
                cursor.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
    finally:
        pooled.close()


@contextmanager
def foreign_keys_off(connection: Connection) -> Iterator[None]:
    """Around a migration on SQLite: dropping a rebuilt table must not cascade.

    Enter before the transaction begins, since SQLite ignores the switch inside one.
    """
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys = ON")


def foreign_keys_broken(connection: Connection) -> bool:
    """Whether a row refers to one that is not there; SQLite only, before a migration's commit."""
    return connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None


def dump_json(value: Any) -> str:
    """JSON that every database takes: not-a-number and infinities become null."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn a driver's errors into :class:`RegistryError`, one sentence and a next step each."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        raise _explained(where, error) from error


_MEANINGS = (
    (
        ("locked", "busy"),
        "is locked by another process",
        "Try again; if it stays so, end the process that is writing to it.",
    ),
    (
        ("readonly", "read-only"),
        "is read-only",
        "Listing works; to write, get the right to write it or name another workspace.",
    ),
    (
        ("not a database", "malformed", "encrypted"),
        "is not a database or is damaged",
        "Restore it from a backup, or move it away to start a new one.",
    ),
    (("disk is full", "disk i/o"), "can't be written", "Check the disk and its free space."),
    (
        ("unable to open",),
        "can't be opened",
        "Check that its folder exists and that you may read and write it.",
    ),
)


def _explained(where: str, error: Exception) -> RegistryError:
    cause = str(getattr(error, "orig", None) or error).strip().splitlines()
    reason = cause[0] if cause else type(error).__name__
    for words, meaning, hint in _MEANINGS:
        if any(word in reason.lower() for word in words):
            return RegistryError(f"The registry '{where}' {meaning} ({reason}).", hint)
    return RegistryError(
        f"The registry '{where}' failed: {reason}.", "Run it with --debug for the whole story."
    )


def _hidden(url: str) -> str:
    """The URL without what may be a password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}…@{rest.rpartition('@')[2]}" if "@" in rest else url

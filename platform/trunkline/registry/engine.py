"""The database connection: everything that differs between engines, and what its failures mean.

Owns: SQLite's set-up (WAL, foreign keys, who takes the write lock when), PostgreSQL's (isolation,
lock time-out), read-only opening, and the translation of driver errors into
:class:`RegistryError`.
Must not know: tables and queries.

On both engines a reading transaction sees the database at one moment and never waits for a writer.
On SQLite, read-then-write under a plain BEGIN fails at the lock upgrade whatever the time-out, so
writers begin with BEGIN IMMEDIATE and wait for their turn. On PostgreSQL writers wait for the rows
that they lock.
"""

from __future__ import annotations

import json
import math
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    IntegrityError,
    NoSuchModuleError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from trunkline.errors import RegistryError

BUSY_SECONDS = 10.0
"""How long a writer waits for another one before it gives up."""

_WRITES = "trunkline_writes"
_FILE = "trunkline_file"
_UNSTORABLE = re.compile(r"[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Engines:
    """Two views of one connection pool, by what their transactions are for."""

    url: URL
    where: str
    read_only: bool
    reading: Engine
    writing: Engine

    @property
    def sqlite(self) -> bool:
        """Whether the database is a SQLite file, or SQLite in memory."""
        return self.url.get_backend_name() == "sqlite"


def connect(url: str | URL, *, create: bool, busy_seconds: float) -> Engines:
    """Prepare the engines for ``url``; a SQLite file is opened read-only where it must be.

    Args:
        url: SQLAlchemy's URL of a SQLite file or a PostgreSQL database.
        create: whether a missing SQLite file may come into being.
        busy_seconds: how long to wait for another process's write lock.

    Raises:
        RegistryError: the URL is wrong, its driver is missing, or the file can't be opened.
    """
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
        if backend not in ("sqlite", "postgresql"):
            raise NoSuchModuleError(backend)
        options: dict[str, Any] = {"json_serializer": dump_json}
        read_only = False
        if backend == "sqlite":
            options["connect_args"] = {"timeout": busy_seconds}
            read_only = _prepare_file(parsed, create, options, busy_seconds)
        else:
            options.update(_postgresql_options(parsed, busy_seconds))
        engine = create_engine(parsed, **options)
    except OSError as error:
        raise RegistryError(
            f"The registry {_hidden(str(url))!r} can't be reached: {error.strerror}.",
            "Check that its folder exists and that you may read it.",
        ) from error
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise RegistryError(
            f"The registry's URL {_hidden(str(url))!r} is not one of SQLite or PostgreSQL.",
            "Write for example TRUNKLINE_REGISTRY=sqlite:////data/registry.db, or "
            "postgresql://user@host/database.",
        ) from error
    except ModuleNotFoundError as error:
        raise RegistryError(
            f"The registry's URL {_hidden(str(url))!r} needs the package {error.name!r}.",
            "Install it with: pip install 'trunkline[postgres]'.",
        ) from error
    if backend == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        name = parsed.database or ":memory:"
        if name != ":memory:" and not name.startswith("file:"):
            _watch_file(engine, Path(name))
        writing = engine.execution_options(**{_WRITES: True})
        return Engines(parsed, parsed.database or "in memory", read_only, engine, writing)
    shown = parsed.difference_update_query(["password", "sslpassword", "options"])
    return Engines(
        parsed,
        shown.render_as_string(hide_password=True),
        read_only,
        engine.execution_options(isolation_level="REPEATABLE READ"),
        engine.execution_options(isolation_level="READ COMMITTED"),
    )


def _postgresql_options(url: URL, busy_seconds: float) -> dict[str, Any]:
    """A writer gives up after the time-out, and a connection that the server dropped is replaced.

    What the URL's own ``options`` say comes after ours, and so wins.
    """
    own = url.query.get("options", ())
    said = [own] if isinstance(own, str) else [*own]
    waits = max(1, round(busy_seconds * 1000))
    return {
        "pool_pre_ping": True,
        "connect_args": {
            "connect_timeout": max(2, math.ceil(busy_seconds)),
            "options": " ".join([f"-c lock_timeout={waits}", *said]),
            "application_name": "trunkline",
        },
    }


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


def _watch_file(engine: Engine, path: Path) -> None:
    """Notice that the file was removed or replaced: SQLite would go on with what has no name.

    A removed one fails whoever asks, and is not made anew; one that was put in its place is opened.
    """
    known = False

    def gone() -> RegistryError:
        return RegistryError(
            f"The registry '{path}' was removed while it was in use.",
            "Put it back, or restore a backup: trunkline db restore FILE.",
        )

    def identity() -> tuple[int, int] | None:
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def before(*_: Any) -> None:
        if known and not path.exists():
            raise gone()

    def opened(_connection: Any, entry: ConnectionPoolEntry) -> None:
        nonlocal known
        known = True
        entry.info[_FILE] = identity()

    def taken(_connection: Any, entry: ConnectionPoolEntry, _fairy: Any) -> None:
        now = identity()
        if now is None:
            raise gone()
        if entry.info.get(_FILE) != now:
            raise DisconnectionError("the file was replaced")

    event.listen(engine, "do_connect", before)
    event.listen(engine, "connect", opened)
    event.listen(engine, "checkout", taken)


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
def rewriting(engines: Engines) -> Iterator[Connection]:
    """One transaction that may turn the whole database over; all of it happens, or nothing.

    On SQLite references are checked at its end and not before, since dropping a table that is
    being rebuilt must not cascade.

    Raises:
        RegistryError: a row would refer to one that is not there.
    """
    with engines.writing.connect() as connection:
        if not engines.sqlite:
            with connection.begin():
                yield connection
            return
        with _foreign_keys_off(connection), connection.begin():
            yield connection
            if _foreign_keys_broken(connection):
                raise RegistryError(
                    f"The registry '{engines.where}' was left as it was: references between its "
                    "rows would break.",
                    "Restore a backup of it, or report this.",
                )


@contextmanager
def _foreign_keys_off(connection: Connection) -> Iterator[None]:
    """Enter before the transaction begins, since SQLite ignores the switch inside one."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys = ON")


def _foreign_keys_broken(connection: Connection) -> bool:
    return connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None


def dump_json(value: Any) -> str:
    """JSON that every database takes: not-a-number and infinities become null, and what is no
    text (NUL, lone surrogates) U+FFFD."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def storable(text: str) -> str:
    """Text that every database takes: NUL and lone surrogates become U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn a driver's errors into :class:`RegistryError`, one sentence and a next step each."""
    try:
        yield
    except (DBAPIError, PoolTimeoutError, sqlite3.Error) as error:
        raise _explained(where, error) from error


_LOCKED = (
    "is locked by another process",
    "Try again; if it stays so, end the process that is writing to it.",
)
_READ_ONLY = (
    "is read-only",
    "Listing works; to write, get the right to write it or name another workspace.",
)
_FULL = ("can't be written", "Check the disk and its free space.")
_AWAY = (
    "can't be reached",
    "Check that its server runs, and the host, database and user in TRUNKLINE_REGISTRY.",
)
_CROWDED = ("has no free connection", "Try again; if it stays so, end what else is using it.")
_CONTRADICTED = (
    "refused what contradicts the rows that are there",
    "See what is there with: trunkline adapters list, or trunkline runs list.",
)

_MEANINGS = (
    (("locked", "busy"), _LOCKED),
    (("readonly", "read-only"), _READ_ONLY),
    (
        ("not a database", "malformed", "encrypted"),
        (
            "is not a database or is damaged",
            "Restore it with: trunkline db restore FILE --replace, or move it away to start a new "
            "one.",
        ),
    ),
    (("disk is full", "disk i/o"), _FULL),
    (
        ("unable to open",),
        ("can't be opened", "Check that its folder exists and that you may read and write it."),
    ),
)
"""Of SQLite, by words of its message."""

_STATES = {
    "55P03": _LOCKED,
    "40P01": _LOCKED,
    "40001": _LOCKED,
    "25006": _READ_ONLY,
    "42501": ("may not be used like this by its user", "Ask its owner for the right to write it."),
    "53100": _FULL,
    "53300": _CROWDED,
    "57P01": _AWAY,
    "57P02": _AWAY,
    "57P03": _AWAY,
}
"""Of PostgreSQL, by SQLSTATE, since its messages may be in any language."""


def _explained(where: str, error: Exception) -> RegistryError:
    known = getattr(error, "orig", None) or error
    cause = str(known).strip().splitlines()
    reason = cause[0] if cause else type(error).__name__
    meaning = _meaning(error, known, reason)
    if meaning is not None:
        return RegistryError(f"The registry '{where}' {meaning[0]} ({reason}).", meaning[1])
    return RegistryError(
        f"The registry '{where}' failed: {reason}.", "Run it with --debug for the whole story."
    )


def _meaning(error: Exception, cause: BaseException, reason: str) -> tuple[str, str] | None:
    if isinstance(error, PoolTimeoutError):
        return _CROWDED
    if isinstance(error, IntegrityError):
        return _CONTRADICTED
    if not isinstance(cause, sqlite3.Error):
        state = getattr(cause, "sqlstate", None)
        lost = getattr(error, "connection_invalidated", False)
        away = lost or (state is None and type(cause).__name__ == "OperationalError")
        return _AWAY if away else _STATES.get(state or "")
    for words, meaning in _MEANINGS:
        if any(word in reason.lower() for word in words):
            return meaning
    return None


def _hidden(url: str) -> str:
    """The URL without what may be a password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}…@{rest.rpartition('@')[2]}" if "@" in rest else url

"""Database connections: everything that differs between SQLite and PostgreSQL.

Set-up of SQLite (WAL, foreign keys, write locks) and PostgreSQL (isolation, lock time-out),
read-only opening, and the translation of driver errors into :class:`RegistryError`.

On both, a reading transaction sees the database at one moment and never waits for a writer. On
SQLite, read-then-write under a plain BEGIN fails at the lock upgrade whatever the time-out, so
writers begin with BEGIN IMMEDIATE and wait for their turn. On PostgreSQL, writers wait for the rows
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

from trunkline.errors import RegistryError, one_line
from trunkline.redaction import redact_exception, redact_url, remember_url

BUSY_SECONDS = 10.0
"""How long a writer waits for another one before it fails."""

_WRITES = "trunkline_writes"
_FILE = "trunkline_file"
_UNSTORABLE = re.compile(r"[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Engines:
    """Two views of one connection pool: for reading and for writing transactions."""

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
    """Create the engines for ``url``; a SQLite file without write permission opens read-only.

    Args:
        url: SQLAlchemy URL of a SQLite file or a PostgreSQL database.
        create: whether a missing SQLite file may be created.
        busy_seconds: how long to wait for another process's write lock.

    Raises:
        RegistryError: the URL is wrong, its driver is missing, or the file can't be opened.
    """
    remember_url(str(url) if isinstance(url, str) else url.render_as_string(hide_password=False))
    parsed = _parse_url(url)
    shown = redact_url(parsed.render_as_string(hide_password=False))
    backend = parsed.get_backend_name()
    options: dict[str, Any] = {"json_serializer": dump_json, "hide_parameters": True}
    read_only = False
    try:
        if backend == "sqlite":
            options["connect_args"] = {"timeout": busy_seconds}
            read_only = _prepare_file(parsed, create, options, busy_seconds)
        else:
            options.update(_postgresql_options(parsed, busy_seconds))
        engine = create_engine(parsed, **options)
    except OSError as error:
        raise RegistryError(
            f"The registry {shown!r} can't be reached: {error.strerror}.",
            "Check that its folder exists and that you may read it.",
        ) from redact_exception(error)
    except (ArgumentError, NoSuchModuleError, ValueError, TypeError) as error:
        raise RegistryError(
            f"The registry URL {shown!r} can't be used: {one_line(error)}.", _URL_HINT
        ) from redact_exception(error)
    except ModuleNotFoundError as error:
        raise RegistryError(
            f"The registry URL {shown!r} needs the package {error.name!r}.",
            "Install it with: pip install 'trunkline[postgres]'.",
        ) from redact_exception(error)
    if backend == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        name = parsed.database or ":memory:"
        if name != ":memory:" and not name.startswith("file:"):
            _watch_file(engine, Path(name))
        writing = engine.execution_options(**{_WRITES: True})
        return Engines(parsed, parsed.database or "in memory", read_only, engine, writing)
    return Engines(
        parsed,
        shown,
        read_only,
        engine.execution_options(isolation_level="REPEATABLE READ"),
        engine.execution_options(isolation_level="READ COMMITTED"),
    )


_URL_HINT = (
    "Write for example TRUNKLINE_REGISTRY=sqlite:////data/registry.db, or "
    "postgresql://USER@HOST/DATABASE."
)
_USERINFO = re.compile(r"[^:/]*(?::[^@]*)?@")
"""The user and password of a URL, as SQLAlchemy reads them after ``//``."""


def _parse_url(url: str | URL) -> URL:
    """Parse a registry URL without ever quoting a part that may hold a password.

    Raises:
        RegistryError: a part can't be read, or could be read in two ways; the message names it.
    """
    if isinstance(url, URL):
        return url
    scheme, separator, rest = url.strip().partition("://")
    url = f"{scheme.lower()}{separator}{rest}" if separator else scheme  # RFC 3986: in any case
    problem = _url_problem(url)
    if problem is None:
        try:
            parsed = make_url(url)
            backend = parsed.get_backend_name()
        except (ArgumentError, NoSuchModuleError, ValueError):
            problem = "has a host or a port that can't be read"
        else:
            if backend in ("sqlite", "postgresql"):
                return parsed
            problem = "names neither SQLite nor PostgreSQL"
    raise RegistryError(f"The registry URL {redact_url(url)!r} {problem}.", _URL_HINT)


def _url_problem(url: str) -> str | None:
    """What is wrong with the form of a registry URL, if anything."""
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(r"[\w+]+", scheme):
        if re.match(r"[\w+]+:/[^/]", url):
            return "has one slash after its scheme; it must have two, as in postgresql://"
        return "names neither SQLite nor PostgreSQL: it has no scheme such as postgresql://"
    if scheme.partition("+")[0] == "sqlite" and rest.startswith("/"):
        return None
    userinfo = _USERINFO.match(rest)
    remainder = rest[userinfo.end() :] if userinfo else rest
    if "@" in (remainder if userinfo else remainder.partition("?")[0]):
        return (
            "has an '@' that could belong to its password: in the user, the password, the "
            "database and the parameters, write %40 for '@', %2F for '/' and %3A for ':'"
        )
    authority = re.split("[/?]", remainder, maxsplit=1)[0]
    if "," in authority:
        return "names several hosts, which is not supported"
    host, colon, port = authority.rpartition(":")
    if colon and not authority.endswith("]"):
        if port and not (re.fullmatch("[0-9]{1,5}", port) and int(port) <= 65535):
            return "has a port that is not a number up to 65535"
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            return "has a host with ':'; write an IPv6 address in brackets, as in [::1]"
    if any(sign.isspace() for sign in authority):
        return "has a space in its host"
    return None


def _postgresql_options(url: URL, busy_seconds: float) -> dict[str, Any]:
    """Lock time-out and reconnection; the URL's own ``options`` come last and win."""
    options = url.query.get("options", ())
    own_options = [options] if isinstance(options, str) else [*options]
    lock_timeout = max(1, round(busy_seconds * 1000))
    return {
        "pool_pre_ping": True,
        "connect_args": {
            "connect_timeout": max(2, math.ceil(busy_seconds)),
            "options": " ".join([f"-c lock_timeout={lock_timeout}", *own_options]),
            "application_name": "trunkline",
        },
    }


def _prepare_file(url: URL, create: bool, options: dict[str, Any], busy_seconds: float) -> bool:
    """Check the file before SQLite opens it; return whether it can only be read."""
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
                "Choose the workspace with --workspace; training an adapter creates a registry.",
            )
        if not path.parent.is_dir():
            raise RegistryError(
                f"The registry can't be created: the folder '{path.parent}' does not exist.",
                f"Create it with: mkdir -p '{path.parent}'.",
            )
        if not os.access(path.parent, os.W_OK):
            raise RegistryError(
                f"The registry '{path}' can't be created: its folder is read-only.",
                "Choose a writable workspace with --workspace.",
            )
        return False
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return False
    if not os.access(path, os.R_OK):
        raise RegistryError(
            f"The registry '{path}' can't be read by this user.",
            "Ask its owner for read permission.",
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
    """Detect that the file was removed or replaced; SQLite would go on with the unlinked file.

    A removed file is an error and is not created again; a replacement is opened.
    """
    opened_before = False

    def missing() -> RegistryError:
        return RegistryError(
            f"The registry '{path}' was removed while it was in use.",
            "Put it back, or restore a backup: trunkline db restore FILE.",
        )

    def identity() -> tuple[int, int] | None:
        try:
            status = path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def before_connect(*_: Any) -> None:
        if opened_before and not path.exists():
            raise missing()

    def after_connect(_connection: Any, entry: ConnectionPoolEntry) -> None:
        nonlocal opened_before
        opened_before = True
        entry.info[_FILE] = identity()

    def on_checkout(_connection: Any, entry: ConnectionPoolEntry, _fairy: Any) -> None:
        now = identity()
        if now is None:
            raise missing()
        if entry.info.get(_FILE) != now:
            raise DisconnectionError("the file was replaced")

    event.listen(engine, "do_connect", before_connect)
    event.listen(engine, "connect", after_connect)
    event.listen(engine, "checkout", on_checkout)


def _set_up_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def use_write_ahead_log(engine: Engine, busy_seconds: float) -> None:
    """Switch a SQLite file to WAL, before its tables are created, so that readers never wait.

    SQLite does not wait for the lock that this needs, so processes that start together retry.
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
def exclusive(engines: Engines) -> Iterator[Connection]:
    """One transaction that may rewrite the whole database.

    On SQLite, foreign keys are checked at its end only, since dropping a table that is being
    rebuilt must not cascade.

    Raises:
        RegistryError: a foreign key would be violated; the transaction was rolled back.
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
                    f"Foreign keys of the registry '{engines.where}' would be violated; nothing "
                    "was changed.",
                    "Restore a backup, or report this as a bug.",
                )


@contextmanager
def _foreign_keys_off(connection: Connection) -> Iterator[None]:
    """Enter before the transaction begins: inside one, SQLite ignores the switch."""
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
    """JSON that every database accepts: NaN and infinities become null, NUL and lone surrogates
    U+FFFD."""
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
    """Text that every database accepts: NUL and lone surrogates become U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


@contextmanager
def translate_errors(where: str) -> Iterator[None]:
    """Turn a driver's errors into :class:`RegistryError` with a cause and a next step."""
    try:
        yield
    except (DBAPIError, PoolTimeoutError, sqlite3.Error) as error:
        raise _registry_error(where, error) from redact_exception(error)


_LOCKED = (
    "is locked by another process",
    "Try again; if it stays locked, stop the process that is writing to it.",
)
_READ_ONLY = (
    "is read-only",
    "Listing works; to write, get write permission or choose another workspace.",
)
_FULL = ("can't be written", "Check the disk and its free space.")
_UNREACHABLE = (
    "can't be reached",
    "Check that its server runs, and the host, database and user in TRUNKLINE_REGISTRY.",
)
_NO_CONNECTION = (
    "has no free connection",
    "Try again; if it persists, stop other programs that use the database.",
)
_CONFLICT = (
    "rejected rows that conflict with stored ones",
    "List the stored rows with: trunkline adapters list, or trunkline runs list.",
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
"""SQLite's errors, by parts of their message."""

_STATES = {
    "55P03": _LOCKED,
    "40P01": _LOCKED,
    "40001": _LOCKED,
    "25006": _READ_ONLY,
    "42501": ("denies this operation to its user", "Ask its owner for write permission."),
    "53100": _FULL,
    "53300": _NO_CONNECTION,
    "57P01": _UNREACHABLE,
    "57P02": _UNREACHABLE,
    "57P03": _UNREACHABLE,
}
"""PostgreSQL's errors, by SQLSTATE, since its messages may be in any language."""


def _registry_error(where: str, error: Exception) -> RegistryError:
    cause = getattr(error, "orig", None) or error
    reason = one_line(cause)
    meaning = _meaning(error, cause, reason)
    if meaning is not None:
        return RegistryError(f"The registry '{where}' {meaning[0]} ({reason}).", meaning[1])
    return RegistryError(
        f"The registry '{where}' failed: {reason}.", "Run it with --debug for the traceback."
    )


def _meaning(error: Exception, cause: BaseException, reason: str) -> tuple[str, str] | None:
    if isinstance(error, PoolTimeoutError):
        return _NO_CONNECTION
    if isinstance(error, IntegrityError):
        return _CONFLICT
    if not isinstance(cause, sqlite3.Error):
        state = getattr(cause, "sqlstate", None)
        lost = getattr(error, "connection_invalidated", False)
        unreachable = lost or (state is None and type(cause).__name__ == "OperationalError")
        return _UNREACHABLE if unreachable else _STATES.get(state or "")
    for parts, meaning in _MEANINGS:
        if any(part in reason.lower() for part in parts):
            return meaning
    return None

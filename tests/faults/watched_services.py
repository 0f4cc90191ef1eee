"""Make every call that changes a database or an object store a step.

The drivers are wrapped. SQLite's own writes to its log and file count as one step, the commit.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Literal

from faults.steps import Watch, die, without_random_parts

_WRITING = re.compile(
    r"\s*(?:INSERT|UPDATE|DELETE|REPLACE|CREATE|ALTER|DROP|TRUNCATE|COPY|VACUUM|ATTACH|COMMIT"
    r"|PRAGMA\s+\w+\s*=)\b|\s*PRAGMA\s+journal_mode",
    re.IGNORECASE,
)
_PUTS = frozenset({
    "put_object", "create_multipart_upload", "upload_part", "complete_multipart_upload",
    "copy_object", "delete_object", "delete_objects",
})  # fmt: skip


def watch_services(watch: Watch) -> None:
    """Install the wrappers around every installed driver."""
    _wrap_sqlite(watch)
    _wrap_postgresql(watch)
    _wrap_s3(watch)


def _wrap_sqlite(watch: Watch) -> None:
    real = sqlite3.connect

    class WatchedCursor(sqlite3.Cursor):
        def execute(self, sql: str, *args: Any) -> Any:
            return _statement(watch, sql, lambda: super(WatchedCursor, self).execute(sql, *args))

        def executemany(self, sql: str, *args: Any) -> Any:
            return _statement(
                watch, sql, lambda: super(WatchedCursor, self).executemany(sql, *args)
            )

        def executescript(self, sql: str) -> Any:
            return _statement(watch, sql, lambda: super(WatchedCursor, self).executescript(sql))

    class WatchedConnection(sqlite3.Connection):
        def cursor(self, factory: Any = WatchedCursor) -> Any:
            return super().cursor(factory)

        def commit(self) -> None:
            act = super().commit
            if self.in_transaction:
                watch.take("commit", "sqlite", act)
            else:
                act()

        def __exit__(self, kind: Any, error: Any, trace: Any) -> Literal[False]:
            if kind is None:
                self.commit()
            else:
                self.rollback()
            return False

        def backup(self, target: sqlite3.Connection, *, progress: Any = None, **how: Any) -> Any:
            def report(*figures: int) -> None:
                watch.take("backup", "pages", lambda: progress and progress(*figures))

            act = super().backup
            return watch.take("backup", "whole", lambda: act(target, progress=report, **how))

    @wraps(real)
    def connect(*args: Any, **named: Any) -> sqlite3.Connection:
        named.setdefault("factory", WatchedConnection)
        return real(*args, **named)

    sqlite3.connect = sqlite3.dbapi2.connect = connect  # type: ignore[assignment,attr-defined]


def _wrap_postgresql(watch: Watch) -> None:
    try:
        import psycopg
    except ImportError:
        return
    for name in ("execute", "executemany"):
        real = getattr(psycopg.Cursor, name)

        @wraps(real)
        def run(cursor: Any, query: Any, *args: Any, _real: Any = real, **named: Any) -> Any:
            text = query.decode() if isinstance(query, bytes) else str(query)
            return _statement(watch, text, lambda: _real(cursor, query, *args, **named))

        setattr(psycopg.Cursor, name, run)
    real_commit = psycopg.Connection.commit
    idle = psycopg.pq.TransactionStatus.IDLE

    @wraps(real_commit)
    def commit(connection: Any) -> None:
        if connection.info.transaction_status == idle:
            real_commit(connection)
        else:
            watch.take("commit", "postgresql", lambda: real_commit(connection))

    psycopg.Connection.commit = commit  # type: ignore[method-assign]


def _wrap_s3(watch: Watch) -> None:
    try:
        from s3fs.core import S3FileSystem
    except ImportError:
        return
    real = S3FileSystem._call_s3

    @wraps(real)
    async def call(system: Any, method: str, *args: Any, **named: Any) -> Any:
        if method not in _PUTS:
            return await real(system, method, *args, **named)
        parameters = {**named, **{key: value for part in args for key, value in dict(part).items()}}
        met = watch.arrive("put", f"{method} {without_random_parts(_key(parameters))}")
        result = await real(system, method, *args, **named)
        if met == "after":
            die()
        return result

    S3FileSystem._call_s3 = call


def _statement(watch: Watch, sql: str, act: Callable[[], Any]) -> Any:
    """Execute a statement; only those that write are steps."""
    if not _WRITING.match(sql):
        return act()
    if sql.strip().upper().startswith("COMMIT"):
        return watch.take("commit", "statement", act)
    return watch.take("sql", _beginning(sql), act)


def _beginning(sql: str) -> str:
    """The verb and the table; indexes have no name, since SQLAlchemy creates them in any order."""
    args = sql.split()
    index = "INDEX" in args[1:3]
    return " ".join(args[: args.index("INDEX") + 1] if index else args[:3])


def _key(parameters: Mapping[str, Any]) -> str:
    if "Key" in parameters:
        return str(parameters["Key"])
    listed = parameters.get("Delete", {}).get("Objects", ())
    return ", ".join(sorted(one["Key"] for one in listed))

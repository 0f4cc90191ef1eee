"""Restores: a backup back into a registry on either engine, in one transaction.

The backup itself is only read: a copy of it is migrated to the newest schema, and both its chains
are verified, before the registry is changed.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from sqlalchemy import URL, Connection, func, insert, select, text, update
from sqlalchemy.orm import Session

from trunkline.errors import IntegrityError, NotFoundError, RefusedError, RegistryError, one_line
from trunkline.registry.audit import Audit
from trunkline.registry.backup import (
    TABLES,
    UNWRITABLE,
    Listener,
    back_up,
    copy_rows,
    create_unjournaled,
    delete_rows,
    progress_of,
    sqlite_code,
    sqlite_url,
    table_names,
)
from trunkline.registry.chain import EVENTS, Head, append, event_values, heads_of
from trunkline.registry.engine import BUSY_SECONDS, Engines, connect, exclusive, translate_errors
from trunkline.registry.session import Sessions, migrate_to_head, revision_of
from trunkline.registry.tables import Adapter, ChainHead

PREVIOUS = "registry-before-"
"""Prefix of the file that holds what a restore replaced."""

_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_Numbers = dict[tuple[str, str], tuple[str, int]]
"""Domain and name → task and the highest number ever reserved."""


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """A registry after :func:`restore`.

    Attributes:
        rows: how many came from the backup.
        previous: the file with the registry that was replaced, if it held rows.
        heads: of the chains now; the last event is the restore itself.
    """

    where: str
    rows: int
    previous: Path | None
    heads: Mapping[str, Head]


def restore(
    url: str | URL,
    source: Path,
    *,
    save_as: Path,
    replace: bool = False,
    actor: str | None = None,
    listener: Listener | None = None,
    busy_seconds: float = BUSY_SECONDS,
) -> RestoreResult:
    """Read the backup ``source`` into the registry at ``url``, in one transaction.

    The backup's schema, pages and chains are verified first. Version numbers that the old registry
    reserved stay used. A SQLite file that is too damaged to be backed up is moved to ``save_as``
    as it is.

    Args:
        save_as: a new file for a backup of what the registry holds.
        replace: whether the registry may hold rows.

    Raises:
        NotFoundError: there is no such backup.
        RefusedError: the registry holds rows, and ``replace`` is False.
        IntegrityError: a chain of the backup is broken.
        RegistryError: the backup can't be read, is of a newer release, or is not one.
    """

    def read(replacing: bool) -> RestoreResult:
        return _read_into(url, copy, source, replacing, save_as, actor, listener, busy_seconds)

    with _verified_copy(source, listener, busy_seconds) as copy:
        try:
            return read(replace)
        except RegistryError as error:
            if not replace or sqlite_code(error) not in _CORRUPT:
                raise
        previous = _move_damaged(url, save_as)
        result = read(False)
        return RestoreResult(result.where, result.rows, previous, result.heads)


def unused_path(folder: Path, stamp: str) -> Path:
    """A path in ``folder`` for ``save_as`` where no file exists yet."""
    suffixes = (f"-{turn}" if turn > 1 else "" for turn in count(1))
    paths = (folder / f"{PREVIOUS}{stamp}{suffix}.db" for suffix in suffixes)
    return next(path for path in paths if not path.exists())


def _read_into(
    url: str | URL,
    copy: Engines,
    source: Path,
    replace: bool,
    save_as: Path,
    actor: str | None,
    listener: Listener | None,
    busy_seconds: float,
) -> RestoreResult:
    engines = connect(url, create=True, busy_seconds=busy_seconds)
    stage = listener.stage if listener is not None else lambda text: None
    try:
        with translate_errors(engines.where):
            migrate_to_head(engines, busy_seconds)
            with exclusive(engines) as target, copy.reading.connect() as backup:
                _lock(target)
                previous = None
                if _holds_rows(target):
                    if not replace:
                        raise RefusedError(
                            f"The registry '{engines.where}' holds rows already.",
                            "Add --replace to save them in a file first, or set "
                            "TRUNKLINE_REGISTRY to another registry.",
                        )
                    stage("saving the old registry")
                    for partial in save_as.parent.glob(f".{PREVIOUS}*.part*"):
                        partial.unlink()
                    previous = back_up(
                        url, save_as, listener=listener, busy_seconds=busy_seconds
                    ).path
                stage("copying the rows")
                with _deleted_on_error(previous):
                    numbers = _reserved_numbers(target)
                    delete_rows(target)
                    rows = copy_rows(backup, target, progress_of(listener))
                    _keep_reserved(target, numbers)
                    _advance_sequences(target)
                    heads = _add_event(target, source, previous, rows, actor)
    finally:
        engines.reading.dispose()
    return RestoreResult(engines.where, rows, previous, heads)


@contextmanager
def _deleted_on_error(path: Path | None) -> Iterator[None]:
    """Delete the saved registry if the restore fails and so replaces nothing."""
    try:
        yield
    except BaseException:
        if path is not None:
            path.unlink(missing_ok=True)
        raise


def _add_event(
    connection: Connection, source: Path, previous: Path | None, rows: int, actor: str | None
) -> dict[str, Head]:
    with Session(connection) as session:
        detail = {
            "backup": source.name,
            "rows": rows,
            "previous": None if previous is None else previous.name,
            "heads": {name: str(head) for name, head in heads_of(session).items()},
        }
        append(session, EVENTS, [event_values(actor, "registry.restored", "registry", detail)])
        session.commit()
        return heads_of(session)


def _lock(target: Connection) -> None:
    """Block other writers until the commit; on SQLite the transaction does so already."""
    if target.dialect.name != "sqlite":
        target.execute(text(f"LOCK TABLE {table_names()} IN EXCLUSIVE MODE"))


def _holds_rows(connection: Connection) -> bool:
    return any(
        connection.execute(select(table).limit(1)).first() is not None
        for table in TABLES
        if table is not ChainHead.__table__
    )


def _reserved_numbers(connection: Connection) -> _Numbers:
    query = select(Adapter.domain, Adapter.name, Adapter.task, Adapter.last_number)
    return {(row[0], row[1]): (row[2], row[3]) for row in connection.execute(query)}


def _keep_reserved(connection: Connection, reserved: _Numbers) -> None:
    """Make sure that no number of ``reserved`` is reserved again, whatever the backup says."""
    restored = _reserved_numbers(connection)
    last_id = connection.scalar(select(func.max(Adapter.id))) or 0
    for (domain, name), (task, number) in reserved.items():
        adapter = restored.get((domain, name))
        if adapter is None:
            last_id += 1
            connection.execute(
                insert(Adapter).values(
                    id=last_id, domain=domain, name=name, task=task, last_number=number
                )
            )
        elif adapter[1] < number:
            connection.execute(
                update(Adapter)
                .where(Adapter.domain == domain, Adapter.name == name)
                .values(last_number=number)
            )


def _advance_sequences(connection: Connection) -> None:
    """Let PostgreSQL's sequences continue after the highest key, as SQLite's do, never lower."""
    if connection.dialect.name == "sqlite":
        return
    for table in TABLES:
        column = table.autoincrement_column
        if column is None:
            continue
        highest = connection.scalar(select(func.max(column)))
        serial = func.pg_get_serial_sequence(f'"{table.name}"', column.name)
        sequence = connection.scalar(select(serial))
        if highest is not None and sequence is not None:
            last = select(func.greatest(highest, text("last_value"))).select_from(text(sequence))
            connection.execute(select(func.setval(sequence, last.scalar_subquery())))


@contextmanager
def _verified_copy(
    source: Path, listener: Listener | None, busy_seconds: float
) -> Iterator[Engines]:
    """A copy of the backup, migrated and verified; the backup is only read."""
    source = source.absolute()
    if not source.is_file():
        raise NotFoundError(
            f"There is no backup '{source}'.", "Create one with: trunkline db backup FILE."
        )

    def progress(chain: str, done: int, total: int) -> None:
        if listener is not None:
            listener.progress(done, total, {})

    with TemporaryDirectory(prefix="trunkline-restore-") as folder:
        path = Path(folder) / "registry.db"
        if listener is not None:
            listener.stage("reading the backup")
        _copy_file(source, path)
        copy = connect(sqlite_url(path), create=False, busy_seconds=busy_seconds)
        engines = replace(copy, where=str(source))
        try:
            if revision_of(engines) is None:
                raise RegistryError(
                    f"The file '{source}' is empty, not a backup.",
                    "Create one with: trunkline db backup FILE.",
                )
            migrate_to_head(engines, busy_seconds)
            if listener is not None:
                listener.stage("verifying the chains")
            for report in Audit(Sessions(engines)).verify(progress=progress):
                if report.breaks:
                    raise IntegrityError(
                        f"The backup '{source}' was changed: in its {report.chain}, "
                        f"{report.breaks[0].message}.",
                        "Use another backup. To inspect this one: TRUNKLINE_REGISTRY="
                        f"sqlite:///{source} trunkline audit verify.",
                    )
            yield engines
        finally:
            engines.reading.dispose()


def _copy_file(source: Path, path: Path) -> None:
    try:
        with (
            closing(sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True)) as backup,
            closing(create_unjournaled(path)) as target,
        ):
            backup.backup(target)
            result = target.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        if sqlite_code(error) in UNWRITABLE:
            raise RegistryError(
                f"'{path.parent}' has no space to read the backup '{source}': {one_line(error)}.",
                "Set TMPDIR to a folder with more space.",
            ) from error
        result = one_line(error)
    if result != "ok":
        raise RegistryError(
            f"The backup '{source}' can't be read: {result}.",
            "Use another one; backups are created by trunkline db backup.",
        )


def _move_damaged(url: str | URL, save_as: Path) -> Path:
    """Move a damaged SQLite file, and its log, as they are."""
    engines = connect(url, create=False, busy_seconds=0)
    engines.reading.dispose()
    path = Path(engines.where)
    for end in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{end}", f"{save_as}{end}")
    return save_as

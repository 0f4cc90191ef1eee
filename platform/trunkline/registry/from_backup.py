"""Restoring: a backup back into a registry on either engine, in one transaction.

Owns: what is checked before rows come back, and what becomes of those that were there.
Must not know: how a backup is made, or what the rows say.

The backup itself is only read: a copy of it is brought to the newest schema, and both its chains
are followed, before the registry is touched.
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
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection
from sqlalchemy.orm import Session

from trunkline.errors import IntegrityError, NotFoundError, RefusedError, RegistryError
from trunkline.registry import copying
from trunkline.registry.audit import Audit
from trunkline.registry.backup import (
    UNWRITABLE,
    Listener,
    back_up,
    bare_file,
    heads_of,
    progress_to,
    sqlite_code,
    sqlite_url,
)
from trunkline.registry.chain import EVENTS, Head, append
from trunkline.registry.engine import BUSY_SECONDS, Engines, connect, rewriting, translated
from trunkline.registry.schema import bring_to_head, revision_of
from trunkline.registry.session import Sessions, system_actor, utc_now

SUBJECT = "registry"
"""What the event of a restoring is filed under."""

ASIDE = "registry-before-"
"""How the file begins to be called that holds what a restore replaced."""

_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@dataclass(frozen=True, slots=True)
class Restored:
    """A registry after :func:`restore`.

    Attributes:
        rows: how many came out of the backup.
        aside: the file that holds what was there before, if anything was.
        heads: of the chains now; the last event is the restoring itself.
    """

    where: str
    rows: int
    aside: Path | None
    heads: Mapping[str, Head]


def restore(
    url: str | URL,
    source: Path,
    *,
    aside: Path,
    replace: bool = False,
    actor: str | None = None,
    listener: Listener | None = None,
    busy_seconds: float = BUSY_SECONDS,
) -> Restored:
    """Read the backup ``source`` into the registry at ``url``, in one transaction.

    The backup's schema, its pages and its chains are checked before. Numbers of versions that the
    old registry gave out stay used. A SQLite file that is too damaged to be copied is moved aside
    as it is.

    Args:
        aside: the file that is made of what the registry holds.
        replace: whether it may hold rows.

    Raises:
        NotFoundError: there is no such backup.
        RefusedError: the registry holds rows, and ``replace`` was not said.
        IntegrityError: a chain of the backup does not hold.
        RegistryError: the backup can't be read, is of a newer release, or is not one.
    """

    def read(replacing: bool) -> Restored:
        return _read_into(url, copy, source, replacing, aside, actor, listener, busy_seconds)

    with _checked_copy(source, listener, busy_seconds) as copy:
        try:
            return read(replace)
        except RegistryError as error:
            if not replace or sqlite_code(error) not in _CORRUPT:
                raise
        moved = _move_aside(url, aside)
        done = read(False)
        return Restored(done.where, done.rows, moved, done.heads)


def free_name(folder: Path, stamp: str) -> Path:
    """Where the old registry of a restore may be set aside, a file that is not there yet."""
    tries = (folder / f"{ASIDE}{stamp}{f'-{turn}' if turn > 1 else ''}.db" for turn in count(1))
    return next(path for path in tries if not path.exists())


def _read_into(
    url: str | URL,
    copy: Engines,
    source: Path,
    replace: bool,
    aside: Path,
    actor: str | None,
    listener: Listener | None,
    busy_seconds: float,
) -> Restored:
    engines = connect(url, create=True, busy_seconds=busy_seconds)
    tell = listener.stage if listener is not None else lambda text: None
    try:
        with translated(engines.where):
            bring_to_head(engines, busy_seconds)
            with rewriting(engines) as target, copy.reading.connect() as backup:
                copying.lock(target)
                kept = None
                if copying.holds_rows(target):
                    if not replace:
                        raise RefusedError(
                            f"The registry '{engines.where}' holds rows already.",
                            "Say --replace to set them aside first, or name another registry "
                            "with TRUNKLINE_REGISTRY.",
                        )
                    tell("setting the old registry aside")
                    for left in aside.parent.glob(f".{ASIDE}*.part*"):
                        left.unlink()
                    kept = back_up(url, aside, listener=listener, busy_seconds=busy_seconds).path
                tell("copying the rows")
                with _taken_back(kept):
                    numbers = copying.numbers(target)
                    copying.empty(target)
                    rows = copying.copy(backup, target, progress_to(listener))
                    copying.keep_numbers(target, numbers)
                    copying.raise_sequences(target)
                    heads = _tell_event(target, source, kept, rows, actor)
    finally:
        engines.reading.dispose()
    return Restored(engines.where, rows, kept, heads)


@contextmanager
def _taken_back(aside: Path | None) -> Iterator[None]:
    """What was set aside is not needed where the registry stays as it is."""
    try:
        yield
    except BaseException:
        if aside is not None:
            aside.unlink(missing_ok=True)
        raise


def _tell_event(
    connection: Connection, source: Path, aside: Path | None, rows: int, actor: str | None
) -> dict[str, Head]:
    with Session(connection) as session:
        found = heads_of(session)
        detail: dict[str, Any] = {
            "backup": source.name,
            "rows": rows,
            "aside": None if aside is None else aside.name,
            "heads": {name: str(head) for name, head in found.items()},
        }
        told = {
            "at": utc_now(),
            "actor": actor or system_actor(),
            "kind": "registry.restored",
            "subject": SUBJECT,
            "detail": detail,
        }
        append(session, EVENTS, [told])
        session.commit()
        return heads_of(session)


@contextmanager
def _checked_copy(
    source: Path, listener: Listener | None, busy_seconds: float
) -> Iterator[Engines]:
    """A backup's own copy, at the newest schema, found sound; the backup is only read."""
    source = source.absolute()
    if not source.is_file():
        raise NotFoundError(
            f"There is no backup '{source}'.", "Make one with: trunkline db backup FILE."
        )

    def told(chain: str, done: int, total: int) -> None:
        if listener is not None:
            listener.progress(done, total, {})

    with TemporaryDirectory(prefix="trunkline-restore-") as folder:
        path = Path(folder) / "registry.db"
        if listener is not None:
            listener.stage("reading the backup")
        _read_backup(source, path)
        engines = replace(
            connect(sqlite_url(path), create=False, busy_seconds=busy_seconds), where=str(source)
        )
        try:
            if revision_of(engines) is None:
                raise RegistryError(
                    f"The file '{source}' is empty, and no backup.",
                    "Make one with: trunkline db backup FILE.",
                )
            bring_to_head(engines, busy_seconds)
            if listener is not None:
                listener.stage("checking the chains")
            for report in Audit(Sessions(engines)).verify(told=told):
                if report.breaks:
                    raise IntegrityError(
                        f"The backup '{source}' is not as it was written: in its "
                        f"{report.chain}, {report.breaks[0].what}.",
                        "Take another backup. What is in this one shows: TRUNKLINE_REGISTRY="
                        f"sqlite:///{source} trunkline audit verify.",
                    )
            yield engines
        finally:
            engines.reading.dispose()


def _read_backup(source: Path, path: Path) -> None:
    try:
        with (
            closing(sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True)) as backup,
            closing(bare_file(path)) as target,
        ):
            backup.backup(target)
            found = target.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        if sqlite_code(error) in UNWRITABLE:
            raise RegistryError(
                f"There is no room in '{path.parent}' to read the backup '{source}': {error}.",
                "Name a folder with room in TMPDIR.",
            ) from error
        found = str(error)
    if found != "ok":
        raise RegistryError(
            f"The backup '{source}' can't be read: {found}.",
            "Take another one; a backup is a file that trunkline db backup made.",
        )


def _move_aside(url: str | URL, aside: Path) -> Path:
    """A damaged file as it is, with what stands beside it."""
    engines = connect(url, create=False, busy_seconds=0)
    engines.reading.dispose()
    path = Path(engines.where)
    for end in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{end}", f"{aside}{end}")
    return aside

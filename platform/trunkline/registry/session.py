"""The open registry: its transactions, and the event that each change leaves behind.

Owns: opening, reading and writing transactions, and the events table.
Must not know: what the other tables are about; the modules beside it add that.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from trunkline.errors import RegistryError
from trunkline.registry.chain import EVENTS, append
from trunkline.registry.engine import BUSY_SECONDS, Engines, connect, translated
from trunkline.registry.records import EventRecord
from trunkline.registry.schema import bring_to_head
from trunkline.registry.tables import Event, Table

Row = TypeVar("Row", bound=Table)
Key = TypeVar("Key")

PAGE = 500
"""Rows per query where many are read."""

_EVENTS = "events"


class Sessions:
    """The transactions of one open registry; its aggregates share them.

    Safe to share between threads, not between forked processes.
    """

    def __init__(self, engines: Engines) -> None:
        self.engines = engines

    @classmethod
    def open(cls, url: str, *, create: bool = True, busy_seconds: float = BUSY_SECONDS) -> Self:
        """Open the registry at ``url`` and bring its schema up to date.

        Args:
            url: any SQLAlchemy URL.
            create: make the SQLite file if there is none.
            busy_seconds: how long to wait for another process's write lock.

        Raises:
            RegistryError: it can't be opened, is damaged, is newer than this code, or is no
                registry.
        """
        engines = connect(url, create=create, busy_seconds=busy_seconds)
        try:
            with translated(engines.where):
                bring_to_head(engines, busy_seconds)
        except BaseException:
            engines.reading.dispose()
            raise
        return cls(engines)

    def close(self) -> None:
        """Close every connection; the object may be used again and reconnects."""
        self.engines.reading.dispose()

    @property
    def read_only(self) -> bool:
        """Whether only listing and showing will work."""
        return self.engines.read_only

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees the database at one moment.

        Raises:
            RegistryError: the database can't be read, or holds a value that this code never writes.
        """
        try:
            with translated(self.engines.where), Session(self.engines.reading) as session:
                yield session
        except ValueError as error:
            raise RegistryError(
                f"The registry '{self.engines.where}' holds what was changed by hand and can't "
                f"be read: {error}.",
                "See where with: trunkline audit verify. Then restore a backup with: trunkline db "
                "restore FILE --replace.",
            ) from error

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session in one transaction: committed at the end, rolled back by any exception."""
        if self.read_only:
            raise RegistryError(
                f"The registry '{self.engines.where}' is read-only.",
                "Listing works; to write, get the right to write it or name another workspace.",
            )
        with (
            translated(self.engines.where),
            Session(self.engines.writing) as session,
            session.begin(),
        ):
            yield session
            if events := session.info.pop(_EVENTS, None):
                append(session, EVENTS, events)


class Aggregate:
    """One subject of the registry: its queries, each in a transaction of its own."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions


def add_event(
    session: Session, actor: str | None, kind: str, subject: str, detail: Mapping[str, Any]
) -> None:
    """Tell one event at the end of the transaction in progress; no actor: the system's user."""
    session.info.setdefault(_EVENTS, []).append(
        {
            "at": utc_now(),
            "actor": actor or system_actor(),
            "kind": kind,
            "subject": subject,
            "detail": dict(detail),
        }
    )


RESTORED = "run.restored"
"""The event of a run that came with a version of another workspace, or out of its files."""


def run_subject(run: int) -> str:
    """The subject of a run's events; no adapter's name can look like it."""
    return f"run/{run}"


def event_record(row: Event) -> EventRecord:
    """A row of the events as a record."""
    return EventRecord(
        seq=row.seq,
        at=row.at,
        actor=row.actor,
        kind=row.kind,
        subject=row.subject,
        detail=row.detail,
        hash=row.hash,
    )


def pages(keys: Sequence[Key]) -> Iterator[Sequence[Key]]:
    """The keys in slices that one query can take."""
    for begin in range(0, len(keys), PAGE):
        yield keys[begin : begin + PAGE]


def find_or_add(session: Session, row: Row, *where: ColumnElement[bool]) -> Row:
    """The stored row that ``where`` finds, else ``row``, added.

    Another writer may add it in between on databases where writers run side by side; the unique
    constraint tells, and theirs is taken.
    """
    query = select(type(row)).where(*where)
    if (found := session.scalar(query)) is not None:
        return found
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        if (found := session.scalar(query)) is None:
            raise
        return found
    return row


def utc_now() -> datetime:
    """The time, aware, in UTC; for people to read, never to order by."""
    return datetime.now(UTC)


def system_actor() -> str:
    """Who acts where nobody said so: the operating system's user, unauthenticated."""
    try:
        return f"system:{getpass.getuser()}"
    except (KeyError, OSError, ImportError):
        return f"system:{os.getuid()}"

"""Transactions: the session factory that all aggregates of a registry share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self, TypeVar

from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from trunkline.errors import RegistryError, one_line
from trunkline.registry.chain import append_pending_events
from trunkline.registry.engine import BUSY_SECONDS, Engines, connect, translate_errors
from trunkline.registry.schema import migrate_to_head
from trunkline.registry.tables import Table

Row = TypeVar("Row", bound=Table)
Key = TypeVar("Key")

PAGE = 500
"""Rows per query where many are read."""


class Sessions:
    """The transactions of one open registry.

    Safe to share between threads, not between forked processes.
    """

    def __init__(self, engines: Engines) -> None:
        self.engines = engines

    @classmethod
    def open(cls, url: str, *, create: bool = True, busy_seconds: float = BUSY_SECONDS) -> Self:
        """Connect to ``url`` and upgrade its schema; see :meth:`Registry.open`."""
        engines = connect(url, create=create, busy_seconds=busy_seconds)
        try:
            with translate_errors(engines.where):
                migrate_to_head(engines, busy_seconds)
        except BaseException:
            engines.reading.dispose()
            raise
        return cls(engines)

    def close(self) -> None:
        """Close every connection; the object reconnects when it is used again."""
        self.engines.reading.dispose()

    @property
    def read_only(self) -> bool:
        """Whether only reading works."""
        return self.engines.read_only

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees the database at one moment.

        Raises:
            RegistryError: the database can't be read, or holds a value that this code never
                writes.
        """
        try:
            with translate_errors(self.engines.where), Session(self.engines.reading) as session:
                yield session
        except ValueError as error:
            raise RegistryError(
                f"The registry '{self.engines.where}' was changed by hand and can't be read: "
                f"{one_line(error)}.",
                "Locate the change with: trunkline audit verify. Then restore a backup with: "
                "trunkline db restore FILE --replace.",
            ) from error

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session in one transaction: committed at the end, rolled back by any exception."""
        if self.read_only:
            raise RegistryError(
                f"The registry '{self.engines.where}' is read-only.",
                "Listing works; to write, get write permission or choose another workspace.",
            )
        with (
            translate_errors(self.engines.where),
            Session(self.engines.writing) as session,
            session.begin(),
        ):
            yield session
            append_pending_events(session)


class Aggregate:
    """One subject of the registry; each public method is a transaction of its own."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions


def find_or_add(session: Session, row: Row, *where: ColumnElement[bool]) -> Row:
    """The stored row that matches ``where``, else ``row``, added.

    Where writers run side by side, another one may add the row in between; the unique constraint
    detects that, and its row is returned.
    """
    query = select(type(row)).where(*where)
    if (stored := session.scalar(query)) is not None:
        return stored
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        if (stored := session.scalar(query)) is None:
            raise
        return stored
    return row


def pages(keys: Sequence[Key], size: int = PAGE) -> Iterator[Sequence[Key]]:
    """The keys in slices that one query can take."""
    for start in range(0, len(keys), size):
        yield keys[start : start + size]

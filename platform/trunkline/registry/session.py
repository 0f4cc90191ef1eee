"""Transactions and the schema: the session factory that all aggregates of a registry share.

The schema's revision can be checked, upgraded, or inspected without a change. Alembic is imported
only when there is something to migrate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    false,
    func,
    inspect,
    literal_column,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.sql import column, table

from trunkline.errors import RegistryError, one_line
from trunkline.registry.chain import append_pending_events
from trunkline.registry.engine import (
    BUSY_SECONDS,
    Engines,
    connect,
    exclusive,
    translate_errors,
    use_write_ahead_log,
)
from trunkline.registry.tables import Table, UtcDateTime

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory


# -------------------------------------------------------------------------------------- the schema

MIGRATIONS = Path(__file__).parent / "migrations"
"""Alembic's folder; its ``versions`` are named ``NNNN_title.py`` and applied in that order."""

MAX_ROW_COUNT = 100_000
"""Counting the rows of a table stops behind this number."""

_REVISION = table("alembic_version", column("version_num"), column("oldest"))
"""``oldest`` is the revision of the oldest code that may use the schema; a migration may set it."""

_HEADS = table("chain_heads", column("name"), column("seq"), column("hash"))
MIGRATION_LOCK = 0x7472756E6B
"""Key of PostgreSQL's advisory lock for migrations."""


@dataclass(frozen=True, slots=True)
class MigrationStep:
    """One migration that was run."""

    revision: str
    title: str


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What :func:`upgrade` did; ``before`` is None for a database that was empty."""

    where: str
    before: str | None
    after: str
    steps: tuple[MigrationStep, ...]


@dataclass(frozen=True, slots=True)
class DatabaseInfo:
    """A database as :func:`inspect_database` sees it.

    Attributes:
        engine: ``SQLite 3.50.4``, ``PostgreSQL 18.1``.
        revision: None for an empty database.
        oldest: revision of the oldest code that may use it, where the schema states it.
        heads: the stored heads of the hash chains as ``SEQ:DIGEST``, by name.
        rows: table → rows, at most :data:`MAX_ROW_COUNT` + 1, which means "more".
    """

    where: str
    engine: str
    revision: str | None
    oldest: str | None
    heads: Mapping[str, str]
    rows: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DatabaseProbe:
    """What :func:`probe_database` found; it changed nothing.

    Attributes:
        revision: of the schema; None for an empty database.
        usable: whether this code may use the schema as it is: it has it, or a newer one allows it.
        ahead_seconds: by how much the database's clock is ahead of this machine's; SQLite's is this
            machine's, in full seconds.
        write_error: why the database can't be written; None if it can.
    """

    where: str
    revision: str | None
    usable: bool
    ahead_seconds: float
    write_error: RegistryError | None


def revisions() -> tuple[str, ...]:
    """The revisions in :data:`MIGRATIONS`, oldest first."""
    files = (MIGRATIONS / "versions").glob("[0-9][0-9][0-9][0-9]_*.py")
    return tuple(sorted(path.name[:4] for path in files))


def head_revision() -> str:
    """The revision that this code needs."""
    return revisions()[-1]


def migrate_to_head(
    engines: Engines, busy_seconds: float
) -> tuple[str | None, tuple[MigrationStep, ...]]:
    """Migrate the database to :func:`head_revision`; return at once where it is there already.

    Processes that start together on a new database wait for one another. A newer schema that states
    that this code may use it is left as it is, so that processes can be upgraded one by one.

    Returns:
        The revision before, and the migrations that were run.

    Raises:
        RegistryError: the database is too new for this code, is not a registry, or needs a
            migration but is read-only.
    """
    head = head_revision()
    with engines.reading.connect() as connection:
        revision = _supported_revision(connection, engines.where, newer=True)
    if revision is not None and revision >= head:
        return revision, ()
    if engines.read_only:
        raise RegistryError(
            f"The registry '{engines.where}' is read-only and "
            + ("is empty." if revision is None else f"has the older schema {revision}."),
            "Open it once with write permission.",
        )
    if engines.sqlite and revision is None:
        use_write_ahead_log(engines.writing, busy_seconds)
    with exclusive(engines) as connection:
        if not engines.sqlite:
            connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        return _migrate(connection, engines.where)


def revision_of(engines: Engines) -> str | None:
    """The database's revision; None for an empty one.

    Raises:
        RegistryError: the database is newer than this code, or is not a registry.
    """
    with translate_errors(engines.where), engines.reading.connect() as connection:
        return _supported_revision(connection, engines.where)


def upgrade(url: str, *, busy_seconds: float = BUSY_SECONDS) -> Upgrade:
    """Upgrade the registry at ``url`` to the newest schema.

    Raises:
        RegistryError: as :func:`migrate_to_head`, or it can't be opened.
    """
    engines = connect(url, create=True, busy_seconds=busy_seconds)
    try:
        with translate_errors(engines.where):
            before, steps = migrate_to_head(engines, busy_seconds)
    finally:
        engines.reading.dispose()
    return Upgrade(engines.where, before, max(head_revision(), before or ""), steps)


def inspect_database(url: str, *, busy_seconds: float = BUSY_SECONDS) -> DatabaseInfo:
    """Inspect the database at ``url``; migrate nothing, and accept a schema that is too new.

    Raises:
        RegistryError: there is nothing, it can't be opened, or it is no registry.
    """
    engines = connect(url, create=False, busy_seconds=busy_seconds)
    try:
        with translate_errors(engines.where), engines.reading.connect() as connection:
            revision = _stored_revision(connection, engines.where)
            oldest = None if revision is None else _oldest(connection)
            names = set(inspect(connection).get_table_names()) - {_REVISION.name, _HEADS.name}
            counts = {name: _count(connection, name) for name in sorted(names)}
            heads = (
                {row.name: f"{row.seq}:{row.hash}" for row in connection.execute(select(_HEADS))}
                if inspect(connection).has_table(_HEADS.name)
                else {}
            )
            product = "SQLite" if engines.sqlite else "PostgreSQL"
            version = ".".join(map(str, connection.dialect.server_version_info or ()))
    finally:
        engines.reading.dispose()
    return DatabaseInfo(
        engines.where, f"{product} {version}".strip(), revision, oldest, heads, counts
    )


def probe_database(url: str, *, busy_seconds: float = BUSY_SECONDS) -> DatabaseProbe:
    """Try to read and to write the database at ``url``; migrate nothing, keep no change.

    Raises:
        RegistryError: there is nothing, it can't be opened or read, or it is no registry.
    """
    engines = connect(url, create=False, busy_seconds=busy_seconds)
    try:
        with translate_errors(engines.where), engines.reading.connect() as connection:
            revision = _stored_revision(connection, engines.where)
            usable = _is_usable(connection, revision)
            now = connection.execute(select(func.now(type_=UtcDateTime()))).scalar_one()
            ahead = (now - datetime.now(UTC)).total_seconds()
        write_error = None
        if engines.read_only:
            write_error = RegistryError(f"The registry '{engines.where}' is read-only.")
        elif revision is not None:
            try:
                with translate_errors(engines.where), engines.writing.connect() as connection:
                    connection.execute(update(_HEADS).values(seq=_HEADS.c.seq).where(false()))
                    connection.rollback()
            except RegistryError as error:
                write_error = error
    finally:
        engines.reading.dispose()
    return DatabaseProbe(engines.where, revision, usable, ahead, write_error)


def _count(connection: Connection, name: str) -> int:
    some = select(literal_column("1")).select_from(table(name)).limit(MAX_ROW_COUNT + 1).subquery()
    return connection.execute(select(func.count()).select_from(some)).scalar_one()


def _stored_revision(connection: Connection, where: str) -> str | None:
    """The database's revision, whichever it is; None for an empty database."""
    tables = inspect(connection).get_table_names()
    if _REVISION.name in tables:
        revision: str | None = connection.scalar(select(_REVISION.c.version_num))
        if revision is not None:
            return revision
        tables.remove(_REVISION.name)
    if tables:
        raise RegistryError(
            f"The database '{where}' is not a Trunkline registry: it holds other tables.",
            "Set TRUNKLINE_REGISTRY to another file or database.",
        )
    return None


def _is_usable(connection: Connection, revision: str | None) -> bool:
    """Whether this code may use a database of this revision without a migration."""
    if revision is None or revision in revisions():
        return revision == head_revision()
    return _oldest(connection) in revisions()


def _supported_revision(connection: Connection, where: str, *, newer: bool = False) -> str | None:
    """The database's revision, if this code has it, or may use it and ``newer`` ones are wanted."""
    revision = _stored_revision(connection, where)
    known = revisions()
    if revision is not None and revision not in known:
        if newer and _oldest(connection) in known:
            return revision
        raise RegistryError(
            f"The registry '{where}' has the schema {revision!r}, which this Trunkline, at "
            f"{head_revision()!r}, does not know.",
            "A newer release created it: upgrade with pip install --upgrade trunkline, or set "
            "TRUNKLINE_REGISTRY to another registry.",
        )
    return revision


def _oldest(connection: Connection) -> str | None:
    """The revision of the oldest code that may use the schema, where it is stated."""
    if not _states_oldest(connection):
        return None
    oldest: str | None = connection.scalar(select(_REVISION.c.oldest))
    return oldest


def _states_oldest(connection: Connection) -> bool:
    return "oldest" in {one["name"] for one in inspect(connection).get_columns(_REVISION.name)}


def _migrate(connection: Connection, where: str) -> tuple[str | None, tuple[MigrationStep, ...]]:
    revision = _supported_revision(connection, where, newer=True)
    head = head_revision()
    if revision is not None and revision >= head:
        return revision, ()
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    if revision is not None and _states_oldest(connection):
        connection.execute(_REVISION.update().values(oldest=None))
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    command.upgrade(config, head)
    every = revisions()
    missing = every[0 if revision is None else every.index(revision) + 1 :]
    script = ScriptDirectory.from_config(config)
    return revision, tuple(MigrationStep(one, _title(script, one)) for one in missing)


def _title(script: ScriptDirectory, revision: str) -> str:
    migration = script.get_revision(revision)
    return "" if migration is None else migration.doc.partition("\n")[0]


# ------------------------------------------------------------------------------------ transactions

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

    @property
    def usable(self) -> bool:
        """Whether this code may still use the schema; a newer release may have upgraded it.

        Raises:
            RegistryError: the database can't be read.
        """
        where = self.engines.where
        with translate_errors(where), self.engines.reading.connect() as connection:
            return _is_usable(connection, _stored_revision(connection, where))

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

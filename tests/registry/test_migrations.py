"""Registries of earlier releases are brought up to date with what they hold."""

from __future__ import annotations

import importlib
import io
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from trunkline.errors import RegistryError
from trunkline.refs import Ref
from trunkline.registry import schema
from trunkline.registry.store import Registry
from trunkline.registry.tables import ApiKey, LoggedRequest, Table

ROWS = f"""
INSERT INTO bases VALUES
  (1, 'sha256:b', 'tiny', 'memory', 'Llama', 7000000000, 'float32', '2026-01-01 00:00:00');
INSERT INTO datasets VALUES
  (1, 'medical/icd10', 'rows', 'split', 9, 'MIT', 'memory', '{{}}', '2026-01-01 00:00:00');
INSERT INTO runs VALUES
  (1, 'medical/icd10', 'finished', 1, 1, NULL, 0, '{{}}', '{{}}', NULL, NULL,
   '2026-01-01 00:00:00', NULL);
INSERT INTO adapters VALUES (1, 'medical', 'icd10', 'classification', 2);
INSERT INTO versions VALUES
  (1, 1, 1, 'visible', 'sha256:{"a" * 64}', 'medical/icd10/1', 9, 1, 1, 1, '2026-01-01 00:00:00');
INSERT INTO aliases VALUES (1, 1, 'champion', 1);
INSERT INTO events VALUES
  (1, '2026-01-01 00:00:00', 'ada', 'version.published', 'medical/icd10', '{{"number": 1}}');
"""


def contents(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """The rows of every table of the first schema that has some."""
    with closing(sqlite3.connect(path)) as connection:
        names = ("bases", "datasets", "runs", "adapters", "versions", "aliases", "events")
        return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A registry of the first schema, with rows."""
    path = tmp_path / "registry.db"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(schema.MIGRATIONS))
        command.upgrade(config, "0001")
    engine.dispose()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(ROWS)
    return path


def test_a_registry_of_the_first_schema_keeps_its_rows(first: Path) -> None:
    before = contents(first)
    with Registry.open(f"sqlite:///{first}") as registry:
        version, how = registry.resolve(Ref.parse("medical/icd10"))
    assert (str(version.ref), how) == ("medical/icd10@1", "champion")
    assert contents(first) == before


def test_a_registry_of_the_first_schema_gets_the_tables_of_the_code(first: Path) -> None:
    Registry.open(f"sqlite:///{first}").close()
    engine = create_engine(f"sqlite:///{first}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []
        assert context.get_current_revision() == schema.HEAD
    engine.dispose()


def test_a_registry_of_the_first_schema_takes_keys(first: Path) -> None:
    with Registry.open(f"sqlite:///{first}") as registry:
        record, plain = registry.create_key("ada")
        assert registry.key_of(plain) == record


def test_a_read_only_registry_of_the_first_schema_is_refused_untouched(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.access
    monkeypatch.setattr(
        "trunkline.registry.engine.os.access",
        lambda path, mode: mode != os.W_OK and real(path, mode),
    )
    before = first.read_bytes()
    with pytest.raises(RegistryError, match="older schema 0001"):
        Registry.open(f"sqlite:///{first}")
    assert first.read_bytes() == before


def test_postgresql_gets_the_tables_of_the_code() -> None:
    written = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": written}
    )
    module = importlib.import_module("trunkline.registry.migrations.versions.0002_serving")
    with Operations.context(context):
        module.upgrade()
    tables = [Table.metadata.tables[row.__tablename__] for row in (ApiKey, LoggedRequest)]
    expected = [CreateTable(table) for table in tables] + [
        CreateIndex(index) for table in tables for index in table.indexes
    ]
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    assert statements(written.getvalue()) == {
        one for each in expected for one in statements(str(each.compile(dialect=dialect)))
    }


def statements(script: str) -> set[str]:
    """Its statements, without what is only spacing."""
    return {" ".join(one.split()) for one in script.split(";") if one.strip()}

"""A registry of the schema before the present one, with rows in every table.

Owns: its rows, and reading them back whatever the schema is by then.
Must not know: what the migration does to them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from trunkline.registry import schema

OLD = "0002"

_THEN = datetime(2026, 1, 1, tzinfo=UTC)
_DIGEST = "sha256:" + "a" * 64


def _rows() -> dict[str, list[dict[str, Any]]]:
    """Table → rows, in an order in which each refers only to those before."""
    version = {"adapter_id": 1, "base_id": 1, "dataset_id": 1, "run_id": 1, "created": _THEN}
    visible = {"status": "visible", "digest": _DIGEST, "bytes": 9}
    return {
        "bases": [
            {"digest": "b" * 64, "name": "tiny", "source": "made up", "architecture": "Llama",
             "parameters": 7_000_000_000, "dtype": "float32", "first_seen": _THEN},
        ],
        "datasets": [
            {"name": "toy/rows", "fingerprint": "rows", "split_fingerprint": "split", "rows": 9,
             "license": "MIT", "source": "made up", "counts": {"test": 2}, "first_seen": _THEN},
        ],
        "plugins": [
            {"distribution": "trunkline-toy", "version": "1.0", "api": 1, "domain": "toy",
             "first_seen": _THEN},
        ],
        "runs": [
            {"recipe": "toy/animals", "status": "finished", "base_id": 1, "dataset_id": 1,
             "plugin_id": 1, "seed": 1, "settings": {"r": 8}, "environment": {"torch": "2"},
             "report": {"best_step": 7}, "error": None, "started": _THEN,
             "finished": _THEN + timedelta(minutes=4)},
        ],
        "run_metrics": [
            {"run_id": 1, "step": step, "name": "loss", "value": 1.0 / step}
            for step in range(1, 6)
        ],
        "adapters": [
            {"domain": "toy", "name": "animals", "task": "classification", "last_number": 3},
        ],
        "versions": [
            {**version, **visible, "number": 1, "path": "toy/animals/1"},
            {**version, **visible, "number": 2, "path": "toy/animals/2"},
            {**version, "number": 3, "status": "failed"},
        ],
        "aliases": [{"adapter_id": 1, "alias": "champion", "version_id": 2}],
        "evaluations": [
            {"version_id": number, "run_id": 1, "recipe": "toy/animals", "dataset_id": 1,
             "split": "test", "base_id": 1, "created": _THEN,
             "results": {"metric": "accuracy", "verdict": "better", "gate": {},
                         "scores": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}}}
            for number in (1, 2)
        ],
        "predictions": [
            {"evaluation_id": 1, "row_id": f"row-{row}", "group_name": "g", "target": "bird",
             "prediction": "fish", "confidence": 0.5, "baseline_prediction": None}
            for row in range(4)
        ],
        "events": [
            {"at": _THEN + timedelta(hours=hour), "actor": "system:ada", "kind": kind,
             "subject": "toy/animals", "detail": detail}
            for hour, (kind, detail) in enumerate(
                [
                    ("version.published", {"number": 1}),
                    ("alias.moved", {"alias": "champion", "old": None, "new": 1}),
                    ("version.published", {"number": 2}),
                    ("alias.moved", {"alias": "champion", "old": 1, "new": 2}),
                ]
            )
        ],
        "api_keys": [
            {"id": "k1", "owner": "ada", "secret_hash": "c" * 64, "adapters": ["toy/*"],
             "admin": False, "created": _THEN, "expires": None, "removed": None},
        ],
        "requests": [
            {"id": f"request-{number}", "at": _THEN, "key_id": "k1", "route": "/v1/predict",
             "asked": "toy/animals", "adapter": "toy/animals", "version": "toy/animals@2",
             "digest": _DIGEST, "prompt_tokens": 9, "new_tokens": 0, "status": 200,
             "seconds": 0.25, "text": None, "output": None}
            for number in range(5)
        ],
    }  # fmt: skip


def make_old(url: str) -> None:
    """Fill the empty database at ``url``."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(schema.MIGRATIONS))
        command.upgrade(config, OLD)
    tables = sa.MetaData()
    tables.reflect(engine)
    with engine.begin() as connection:
        for name, rows in _rows().items():
            for row in rows:
                connection.execute(sa.insert(tables.tables[name]), row)


def revision(url: str) -> str:
    """The schema that the database has by now."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return str(connection.scalar(sa.text("SELECT version_num FROM alembic_version")))


def table_names(url: str) -> set[str]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    return set(sa.inspect(engine).get_table_names())


def old_rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Table → the columns that it had before, of all rows, in their order."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    found = {}
    with engine.connect() as connection:
        for name, rows in _rows().items():
            columns = ", ".join(f'"{column}"' for column in rows[0])
            query = sa.text(f'SELECT {columns} FROM "{name}" ORDER BY {columns.split(", ")[0]}')
            found[name] = sorted(
                (tuple(row) for row in connection.execute(query)), key=lambda row: repr(row)
            )
    return found


def is_damaged(url: str) -> bool:
    """Whether SQLite finds its own file damaged."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    if engine.dialect.name != "sqlite":
        return False
    with engine.connect() as connection:
        return bool(connection.exec_driver_sql("PRAGMA integrity_check").scalar() != "ok")

"""A registry of the first schema with rows in every table, and reading rows past the ORM."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from trunkline.registry.chain import EVENTS, REQUESTS, append
from trunkline.registry.registry import Registry

REVISION = "0006"

_TIME = datetime(2026, 1, 1, tzinfo=UTC)
_DIGEST = "sha256:" + "a" * 64


def _rows() -> dict[str, list[dict[str, Any]]]:
    """Table → rows, in an order in which each refers only to those before."""
    version = {"adapter_id": 1, "base_id": 1, "dataset_id": 1, "run_id": 1, "created": _TIME}
    visible = {"status": "visible", "digest": _DIGEST, "bytes": 9}
    return {
        "bases": [
            {"digest": "b" * 64, "name": "tiny", "source": "made up", "architecture": "Llama",
             "parameters": 7_000_000_000, "dtype": "float32", "modality": "image",
             "first_seen": _TIME},
        ],
        "datasets": [
            {"name": "toy/rows", "fingerprint": "rows", "split_fingerprint": "split", "rows": 9,
             "license": "MIT", "source": "made up", "counts": {"test": 2}, "first_seen": _TIME},
        ],
        "plugins": [
            {"distribution": "trunkline-toy", "version": "1.0", "api": 1, "domain": "toy",
             "first_seen": _TIME},
        ],
        "runs": [
            {"recipe": "toy/animals", "status": "finished", "base_id": 1, "dataset_id": 1,
             "plugin_id": 1, "seed": 1, "settings": {"r": 8}, "environment": {"torch": "2"},
             "report": {"best_step": 7}, "error": None, "started": _TIME,
             "finished": _TIME + timedelta(minutes=4)},
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
        "version_parents": [
            {"version_id": 2, "position": 0, "ref": "toy/animals@1", "digest": _DIGEST,
             "weight": 0.5},
        ],
        "aliases": [{"adapter_id": 1, "alias": "champion", "version_id": 2}],
        "evaluations": [
            {"version_id": number, "run_id": 1, "recipe": "toy/animals", "dataset_id": 1,
             "split": "test", "base_id": 1, "created": _TIME,
             "results": {"metric": "accuracy", "verdict": "better", "gate": {},
                         "scores": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}}}
            for number in (1, 2)
        ],
        "predictions": [
            {"evaluation_id": 1, "row_id": f"row-{row}", "group_name": "g", "target": "bird",
             "prediction": "fish", "confidence": 0.5, "baseline_prediction": None}
            for row in range(4)
        ],
        "alias_moves": [
            {"adapter_id": 1, "alias": "champion", "kind": "promoted", "version_id": new,
             "old_version_id": old, "back_to": old, "at": _TIME, "actor": "system:ada",
             "forced": False, "reason": None, "gate": None}
            for old, new in ((None, 1), (1, 2))
        ],
        "scores": [
            {"version_id": number, "split": "test", "metric": "accuracy", "value": 0.5,
             "low": 0.4, "high": 0.6, "evaluation_id": number}
            for number in (1, 2)
        ],
        "tags": [{"subject": "toy/animals@2", "key": "reviewed", "value": "yes"}],
        "servers": [
            {"actor": "system:ada", "host": "elsewhere", "pid": 7, "url": "http://elsewhere:8000",
             "base_id": 1, "started": _TIME, "last_seen": _TIME, "stopped": None},
        ],
        "server_loads": [
            {"server_id": 1, "version": "toy/animals@2", "digest": _DIGEST, "loaded": _TIME,
             "unloaded": None},
        ],
        "api_keys": [
            {"id": "k1", "owner": "ada", "secret_hash": "c" * 64, "adapters": ["toy/*"],
             "role": "tester", "created": _TIME, "expires": None, "removed": None},
        ],
    }  # fmt: skip


_EVENTS = (
    ("version.published", {"number": 1}),
    ("alias.moved", {"alias": "champion", "old": None, "new": 1}),
    ("version.published", {"number": 2}),
    ("alias.moved", {"alias": "champion", "old": 1, "new": 2}),
)


def _chained_rows() -> dict[str, list[dict[str, Any]]]:
    return {
        "events": [
            {"at": _TIME + timedelta(hours=hour), "actor": "system:ada", "kind": kind,
             "subject": "toy/animals", "detail": detail}
            for hour, (kind, detail) in enumerate(_EVENTS)
        ],
        "requests": [
            {"id": f"request-{number}", "at": _TIME, "key_id": "k1", "route": "/v1/predict",
             "model": "toy/animals", "adapter": "toy/animals", "version": "toy/animals@2",
             "digest": _DIGEST, "prompt_tokens": 9, "new_tokens": 0, "status": 200,
             "seconds": 0.25, "text": None, "output": None}
            for number in range(5)
        ],
    }  # fmt: skip


def fill(url: str) -> None:
    """Create a registry in the empty database at ``url`` and fill every table."""
    with Registry.open(url) as registry, registry.sessions.engines.writing.begin() as connection:
        tables = sa.MetaData()
        tables.reflect(connection)
        for name, rows in _rows().items():
            for row in rows:
                connection.execute(sa.insert(tables.tables[name]), row)
    with Registry.open(url) as registry, registry.sessions.write() as session:
        chained = _chained_rows()
        append(session, EVENTS, chained["events"])
        append(session, REQUESTS, chained["requests"])


def revision(url: str) -> str:
    """The schema revision of a database."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return str(connection.scalar(sa.text("SELECT version_num FROM alembic_version")))


def columns_of(url: str) -> dict[str, list[str]]:
    """Table → its columns, for every table of the registry."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    inspector = sa.inspect(engine)
    names = set(inspector.get_table_names()) - {"alembic_version"}
    return {
        name: [column["name"] for column in inspector.get_columns(name)] for name in sorted(names)
    }


def contents(
    url: str, columns: dict[str, list[str]] | None = None
) -> dict[str, list[tuple[Any, ...]]]:
    """Table → its rows, in these columns (by default all of them)."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    tables = {}
    with engine.connect() as connection:
        for name, names in (columns or columns_of(url)).items():
            listed = ", ".join(f'"{column}"' for column in names)
            rows = connection.execute(sa.text(f'SELECT {listed} FROM "{name}"'))
            tables[name] = sorted((tuple(row) for row in rows), key=repr)
    return tables


def is_damaged(url: str) -> bool:
    """Whether SQLite reports its file as damaged."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    if engine.dialect.name != "sqlite":
        return False
    with engine.connect() as connection:
        return bool(connection.exec_driver_sql("PRAGMA integrity_check").scalar() != "ok")

"""A registry on each engine, and shortcuts to fill it.

A test that uses ``url``, and so ``registry``, runs on SQLite and on PostgreSQL; one that uses
``database``, the path of SQLite's file, runs on SQLite only. On PostgreSQL it has the marker
``matrix`` unless it has the marker ``dialect``: `make test` deselects ``matrix``.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, make_url

from postgres_server import lent_database, lent_registry
from trunkline.registry.records import VersionRecord
from trunkline.registry.registry import Registry

BASE = "sha256:" + "b" * 64


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database_engine" in metafunc.fixturenames:
        engines: list[Any] = ["sqlite"]
        if "database" not in metafunc.fixturenames:
            dialect = any(mark.name == "dialect" for mark in metafunc.definition.iter_markers())
            marks = () if dialect else (pytest.mark.matrix,)
            engines.append(pytest.param("postgresql", marks=marks))
        metafunc.parametrize("database_engine", engines)


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Disable SQLite's syncs: no test here simulates a power failure."""

    def relax(connection: Any, entry: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", relax)
    yield
    event.remove(Engine, "connect", relax)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty registry's file, migrated once and copied for each test."""
    path = tmp_path_factory.mktemp("registry") / "registry.db"
    Registry.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the copy, created again for each test."""
    return tmp_path_factory.mktemp("used") / "registry.db"


@pytest.fixture
def url(database_engine: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty registry."""
    if database_engine == "postgresql":
        with lent_registry() as made:
            yield made
        return
    file: Path = request.getfixturevalue("file")
    for old in file.parent.iterdir():
        old.unlink()
    yield f"sqlite:///{shutil.copy(request.getfixturevalue('migrated'), file)}"


@pytest.fixture
def empty_url(database_engine: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables, or of a missing file."""
    if database_engine == "sqlite":
        yield f"sqlite:///{tmp_path / 'new.db'}"
        return
    with lent_database() as made:
        yield made


@pytest.fixture
def database(url: str) -> Path:
    """SQLite's file."""
    return Path(make_url(url).database or "")


@pytest.fixture
def postgres() -> Iterator[str]:
    """The URL of an empty registry on PostgreSQL."""
    with lent_registry() as made:
        yield made


@pytest.fixture(scope="session")
def opened() -> dict[str, Registry]:
    """Registries by URL; a closed one reconnects and keeps its compiled statements."""
    return {}


@pytest.fixture
def registry(url: str, opened: dict[str, Registry]) -> Iterator[Registry]:
    if url not in opened:
        opened[url] = Registry.open(url, busy_seconds=0.5)
    with opened[url] as registry:
        yield registry


@pytest.fixture
def explain(registry: Registry) -> Callable[[str], str]:
    """``explain(query)`` returns the plan of a query as if its tables were large."""

    def explain(query: str) -> str:
        with registry.sessions.engines.reading.connect() as connection:
            if connection.dialect.name == "sqlite":
                lines = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}")
            else:
                for way in ("seqscan", "bitmapscan", "indexonlyscan"):
                    connection.exec_driver_sql(f"SET LOCAL enable_{way} = off")
                lines = connection.exec_driver_sql("EXPLAIN " + query.replace("%", "%%"))
            return "\n".join(str(line[-1]) for line in lines)

    return explain


@pytest.fixture
def dataset(registry: Registry) -> int:
    """A recorded base and dataset; gives the dataset's id."""
    registry.sources.record_base(
        digest=BASE,
        name="tiny",
        source="made in memory",
        architecture="LlamaForCausalLM",
        parameters=7_000_000_000,
        dtype="float32",
    )
    return registry.sources.record_dataset(
        name="medical/icd10",
        fingerprint="rows-1",
        split_fingerprint="split-1",
        rows=100,
        license="public domain",
        source="made in memory",
        counts={"train": 70, "validation": 10, "test": 20},
    )


@pytest.fixture
def start(registry: Registry, dataset: int) -> Callable[..., int]:
    """``start(recipe)`` starts a run and gives its number."""

    def start(recipe: str = "medical/icd10") -> int:
        return registry.runs.start(
            recipe=recipe,
            base_digest=BASE,
            dataset_id=dataset,
            seed=1,
            settings={"r": 8},
            environment={"torch": "2.13"},
        )

    return start


@pytest.fixture
def publish(registry: Registry, start: Callable[..., int]) -> Callable[..., VersionRecord]:
    """``publish(name)`` runs a recipe of the domain ``medical`` and publishes a version."""

    def publish(name: str = "icd10", digest: str = "a") -> VersionRecord:
        run = start(f"medical/{name}")
        number = registry.versions.reserve("medical", name, task="classification", run=run)
        return registry.versions.publish(
            "medical",
            name,
            number,
            digest="sha256:" + digest * 64,
            path=f"medical/{name}/{number}",
            bytes=1000,
        )

    return publish

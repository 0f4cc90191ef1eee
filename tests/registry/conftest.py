"""A registry in a temporary folder, and shortcuts to fill it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trunkline.registry.records import VersionRecord
from trunkline.registry.store import Registry

BASE = "sha256:" + "b" * 64


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty registry's file, migrated once and copied for each test."""
    path = tmp_path_factory.mktemp("registry") / "registry.db"
    Registry.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def database(tmp_path: Path, migrated: Path) -> Path:
    return Path(shutil.copy(migrated, tmp_path / "registry.db"))


@pytest.fixture
def registry(database: Path) -> Iterator[Registry]:
    with Registry.open(f"sqlite:///{database}", busy_seconds=0.5) as opened:
        yield opened


@pytest.fixture
def dataset(registry: Registry) -> int:
    """A recorded base and dataset; gives the dataset's id."""
    registry.record_base(
        digest=BASE,
        name="tiny",
        source="made in memory",
        architecture="LlamaForCausalLM",
        parameters=7_000_000_000,
        dtype="float32",
    )
    return registry.record_dataset(
        name="medical/icd10",
        fingerprint="rows-1",
        split_fingerprint="split-1",
        rows=100,
        licence="public domain",
        source="made in memory",
        counts={"train": 70, "validation": 10, "test": 20},
    )


@pytest.fixture
def start(registry: Registry, dataset: int) -> Callable[..., int]:
    """``start(recipe)`` starts a run and gives its number."""

    def start(recipe: str = "medical/icd10") -> int:
        return registry.start_run(
            recipe=recipe,
            base_digest=BASE,
            dataset_id=dataset,
            seed=1,
            settings={"rank": 8},
            environment={"torch": "2.13"},
        )

    return start


@pytest.fixture
def publish(registry: Registry, start: Callable[..., int]) -> Callable[..., VersionRecord]:
    """``publish(name)`` runs a recipe of the domain ``medical`` and publishes a version."""

    def publish(name: str = "icd10", digest: str = "a") -> VersionRecord:
        run = start(f"medical/{name}")
        number = registry.reserve_version("medical", name, task="classification", run=run)
        return registry.publish_version(
            "medical",
            name,
            number,
            digest="sha256:" + digest * 64,
            path=f"medical/{name}/{number}",
            bytes=1000,
        )

    return publish

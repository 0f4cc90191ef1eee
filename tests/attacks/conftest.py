"""The targets of the attacks: sound artifacts, a registry and a store."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostile import record_base
from trunkline.adapters.store import AdapterStore
from trunkline.refs import Ref
from trunkline.registry.records import VersionRecord
from trunkline.registry.registry import Registry
from trunkline.workspace import Workspace
from workbench import make_artifact, platform, tiny

__all__ = ["artifact", "artifacts", "platform", "publish", "registry", "sound", "store", "tiny"]


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Path]:
    """Sound artifacts on the tiny Llama by name, only to be read; their outputs differ."""
    root = tmp_path_factory.mktemp("artifacts")
    few = {"target_modules": ["q_proj", "v_proj"]}
    made = {name: root / name for name in ("sound", "other")}
    for seed, folder in enumerate(made.values(), start=1):
        make_artifact(folder, tiny, seed=seed, **few)
    return made


@pytest.fixture(scope="session")
def sound(artifacts: dict[str, Path]) -> Path:
    """A sound classification artifact, only to be read."""
    return artifacts["sound"]


@pytest.fixture
def artifact(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound artifact that a test may damage."""
    return Path(shutil.copytree(sound, tmp_path / "artifact"))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    (tmp_path / "workspace").mkdir(exist_ok=True)
    with Registry.open(f"sqlite:///{tmp_path / 'workspace' / 'registry.db'}") as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path, registry: Registry) -> AdapterStore:
    return AdapterStore(Workspace(tmp_path / "workspace"), registry)


@pytest.fixture
def publish(store: AdapterStore) -> Callable[[Path, str], VersionRecord]:
    """Publish a folder under a name, and record the base that its manifest names."""

    def publish(folder: Path, name: str) -> VersionRecord:
        from trunkline.adapters.artifact import read_artifact

        manifest = read_artifact(folder).manifest
        record_base(store.registry, manifest.base["digest"], manifest.base["name"])
        return store.publish(
            folder,
            Ref.parse(name),
            task=manifest.task["kind"],
            run=None,
            base_digest=manifest.base["digest"],
        )

    return publish

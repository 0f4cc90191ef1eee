"""A store with a registry in a workspace, and versions for it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from object_stores import Place
from trunkline.adapters.store import AdapterStore
from trunkline.refs import Ref
from trunkline.registry.records import VersionRecord
from trunkline.registry.registry import Registry
from trunkline.workspace import Workspace

REF = Ref("toy", "animals")
BASE = "b" * 64


def new_store(workspace: Path, place: Place | None = None) -> AdapterStore:
    """A store with a new registry and one base; at ``place``, or in ``adapters/``."""
    workspace.mkdir(exist_ok=True)
    if place is not None:
        place.configure(workspace)
    (workspace / "registry.db").write_bytes(_empty())
    registry = Registry.open(f"sqlite:///{workspace / 'registry.db'}")
    registry.sources.record_base(
        digest=BASE, name="tiny", source="made up", architecture="LlamaForCausalLM",
        parameters=1, dtype="float32",
    )  # fmt: skip
    return AdapterStore(Workspace(workspace), registry)


@cache
def _empty() -> bytes:
    """The file of an empty registry, migrated once."""
    with TemporaryDirectory() as folder:
        Registry.open(f"sqlite:///{folder}/registry.db").close()
        return Path(folder, "registry.db").read_bytes()


def new_run(registry: Registry, recipe: str = str(REF)) -> int:
    """A run on made-up rows."""
    dataset = registry.sources.record_dataset(
        name="toy/animals", fingerprint="f", split_fingerprint="s", rows=3, license="CC0-1.0",
        source="made up", counts={},
    )  # fmt: skip
    return registry.runs.start(
        recipe=recipe, base_digest=BASE, dataset_id=dataset, seed=0, settings={}, environment={},
    )  # fmt: skip


def put(store: AdapterStore, source: Path, ref: Ref = REF, **named: Any) -> VersionRecord:
    """Publish a folder as the next version, without a run."""
    return store.publish(source, ref, task="classification", run=None, base_digest=BASE, **named)

"""A lost registry is rebuilt from the artifacts; what only it held is listed as lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from origins import provenance
from trunkline.adapters.provenance import write_provenance
from trunkline.adapters.rebuild import LOST, RebuildResult, rebuild_registry
from trunkline.adapters.store import AdapterStore
from trunkline.contracts import NoProgress
from trunkline.errors import NotFoundError, RefusedError
from trunkline.refs import Ref
from trunkline.registry.provenance import Provenance
from trunkline.registry.registry import Registry
from trunkline.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, sound: Path) -> Path:
    """A workspace without a registry, with three artifacts of two adapters."""
    root = tmp_path / "work"
    for path, run in (("toy/animals/1", 7), ("toy/animals/3", 9), ("toy/others/1", 8)):
        folder = root / "adapters" / path
        shutil.copytree(sound, folder)
        write_provenance(folder, provenance(folder, run=run))
        (folder / "README.md").write_text("# a card\n")
    return root


@pytest.fixture
def opened() -> Iterator[list[Registry]]:
    made: list[Registry] = []
    yield made
    for registry in made:
        registry.close()


@pytest.fixture
def store(workspace: Path, opened: list[Registry]) -> AdapterStore:
    located = Workspace.locate(workspace)
    opened.append(Registry.open(located.registry_url))
    return AdapterStore(located, opened[-1])


def rebuilt(store: AdapterStore) -> RebuildResult:
    return rebuild_registry(store, listener=NoProgress())


def refs(registry: Registry) -> set[str]:
    return {
        str(version.ref)
        for adapter in registry.adapters.list()
        for version in registry.versions.list(adapter.domain, adapter.name)
    }


def test_every_version_is_recovered_with_its_number(store: AdapterStore) -> None:
    done = rebuilt(store)
    assert refs(store.registry) == {"toy/animals@1", "toy/animals@3", "toy/others@1"}
    assert (done.versions, done.runs, done.bases, done.datasets) == (3, 3, 1, 1)


def test_restored_versions_are_verified_and_can_be_fetched(store: AdapterStore) -> None:
    rebuilt(store)
    version = store.registry.versions.resolve(Ref.parse("toy/animals@3"))[0]
    assert store.fetch(version).digest == version.digest
    assert version.files is not None
    assert set(version.files) == {path.name for path in store.fetch(version).folder.iterdir()}


def test_run_is_recovered_with_its_summary(store: AdapterStore) -> None:
    rebuilt(store)
    run = store.registry.runs.get(9)
    assert run.versions == ("toy/animals@3",)
    assert (run.report or {})["tokens_trained"] == 900
    assert store.registry.evaluations.list(version=Ref.parse("toy/animals@3"))[0].split == "test"


def test_non_empty_registry_is_refused(store: AdapterStore) -> None:
    rebuilt(store)
    before = store.registry.events.list()
    with pytest.raises(RefusedError, match="not empty"):
        rebuilt(store)
    assert store.registry.events.list() == before


def test_damaged_artifact_is_skipped_and_named(store: AdapterStore, workspace: Path) -> None:
    weights = workspace / "adapters/toy/others/1/adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = rebuilt(store)
    assert done.skipped == ("toy/others/1",)
    assert any("toy/others/1 was skipped" in note for note in done.notes)
    assert refs(store.registry) == {"toy/animals@1", "toy/animals@3"}


def test_artifact_with_invalid_provenance_is_recovered_without_it(
    store: AdapterStore, workspace: Path
) -> None:
    (workspace / "adapters/toy/others/1/provenance.json").write_text("{")
    done = rebuilt(store)
    assert store.registry.versions.resolve(Ref.parse("toy/others@1"))[0].run is None
    assert any("without its provenance" in note for note in done.notes)


def test_missing_card_is_rewritten(store: AdapterStore, workspace: Path) -> None:
    card = workspace / "adapters/toy/others/1/README.md"
    card.unlink()
    done = rebuilt(store)
    assert done.cards == 1
    assert "# toy/others@1" in card.read_text()
    version = store.registry.versions.resolve(Ref.parse("toy/others@1"))[0]
    assert (version.files or {})["README.md"]["bytes"] == card.stat().st_size


def test_rebuild_that_failed_at_the_end_can_be_run_again(
    store: AdapterStore, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "adapters/toy/others/1/README.md").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Provenance, "rebuild", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rebuilt(store)
    assert rebuilt(store).versions == 3
    assert (workspace / "adapters/toy/others/1/README.md").exists()


def test_existing_card_is_kept(store: AdapterStore, workspace: Path) -> None:
    assert rebuilt(store).cards == 0
    assert (workspace / "adapters/toy/others/1/README.md").read_text() == "# a card\n"


def test_folders_that_are_no_versions_are_skipped(
    store: AdapterStore, workspace: Path, sound: Path
) -> None:
    shutil.copytree(sound, workspace / "adapters/.publishing-toy.animals.4-x")
    shutil.copytree(sound, workspace / "adapters/toy/animals/v4")
    (workspace / "adapters/toy/animals/5").mkdir()
    (workspace / "adapters/README.md").write_text("args")
    assert rebuilt(store).versions == 3


def test_version_for_another_task_than_its_adapter_is_skipped(
    store: AdapterStore, workspace: Path, tiny: Path
) -> None:
    from workbench import make_artifact

    make_artifact(workspace / "adapters/toy/animals/4", tiny, "generation")
    assert rebuilt(store).skipped == ("toy/animals/4",)


def test_empty_workspace_gives_an_empty_registry(store: AdapterStore, workspace: Path) -> None:
    shutil.rmtree(workspace / "adapters")
    assert rebuilt(store).versions == 0


def test_lost_data_is_listed() -> None:
    for thing in ("aliases", "events", "keys", "request log", "removed versions"):
        assert thing in LOST


def test_alias_is_lost(store: AdapterStore, workspace: Path, opened: list[Registry]) -> None:
    rebuilt(store)
    store.registry.close()
    for path in workspace.glob("registry.db*"):
        path.unlink()
    opened.append(Registry.open(Workspace.locate(workspace).registry_url))
    again = AdapterStore(Workspace.locate(workspace), opened[-1])
    rebuilt(again)
    with pytest.raises(NotFoundError):
        again.registry.versions.resolve(Ref.parse("toy/animals@champion"))


def test_imported_version_stays_imported(store: AdapterStore, workspace: Path) -> None:
    folder = workspace / "adapters/toy/others/1"
    imported = provenance(folder).model_copy(
        update={"run": None, "evaluations": (), "imported": {"folder": "x"}}
    )
    write_provenance(folder, imported)
    rebuilt(store)
    assert store.registry.versions.resolve(Ref.parse("toy/others@1"))[0].run is None


def test_artifacts_in_an_object_store_are_recovered(
    workspace: Path, opened: list[Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    url = f"memory://{workspace.name}-rebuild"
    memory: Any = fsspec.filesystem("memory")
    memory.put(str(workspace / "adapters") + "/", f"{url}/", recursive=True)
    monkeypatch.setenv("TRUNKLINE_STORE", url)
    located = Workspace.locate(workspace)
    opened.append(Registry.open(located.registry_url))
    store = AdapterStore(located, opened[-1])
    done = rebuilt(store)
    memory.rm(url, recursive=True)
    assert done.versions == 3

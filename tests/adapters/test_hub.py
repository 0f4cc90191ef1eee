"""Adapters of the hub: names, the hub library's cache, and no network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trunkline.adapters.hub import fetch_adapter
from trunkline.api import Platform, open
from trunkline.errors import IntegrityError, TrunklineError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub library's cache, offline, with a PEFT folder as ``acme/kinds``; gives the snapshot.

    As that library keeps them, files are links to blobs.
    """
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--acme--kinds"
    snapshot = repo / "snapshots" / COMMIT
    for folder in (repo / "refs", repo / "blobs", snapshot):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    for path in sound.iterdir():
        shutil.copyfile(path, repo / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    return snapshot


@pytest.fixture
def own(tmp_path: Path, tiny: Path) -> Iterator[Platform]:
    (tmp_path / "workspace").mkdir()
    platform = open(tmp_path / "workspace", base=str(tiny), no_plugins=True)
    yield platform
    platform.registry.close()


@pytest.mark.parametrize(
    "name",
    ["", "hf:", "acme/kinds", "hf:a/b/c", "hf:../x", "hf:a/../b", "hf:a/b@", "hf:a b", "hf:a/b@x y",
     "hf:/etc/passwd", "hf:a\\b", "hf:a/b@..", "hf:a/b\0", "hf:%2e%2e/x", "hf:" + "a" * 300,
     "hf:t\u043ey/x", "HF:a/b", "hf:a/b\n"],
)  # fmt: skip
def test_malformed_name_is_wrong_use(name: str) -> None:
    with pytest.raises(UsageError, match="no name of an adapter on the hub"):
        fetch_adapter(name)


def test_repository_is_found_in_the_cache(hub: Path) -> None:
    found = fetch_adapter("hf:acme/kinds")
    assert (found.repo, found.commit, found.folder) == ("acme/kinds", COMMIT, hub)


def test_revision_is_found_in_the_cache(hub: Path) -> None:
    assert fetch_adapter(f"hf:acme/kinds@{COMMIT}").folder == hub


@pytest.mark.parametrize("name", ["hf:acme/other", "hf:acme/kinds@v9"])
def test_what_is_not_there_without_a_network_says_what_was_tried(hub: Path, name: str) -> None:
    with pytest.raises(TrunklineError, match="tried snapshot_download") as caught:
        fetch_adapter(name)
    assert "copy the adapter's folder" in str(caught.value.hint)


def test_only_the_two_files_are_asked_for(monkeypatch: pytest.MonkeyPatch, hub: Path) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def fetch(repo: str, **settings: Any) -> str:
        asked.update(settings)
        return str(hub)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    fetch_adapter("hf:acme/kinds")
    assert asked["allow_patterns"] == ["adapter_config.json", "adapter_model.safetensors"]


def test_repository_becomes_a_version(hub: Path, own: Platform) -> None:
    done = own.import_adapter("hf:acme/kinds", "toy/kinds", labels=("a", "b", "c"))
    assert str(done.version.ref) == "toy/kinds@1"
    assert own.store.fetch(done.version).manifest.task["labels"] == ["a", "b", "c"]


def test_version_tells_repository_and_commit(hub: Path, own: Platform) -> None:
    version = own.import_adapter("hf:acme/kinds", "toy/kinds").version
    folder = own.store.fetch(version).folder
    imported = json.loads((folder / "provenance.json").read_text())["imported"]
    assert (imported["source"], imported["revision"]) == ("hf:acme/kinds", COMMIT)
    event = own.registry.events.list(subject="toy/kinds")[0]
    assert event.detail["source"] == "hf:acme/kinds"


def test_manifest_of_the_repository_is_not_believed(hub: Path, own: Platform) -> None:
    """A repository may look like one of ours; task and template are still as the user says."""
    done = own.import_adapter("hf:acme/kinds", "toy/kinds")
    assert any("was not read" in sentence for sentence in done.notes)


def test_repository_without_safetensors_is_refused(hub: Path, own: Platform) -> None:
    (hub / "adapter_model.safetensors").unlink()
    with pytest.raises(IntegrityError, match=r"holds no adapter_model\.safetensors"):
        own.import_adapter("hf:acme/kinds", "toy/kinds")
    assert own.registry.adapters.list() == []

"""Adapters from the hub: names, the hub library's cache, and errors without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trunkline.adapters.hub import fetch_adapter
from trunkline.api import Platform, open
from trunkline.errors import IntegrityError, NotFoundError, TrunklineError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot folder of ``acme/kinds`` in the hub library's cache, offline.

    As in that library, the files are links to blobs.
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
    ["", "hf:", "acme/kinds", "hf:a/b/", "hf:a//b", "hf:a/b/../c",
     "hf:a/b//c", "hf:a/b/c d", "hf:a/b/.git", "hf:../x", "hf:a/../b", "hf:a/b@", "hf:a b",
     "hf:a/b@x y", "hf:/etc/passwd", "hf:a\\b", "hf:a/b@..", "hf:a/b\0", "hf:%2e%2e/x",
     "hf:" + "a" * 300,
     "hf:t\u043ey/x", "HF:a/b", "hf:a/b\n"],
)  # fmt: skip
def test_malformed_name_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="is not the name of an adapter on the hub"):
        fetch_adapter(name)


def test_cached_repository_is_used(hub: Path) -> None:
    adapter = fetch_adapter("hf:acme/kinds")
    assert (adapter.repo, adapter.commit, adapter.folder) == ("acme/kinds", COMMIT, hub)


@pytest.fixture
def nested(hub: Path) -> Path:
    """The same snapshot with its files in two subfolders."""
    for name in ("checkpoint-1000", "checkpoint-500", "runs/last"):
        (hub / name).mkdir(parents=True)
        for path in (hub.parents[1] / "blobs").iterdir():
            (hub / name / path.name).symlink_to(path)
    for path in hub.iterdir():
        if path.is_symlink():
            path.unlink()
    return hub


@pytest.mark.parametrize("subfolder", ["checkpoint-1000", "runs/last"])
def test_subfolder_of_a_repository_becomes_a_version(
    nested: Path, own: Platform, subfolder: str
) -> None:
    imported = own.files.import_adapter(f"hf:acme/kinds/{subfolder}", "toy/kinds")
    folder = own.store.fetch(imported.version).folder
    origin = json.loads((folder / "provenance.json").read_text())["imported"]
    assert (origin["source"], origin["revision"]) == (f"hf:acme/kinds/{subfolder}", COMMIT)


def test_subfolder_of_a_revision_is_used(nested: Path) -> None:
    adapter = fetch_adapter(f"hf:acme/kinds/checkpoint-500@{COMMIT}")
    assert (adapter.subfolder, adapter.folder) == ("checkpoint-500", nested / "checkpoint-500")


@pytest.mark.parametrize("name", ["hf:acme/kinds", "hf:acme/kinds/checkpoint-7"])
def test_repository_without_an_adapter_there_names_its_folders(nested: Path, name: str) -> None:
    with pytest.raises(
        NotFoundError, match="adapters are in 'checkpoint-500', 'checkpoint-1000'"
    ) as caught:
        fetch_adapter(name)
    assert "hf:acme/kinds/runs/last" in str(caught.value.hint)


def test_repository_without_any_adapter_says_so(hub: Path) -> None:
    (hub / "adapter_config.json").unlink()
    with pytest.raises(NotFoundError, match="so it is not a PEFT adapter"):
        fetch_adapter("hf:acme/kinds")


def test_folders_and_pickles_are_looked_up_on_the_hub(
    monkeypatch: pytest.MonkeyPatch, hub: Path
) -> None:
    """The hub's list of files is used where there is a network; it is replaced here."""
    import huggingface_hub

    files = ["README.md", "adapter_config.json", "adapter_model.bin", "b/adapter_config.json"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo, revision: files)
    (hub / "adapter_model.safetensors").unlink()
    with pytest.raises(IntegrityError, match=r"as a pickle \(adapter_model\.bin\)"):
        fetch_adapter("hf:acme/kinds")
    (hub / "adapter_config.json").unlink()
    with pytest.raises(NotFoundError, match="adapters are in 'b'"):
        fetch_adapter("hf:acme/kinds")


def test_cached_revision_is_used(hub: Path) -> None:
    assert fetch_adapter(f"hf:acme/kinds@{COMMIT}").folder == hub


@pytest.mark.parametrize("name", ["hf:acme/other", "hf:acme/kinds@v9"])
def test_missing_repository_without_a_network_names_the_revision(hub: Path, name: str) -> None:
    with pytest.raises(TrunklineError, match=r"from the hub at (main|v9) failed") as caught:
        fetch_adapter(name)
    assert "copy the adapter's folder" in str(caught.value.hint)


def test_only_configuration_weights_and_tokenizer_are_fetched(
    monkeypatch: pytest.MonkeyPatch, hub: Path
) -> None:
    import huggingface_hub

    requested: dict[str, Any] = {}

    def fetch(repo: str, **settings: Any) -> str:
        requested.update(settings)
        return str(hub)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    fetch_adapter("hf:acme/kinds")
    assert requested["allow_patterns"] == [
        "adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json",
        "tokenizer.json", "added_tokens.json", "special_tokens_map.json",
        "chat_template.jinja", "chat_template.json",
    ]  # fmt: skip


def test_repository_becomes_a_version(hub: Path, own: Platform) -> None:
    imported = own.files.import_adapter("hf:acme/kinds", "toy/kinds", labels=("a", "b", "c"))
    assert str(imported.version.ref) == "toy/kinds@1"
    assert own.store.fetch(imported.version).manifest.task["labels"] == ["a", "b", "c"]


def test_version_records_repository_and_commit(hub: Path, own: Platform) -> None:
    version = own.files.import_adapter("hf:acme/kinds", "toy/kinds").version
    folder = own.store.fetch(version).folder
    imported = json.loads((folder / "provenance.json").read_text())["imported"]
    assert (imported["source"], imported["revision"]) == ("hf:acme/kinds", COMMIT)
    event = own.registry.events.list(subject="toy/kinds")[0]
    assert event.detail["source"] == "hf:acme/kinds"


def test_manifest_of_the_repository_is_ignored(hub: Path, own: Platform) -> None:
    """Task and template come from the user, even if the repository has a ``trunkline.json``."""
    imported = own.files.import_adapter("hf:acme/kinds", "toy/kinds")
    assert any("was not read" in sentence for sentence in imported.notes)


def test_repository_without_safetensors_is_refused(hub: Path, own: Platform) -> None:
    (hub / "adapter_model.safetensors").unlink()
    with pytest.raises(IntegrityError, match=r"has no adapter_model\.safetensors"):
        own.files.import_adapter("hf:acme/kinds", "toy/kinds")
    assert own.registry.adapters.list() == []

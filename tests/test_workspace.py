"""Workspace paths, the variables that change them, and trunkline.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from trunkline.errors import UsageError
from trunkline.workspace import Workspace, cache_folder


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "TRUNKLINE_WORKSPACE",
        "TRUNKLINE_REGISTRY",
        "TRUNKLINE_CACHE",
        "XDG_CACHE_HOME",
    ):
        monkeypatch.delenv(name, raising=False)


def test_the_current_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Workspace.locate().root == tmp_path.resolve()


def test_the_variable_overrides_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_WORKSPACE", str(tmp_path))
    assert Workspace.locate().root == tmp_path.resolve()


def test_the_argument_overrides_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_WORKSPACE", "/nowhere")
    assert Workspace.locate(tmp_path).root == tmp_path.resolve()


def test_a_missing_folder_is_refused_with_the_command_that_creates_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist") as caught:
        Workspace.locate(tmp_path / "gone")
    assert "mkdir" in (caught.value.hint or "")


@pytest.mark.parametrize("folder", ["file", "file/below", "a\0b", "what?"])
def test_an_invalid_folder_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "what?").mkdir()
    with pytest.raises(UsageError):
        Workspace.locate(str(tmp_path / folder))


def test_the_registry_is_a_file_in_the_root(tmp_path: Path) -> None:
    assert Workspace(tmp_path).registry_url == f"sqlite:///{tmp_path}/registry.db"


def test_the_registry_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_REGISTRY", "postgresql://db/trunkline")
    assert Workspace(tmp_path).registry_url == "postgresql://db/trunkline"


def test_versions_and_runs_have_folders_below_the_root(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.version_path("medical", "icd10", 3) == tmp_path / "adapters/medical/icd10/3"
    assert workspace.run_path(7) == tmp_path / ".trunkline/runs/7"


@pytest.mark.parametrize(
    ("domain", "name", "number"),
    [("..", "x", 1), ("medical", "../x", 1), ("medical", "x", 0), ("medical", "x", "champion")],
)
def test_no_version_path_leaves_the_adapters(
    tmp_path: Path, domain: str, name: str, number: int
) -> None:
    with pytest.raises(UsageError):
        Workspace(tmp_path).version_path(domain, name, number)


def test_byte_order_mark_of_the_configuration_is_taken_off(tmp_path: Path) -> None:
    (tmp_path / "trunkline.toml").write_text("\ufeff[gate]\nchampion_margin = 0\n", "utf-8")
    assert Workspace(tmp_path).configuration.gate.champion_margin == 0


@pytest.mark.parametrize("url", ["", " "])
def test_an_empty_url_of_the_store_is_refused(tmp_path: Path, url: str) -> None:
    (tmp_path / "trunkline.toml").write_text(f'[store]\nurl = "{url}"\n')
    with pytest.raises(UsageError, match="url is empty"):
        _ = Workspace(tmp_path).configuration


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[shop]\n", "unknown table 'shop'"),
        ("gate = 1\n", "unknown table 'gate'"),
        ("[gate]\nbest = true\n", "unknown key 'best'"),
        ("[gate]\nbeats_baseline = 1\n", "wrong type"),
        ("[gate]\nslices_at_least = true\n", "wrong type"),
        ("[gate]\nslices_at_least = nan\n", "out of range"),
        ("[gate]\nchampion_margin = -0.1\n", "out of range"),
        ("[signatures]\nkeys = [1]\n", "list of paths"),
        ("[gate\n", "can't be read"),
    ],
)
def test_an_invalid_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "trunkline.toml").write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        _ = Workspace(tmp_path).configuration
    assert caught.value.hint


def test_a_configuration_is_read(tmp_path: Path) -> None:
    (tmp_path / "trunkline.toml").write_text(
        '[gate]\nchampion_margin = 0\n[signatures]\nkeys = ["a.pub"]\n'
        '[store]\nurl = "s3://bucket"\n[store.options]\nanon = true\n'
    )
    configuration = Workspace(tmp_path).configuration
    assert configuration.gate.champion_margin == 0
    assert configuration.signatures.keys == (tmp_path / "a.pub",)
    assert (configuration.store.url, configuration.store.options) == ("s3://bucket", {"anon": True})


def test_the_cache_folder_is_set_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    monkeypatch.setenv("TRUNKLINE_CACHE", "/own")
    assert cache_folder() == Path("/own")


def test_the_cache_follows_the_desktop_convention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert cache_folder() == Path("/shared/trunkline")


@pytest.mark.parametrize("shared", ["", "relative"])
def test_the_cache_is_in_the_home_otherwise(monkeypatch: pytest.MonkeyPatch, shared: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", shared)
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/trunkline")

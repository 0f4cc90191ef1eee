"""Verifying, removing and collecting garbage: what is printed where, and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from cli_runner import invoke
from stores import REF, new_store, put
from workbench import make_artifact, tiny

__all__ = ["tiny"]

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """An artifact with a card, only to be read."""
    folder = tmp_path_factory.mktemp("upkeep") / "made"
    make_artifact(folder, tiny, target_modules=["q_proj"])
    (folder / "README.md").write_text("# Card\n")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, made: Path) -> Path:
    """A workspace with two versions, the first of which is on its way out."""
    store = new_store(tmp_path / "workspace")
    put(store, made)
    put(store, made)
    store.registry.close()
    return tmp_path / "workspace"


@pytest.fixture
def run(workspace: Path) -> Run:
    def run(*args: str) -> Result:
        return invoke("--workspace", str(workspace), "--no-plugins", *args)

    return run


def damage(workspace: Path) -> None:
    path = workspace / "adapters/toy/animals/1/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


# -------------------------------------------------------------------------------------- verify


def test_verify_prints_an_intact_version(run: Run) -> None:
    result = run("adapters", "verify", "toy/animals@1")
    assert (result.exit_code, result.stdout) == (0, "ok       toy/animals@1\n")


def test_verify_exits_1_where_a_version_is_damaged(run: Run, workspace: Path) -> None:
    damage(workspace)
    result = run("adapters", "verify", "toy/animals@1")
    assert result.exit_code == 1
    assert result.stdout.startswith("DAMAGED  toy/animals@1\n")
    assert "was changed after it was published" in result.stdout
    assert "Traceback" not in result.output


def test_verify_all_goes_on_after_a_damaged_one(run: Run, workspace: Path) -> None:
    damage(workspace)
    result = run("adapters", "verify", "--all")
    assert result.exit_code == 1
    assert "ok       toy/animals@2" in result.stdout
    assert "1 of 2 versions is damaged." in result.stderr


def test_show_names_the_folder_that_the_store_is_in(run: Run, workspace: Path) -> None:
    (workspace / "adapters").rename(workspace / "elsewhere")
    (workspace / "trunkline.toml").write_text('[store]\nurl = "elsewhere"\n')
    data = json.loads(run("adapters", "show", "toy/animals@2", "--json").stdout)
    assert data["folder"] == str(workspace / "elsewhere/toy/animals/2")


def test_verify_all_of_a_sound_store_exits_0(run: Run) -> None:
    result = run("adapters", "verify", "--all")
    assert (result.exit_code, result.stdout.count("ok ")) == (0, 2)
    assert "2 versions, none damaged." in result.stderr


def test_verify_json_lists_each_version(run: Run, workspace: Path) -> None:
    damage(workspace)
    result = run("adapters", "verify", "--all", "--json")
    data = {one["version"]: one["damage"] for one in json.loads(result.stdout)}
    assert data["toy/animals@2"] is None
    assert "was changed" in data["toy/animals@1"]
    assert result.exit_code == 1


def test_verify_reports_a_rewritten_card_and_exits_0(run: Run, workspace: Path) -> None:
    (workspace / "adapters/toy/animals/1/README.md").write_text("# Mine\n")
    result = run("adapters", "verify", "toy/animals@1")
    assert result.exit_code == 0
    assert "README.md was changed since it was published" in result.stdout


@pytest.mark.parametrize("args", [(), ("toy/animals", "--all")])
def test_verify_wants_one_or_all(run: Run, args: tuple[str, ...]) -> None:
    result = run("adapters", "verify", *args)
    assert result.exit_code == 2
    assert "Hint" in result.stderr


def test_verify_with_a_signature_wants_a_key(run: Run) -> None:
    result = run("adapters", "verify", "toy/animals@1", "--require-signature")
    assert result.exit_code == 2
    assert "no trusted public key" in result.stderr


# ------------------------------------------------------------------------------------------ rm


def test_rm_deletes_the_files(run: Run, workspace: Path) -> None:
    result = run("adapters", "rm", "toy/animals@1", "--reason", "old")
    assert result.exit_code == 0
    assert "toy/animals@1 is removed." in result.stdout
    assert not (workspace / "adapters/toy/animals/1").exists()
    assert (workspace / "adapters/toy/animals/2").exists()


def test_removed_version_says_when_and_why_it_is_gone(run: Run) -> None:
    run("adapters", "rm", "toy/animals@1", "--reason", "wrong year")
    result = run("adapters", "verify", "toy/animals@1")
    assert result.exit_code == 2
    assert "was removed on" in result.stderr
    assert "wrong year" in result.stderr


def test_rm_names_every_alias_in_its_way(run: Run, workspace: Path) -> None:
    for alias in ("canary", "champion"):
        args = ("--alias", alias, "--force", "--reason", "a trial")
        assert run("adapters", "promote", "toy/animals@1", *args).exit_code == 0
    result = run("adapters", "rm", "toy/animals@1", "--reason", "old")
    assert result.exit_code == 1
    assert "the aliases 'canary' and 'champion' point at it" in result.stderr
    for alias in ("canary", "champion"):
        assert f"`trunkline adapters unalias toy/animals {alias}`" in result.stderr
    assert (workspace / "adapters/toy/animals/1").exists()


def test_rm_names_the_one_alias_in_its_way(run: Run) -> None:
    args = ("--force", "--reason", "a trial")
    run("adapters", "promote", "toy/animals@1", *args)
    text = run("adapters", "rm", "toy/animals@1", "--reason", "old").stderr
    assert "the alias 'champion' points at it" in text


def test_rm_without_a_reason_is_wrong_use(run: Run, workspace: Path) -> None:
    assert run("adapters", "rm", "toy/animals@1").exit_code == 2
    assert (workspace / "adapters/toy/animals/1").exists()


def test_rm_without_a_number_is_wrong_use(run: Run, workspace: Path) -> None:
    result = run("adapters", "rm", "toy/animals", "--reason", "old")
    assert result.exit_code == 2
    assert "toy/animals@3" in result.stderr
    assert (workspace / "adapters/toy/animals/2").exists()


def test_rm_json_names_the_version(run: Run) -> None:
    result = run("adapters", "rm", "toy/animals@1", "--reason", "old", "--json")
    assert json.loads(result.stdout) == {"removed": "toy/animals@1", "files_kept": None}


# ------------------------------------------------------------------------------------------ gc


@pytest.fixture
def garbage(workspace: Path) -> Path:
    """What a publication left that was killed before its files stood in their place."""
    folder = workspace / "adapters/toy/animals/9"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return folder


def test_gc_of_a_clean_store_deletes_nothing(run: Run) -> None:
    result = run("gc")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "Nothing to delete." in result.stderr


def test_gc_dry_run_lists_and_deletes_nothing(run: Run, garbage: Path) -> None:
    result = run("gc", "--dry-run")
    assert result.exit_code == 0
    assert "toy/animals/9" in result.stdout
    assert "Nothing was deleted." in result.stderr
    assert garbage.exists()


def test_gc_deletes_what_dry_run_lists(run: Run, garbage: Path) -> None:
    result = run("gc")
    assert result.exit_code == 0
    assert "toy/animals/9" in result.stdout
    assert not garbage.exists()


def test_gc_json_lists_what_was_deleted(run: Run, garbage: Path) -> None:
    data = json.loads(run("gc", "--json").stdout)
    assert [(one["kind"], one["name"]) for one in data["deleted"]] == [("folder", "toy/animals/9")]
    assert (data["dry_run"], data["reported"]) == (False, [])


def test_gc_reports_a_version_without_files(run: Run, workspace: Path) -> None:
    (workspace / "adapters/toy/animals/1").rename(workspace / "moved")
    result = run("gc")
    assert "toy/animals@1" in result.stderr
    assert result.stdout == ""


def test_adapter_of_which_every_version_was_removed_is_not_listed(run: Run) -> None:
    for number in (1, 2):
        run("adapters", "rm", REF.adapter + f"@{number}", "--reason", "old")
    assert json.loads(run("adapters", "list", "--json").stdout) == []

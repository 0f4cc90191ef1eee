"""``trunkline doctor``: what it finds in a deployment, and that it changes nothing."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import Result

import toy_plugin
from cli_runner import invoke
from trunkline.registry.registry import Registry
from trunkline.registry.session import head_revision

if TYPE_CHECKING:
    from conftest import Run, Shared

NAMES = [
    "configuration", "registry", "migrations", "clock", "store", "base", "image base", "memory",
    "disk", "threads", "keys", "plugins",
]  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The workspace of ``run_copy``."""
    return tmp_path / "copy"


def checks(result: Result) -> dict[str, dict[str, Any]]:
    """The checks by name."""
    return {one["name"]: one for one in json.loads(result.stdout)}


def change(workspace: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(workspace / "registry.db")) as connection, connection:
        connection.execute(statement, values)


def test_trained_workspace_has_no_error(run_copy: Run) -> None:
    result = run_copy("doctor", "--json")
    assert result.exit_code == 0, result.stdout
    by_name = checks(result)
    assert list(by_name) == NAMES
    assert {by_name[name]["state"] for name in ("registry", "migrations", "store", "base")} == {
        "ok"
    }
    assert by_name["keys"]["state"] == "warning"
    assert "toy" in by_name["plugins"]["detail"]


def test_table_has_the_state_and_the_way_out(run_copy: Run) -> None:
    lines = run_copy("doctor").stdout.splitlines()
    assert lines[0].split() == ["check", "state", "detail", "what", "to", "do"]
    keys = next(line for line in lines if line.startswith("keys "))
    assert "warning" in keys
    assert "trunkline keys create OWNER" in keys


def test_probe_of_the_store_leaves_nothing(run_copy: Run, copy: Path) -> None:
    before = sorted(copy.rglob("*"))
    run_copy("doctor")
    assert sorted(copy.rglob("*")) == before


def test_missing_registry_is_an_error_and_is_not_created(shared: Shared, tmp_path: Path) -> None:
    result = invoke("--workspace", str(tmp_path), "--base", str(shared.base), "doctor", "--json")
    assert result.exit_code == 1
    assert checks(result)["registry"]["state"] == "error"
    assert "registry" in result.stderr
    assert not (tmp_path / "registry.db").exists()


def test_older_schema_is_a_warning_and_is_not_migrated(run_copy: Run, copy: Path) -> None:
    change(copy, "UPDATE alembic_version SET version_num = '0005'")
    result = run_copy("doctor", "--json")
    assert checks(result)["migrations"]["state"] == "warning"
    assert "trunkline db upgrade" in checks(result)["migrations"]["hint"]
    with closing(sqlite3.connect(copy / "registry.db")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [
            ("0005",)
        ]


def test_schema_of_a_newer_release_is_an_error(run_copy: Run, copy: Path) -> None:
    change(copy, "UPDATE alembic_version SET version_num = '9999'")
    result = run_copy("doctor", "--json")
    assert result.exit_code == 1
    assert checks(result)["migrations"]["state"] == "error"
    assert head_revision() in checks(result)["migrations"]["detail"]


def test_newer_schema_that_this_release_may_use_is_a_warning(run_copy: Run, copy: Path) -> None:
    change(copy, "UPDATE alembic_version SET version_num = '9999', oldest = ?", head_revision())
    result = run_copy("doctor", "--json")
    assert result.exit_code == 0, result.stdout
    assert checks(result)["migrations"]["state"] == "warning"


def test_base_that_was_not_pulled_is_an_error(
    run_copy: Run, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_copy("keys", "list")
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "empty-cache"))
    result = invoke("--workspace", str(copy), "doctor", "--json")
    assert checks(result)["base"]["state"] == "error"
    assert "trunkline base pull" in checks(result)["base"]["hint"]


def test_store_that_can_not_be_written_is_an_error(run_copy: Run, copy: Path) -> None:
    (copy / "trunkline.toml").write_text('[store]\nurl = "./file"\n')
    (copy / "file").touch()
    assert checks(run_copy("doctor", "--json"))["store"]["state"] == "error"


@pytest.mark.parametrize(
    "text", ["[serve", '[serve]\nrows = "many"\n', "[serve]\nrows = 0\n", "[other]\n"]
)
def test_unreadable_settings_are_an_error(run_copy: Run, copy: Path, text: str) -> None:
    (copy / "trunkline.toml").write_text(text)
    result = run_copy("doctor", "--json")
    assert result.exit_code == 1
    assert checks(result)["configuration"]["state"] == "error"
    assert checks(result)["registry"]["state"] == "ok"


def test_keys_that_have_all_expired_are_an_error(run_copy: Run, copy: Path) -> None:
    run_copy("keys", "create", "ada")
    assert checks(run_copy("doctor", "--json"))["keys"]["state"] == "ok"
    change(copy, "UPDATE api_keys SET expires = '2020-01-01 00:00:00.000000'")
    assert checks(run_copy("doctor", "--json"))["keys"]["state"] == "error"


def test_server_for_other_machines_needs_a_key(
    run_copy: Run, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_SERVE_HOST", "0.0.0.0")
    assert checks(run_copy("doctor", "--json"))["keys"]["state"] == "error"
    with Registry.open(f"sqlite:///{copy / 'registry.db'}") as registry:
        registry.keys.create("ada")
    assert checks(run_copy("doctor", "--json"))["keys"]["state"] == "ok"


def test_caches_that_do_not_fit_are_a_warning(
    run_copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_SERVE_ADAPTER_MIB", "1000000000")
    memory = checks(run_copy("doctor", "--json"))["memory"]
    assert memory["state"] == "warning"
    assert "--adapter-mib" in memory["hint"]


@pytest.mark.parametrize(
    ("variables", "hint"),
    [
        ({"OMP_NUM_THREADS": "4096"}, "Set OMP_NUM_THREADS="),
        ({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "active"}, "Set GOMP_SPINCOUNT="),
        ({"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "9000000"}, "Set GOMP_SPINCOUNT="),
    ],
    ids=["threads", "policy", "spins"],
)
def test_threads_that_disturb_others_are_a_warning(
    run_copy: Run, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], hint: str
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    threads = checks(run_copy("doctor", "--json"))["threads"]
    assert threads["state"] == "warning"
    assert threads["hint"].startswith(hint)


def test_plugin_that_can_not_be_loaded_is_an_error(
    run_copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_plugin, "TRUNKLINE_API", 9999)
    plugins = checks(run_copy("doctor", "--json"))["plugins"]
    assert plugins["state"] == "error"
    assert plugins["hint"] == "Show the error with: trunkline plugins show toy."

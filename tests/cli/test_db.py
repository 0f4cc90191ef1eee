"""``trunkline db``: output and exit codes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result

import next_revision
from cli_runner import invoke
from trunkline.registry import session
from trunkline.registry.registry import Registry

Db = Callable[..., Result]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a registry with two keys."""
    with Registry.open(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        registry.keys.create("ada")
        registry.keys.create("bob")
    return tmp_path / "registry.db"


@pytest.fixture
def db(path: Path) -> Db:
    """``db(ARGUMENT, …)`` runs ``trunkline db`` in the registry's workspace."""

    def db(*args: str) -> Result:
        return invoke("--workspace", str(path.parent), "db", *args)

    return db


def heads(path: Path) -> dict[str, str]:
    with Registry.open(f"sqlite:///{path}") as registry:
        return {name: str(head) for name, head in registry.events.heads().items()}


def older(path: Path, revision: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE alembic_version SET version_num = '{revision}'")


def test_current_shows_engine_schema_heads_and_rows(db: Db, path: Path) -> None:
    lines = dict(line.split(maxsplit=1) for line in db("current").stdout.splitlines())
    assert lines["registry"] == str(path)
    assert lines["engine"].startswith("SQLite 3.")
    assert lines["schema"] == f"{session.head_revision()}, the newest"
    assert {name: lines[name] for name in ("events", "requests")} == heads(path)
    assert lines["rows"] == "api_keys 2, events 2"


def test_current_in_json(db: Db, path: Path) -> None:
    data = json.loads(db("current", "--json").stdout)
    assert (data["revision"], data["newest"], data["heads"]) == (
        session.head_revision(),
        session.head_revision(),
        heads(path),
    )
    assert (data["rows"]["events"], data["rows"]["runs"]) == (2, 0)


def test_current_stops_counting_at_the_limit(db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_ROW_COUNT", 1)
    assert "api_keys over 1, events over 1" in db("current").stdout


def test_current_reports_a_schema_that_is_too_new(db: Db, path: Path) -> None:
    older(path, "9999")
    result = db("current")
    assert result.exit_code == 0
    assert "9999, newer than this release" in result.stdout


def test_current_names_the_command_that_upgrades_an_older_schema(
    db: Db, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MIGRATIONS", next_revision.write(tmp_path / "next"))
    assert "0006; `trunkline db upgrade` upgrades it to 0007" in db("current").stdout
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM alembic_version").fetchall() == [("0006", None)]


def test_current_creates_no_registry(tmp_path: Path) -> None:
    result = invoke("--workspace", str(tmp_path), "db", "current")
    assert (result.exit_code, list(tmp_path.iterdir())) == (1, [])


def test_upgrade_reports_that_nothing_is_to_do(db: Db, path: Path) -> None:
    assert db("upgrade").stdout == f"{path}: {session.head_revision()}, nothing to do\n"


def test_upgrade_prints_each_step(tmp_path: Path) -> None:
    result = invoke("--workspace", str(tmp_path), "db", "upgrade")
    lines = result.stdout.splitlines()
    assert lines[0] == f"{tmp_path / 'registry.db'}: empty -> {session.head_revision()}"
    assert [line.split()[0] for line in lines[1:]] == list(session.revisions())


def test_upgrade_in_json(db: Db) -> None:
    data = json.loads(db("upgrade", "--json").stdout)
    assert (data["before"], data["after"], data["steps"]) == (
        session.head_revision(),
        session.head_revision(),
        [],
    )


@pytest.mark.parametrize("args", [("upgrade",), ("backup", "copy.db")])
def test_a_newer_registry_is_refused_with_a_hint(db: Db, path: Path, args: tuple[str, ...]) -> None:
    older(path, "9999")
    result = db(*args)
    assert result.exit_code == 1
    assert "pip install --upgrade trunkline" in result.stderr


def test_a_backup_prints_its_heads_and_a_note_to_store_them(
    db: Db, path: Path, tmp_path: Path
) -> None:
    result = db("backup", str(tmp_path / "copy.db"))
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'copy.db'}: schema {session.head_revision()}, ")
    assert dict(line.split() for line in lines[1:]) == heads(path)
    assert "Store the heads elsewhere" in result.stderr


def test_a_backup_of_a_newer_registry_is_refused_by_its_own_name(
    db: Db, path: Path, tmp_path: Path
) -> None:
    older(path, "9999")
    result = db("backup", str(tmp_path / "copy.db"))
    assert (result.exit_code, f"'{path}' has the schema '9999'" in result.stderr) == (1, True)


def test_a_registry_whose_chain_ends_were_removed_is_backed_up_and_restored_over(
    db: Db, path: Path, tmp_path: Path
) -> None:
    sound, kept = str(tmp_path / "sound.db"), heads(path)
    db("backup", sound)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM chain_heads")
    result = db("backup", str(tmp_path / "copy.db"))
    assert (result.exit_code, "A chain has no head" in result.stderr) == (0, True)
    assert db("restore", sound, "--replace").exit_code == 0
    assert int(heads(path)["events"].split(":")[0]) == int(kept["events"].split(":")[0]) + 1


def test_a_backup_in_json(db: Db, path: Path, tmp_path: Path) -> None:
    data = json.loads(db("backup", str(tmp_path / "copy.db"), "--json").stdout)
    assert (data["file"], data["heads"]) == (str(tmp_path / "copy.db"), heads(path))


def test_a_backup_does_not_overwrite_a_file(db: Db, tmp_path: Path) -> None:
    (tmp_path / "copy.db").write_text("mine")
    result = db("backup", str(tmp_path / "copy.db"))
    assert (result.exit_code, (tmp_path / "copy.db").read_text()) == (2, "mine")
    assert "Name another file" in result.stderr


def test_a_restore_over_rows_needs_replace(db: Db, tmp_path: Path) -> None:
    db("backup", str(tmp_path / "copy.db"))
    result = db("restore", str(tmp_path / "copy.db"))
    assert result.exit_code == 1
    assert "--replace" in result.stderr


def test_a_restore_prints_the_saved_registry_and_the_heads(
    db: Db, path: Path, tmp_path: Path
) -> None:
    db("backup", str(tmp_path / "copy.db"))
    result = db("restore", str(tmp_path / "copy.db"), "--replace")
    lines = result.stdout.splitlines()
    (aside,) = tmp_path.glob("registry-before-*.db")
    assert lines[0].startswith(f"{path}: 6 rows from ")
    assert lines[1] == f"The old registry is saved in {aside}."
    assert dict(line.split() for line in lines[2:]) == heads(path)


def test_a_restore_in_json(db: Db, path: Path, tmp_path: Path) -> None:
    db("backup", str(tmp_path / "copy.db"))
    path.unlink()
    data = json.loads(db("restore", str(tmp_path / "copy.db"), "--json").stdout)
    assert (data["rows"], data["previous"], data["heads"]) == (6, None, heads(path))


def test_a_restore_from_a_missing_file_is_wrong_usage(db: Db, tmp_path: Path) -> None:
    result = db("restore", str(tmp_path / "gone.db"))
    assert result.exit_code == 2
    assert "trunkline db backup" in result.stderr

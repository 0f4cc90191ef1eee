"""``trunkline db``: what is printed, where, and with which exit code."""

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
from trunkline.registry import schema
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
    """``db(word, …)`` runs ``trunkline db`` in the registry's workspace."""

    def db(*words: str) -> Result:
        return invoke("--workspace", str(path.parent), "db", *words)

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
    assert lines["schema"] == f"{schema.head_revision()}, the newest"
    assert {name: lines[name] for name in ("events", "requests")} == heads(path)
    assert lines["rows"] == "api_keys 2, events 2"


def test_current_in_json(db: Db, path: Path) -> None:
    told = json.loads(db("current", "--json").stdout)
    assert (told["revision"], told["newest"], told["heads"]) == (
        schema.head_revision(),
        schema.head_revision(),
        heads(path),
    )
    assert (told["rows"]["events"], told["rows"]["runs"]) == (2, 0)


def test_current_counts_no_further_than_it_says(db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MAX_ROW_COUNT", 1)
    assert "api_keys over 1, events over 1" in db("current").stdout


def test_current_tells_of_a_schema_that_is_too_new(db: Db, path: Path) -> None:
    older(path, "9999")
    told = db("current")
    assert told.exit_code == 0
    assert "9999, of a newer release" in told.stdout


def test_current_says_how_to_upgrade_an_older_schema(
    db: Db, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", next_revision.write(tmp_path / "next"))
    assert "0001; `trunkline db upgrade` makes it 0002" in db("current").stdout
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM alembic_version").fetchall() == [("0001",)]


def test_current_makes_no_registry(tmp_path: Path) -> None:
    told = invoke("--workspace", str(tmp_path), "db", "current")
    assert (told.exit_code, list(tmp_path.iterdir())) == (1, [])


def test_upgrade_says_when_there_is_nothing_to_do(db: Db, path: Path) -> None:
    assert db("upgrade").stdout == f"{path}: {schema.head_revision()}, nothing to do\n"


def test_upgrade_says_each_step(tmp_path: Path) -> None:
    told = invoke("--workspace", str(tmp_path), "db", "upgrade")
    lines = told.stdout.splitlines()
    assert lines[0] == f"{tmp_path / 'registry.db'}: empty -> {schema.head_revision()}"
    assert [line.split()[0] for line in lines[1:]] == list(schema.revisions())


def test_upgrade_in_json(db: Db) -> None:
    told = json.loads(db("upgrade", "--json").stdout)
    assert (told["before"], told["after"], told["steps"]) == (
        schema.head_revision(),
        schema.head_revision(),
        [],
    )


@pytest.mark.parametrize("words", [("upgrade",), ("backup", "copy.db")])
def test_a_newer_registry_is_refused_with_the_advice(
    db: Db, path: Path, words: tuple[str, ...]
) -> None:
    older(path, "9999")
    told = db(*words)
    assert told.exit_code == 1
    assert "pip install --upgrade trunkline" in told.stderr


def test_a_backup_prints_its_heads_and_that_they_are_to_be_kept(
    db: Db, path: Path, tmp_path: Path
) -> None:
    told = db("backup", str(tmp_path / "copy.db"))
    lines = told.stdout.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'copy.db'}: schema {schema.head_revision()}, ")
    assert dict(line.split() for line in lines[1:]) == heads(path)
    assert "Keep the heads elsewhere" in told.stderr


def test_a_backup_of_a_newer_registry_is_refused_by_its_own_name(
    db: Db, path: Path, tmp_path: Path
) -> None:
    older(path, "9999")
    told = db("backup", str(tmp_path / "copy.db"))
    assert (told.exit_code, f"'{path}' has the schema '9999'" in told.stderr) == (1, True)


def test_a_registry_whose_chain_ends_were_removed_is_backed_up_and_restored_over(
    db: Db, path: Path, tmp_path: Path
) -> None:
    sound, kept = str(tmp_path / "sound.db"), heads(path)
    db("backup", sound)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM chain_heads")
    told = db("backup", str(tmp_path / "copy.db"))
    assert (told.exit_code, "Not every chain has a head" in told.stderr) == (0, True)
    assert db("restore", sound, "--replace").exit_code == 0
    assert int(heads(path)["events"].split(":")[0]) == int(kept["events"].split(":")[0]) + 1


def test_a_backup_in_json(db: Db, path: Path, tmp_path: Path) -> None:
    told = json.loads(db("backup", str(tmp_path / "copy.db"), "--json").stdout)
    assert (told["file"], told["heads"]) == (str(tmp_path / "copy.db"), heads(path))


def test_a_backup_is_not_written_over(db: Db, tmp_path: Path) -> None:
    (tmp_path / "copy.db").write_text("mine")
    told = db("backup", str(tmp_path / "copy.db"))
    assert (told.exit_code, (tmp_path / "copy.db").read_text()) == (2, "mine")
    assert "Choose another file name" in told.stderr


def test_a_restoring_wants_to_be_told_to_replace(db: Db, tmp_path: Path) -> None:
    db("backup", str(tmp_path / "copy.db"))
    told = db("restore", str(tmp_path / "copy.db"))
    assert told.exit_code == 1
    assert "--replace" in told.stderr


def test_a_restoring_says_where_the_old_registry_is_and_prints_the_heads(
    db: Db, path: Path, tmp_path: Path
) -> None:
    db("backup", str(tmp_path / "copy.db"))
    told = db("restore", str(tmp_path / "copy.db"), "--replace")
    lines = told.stdout.splitlines()
    (aside,) = tmp_path.glob("registry-before-*.db")
    assert lines[0].startswith(f"{path}: 6 rows out of ")
    assert lines[1] == f"The registry that was there is kept in {aside}."
    assert dict(line.split() for line in lines[2:]) == heads(path)


def test_a_restoring_in_json(db: Db, path: Path, tmp_path: Path) -> None:
    db("backup", str(tmp_path / "copy.db"))
    path.unlink()
    told = json.loads(db("restore", str(tmp_path / "copy.db"), "--json").stdout)
    assert (told["rows"], told["previous"], told["heads"]) == (6, None, heads(path))


def test_restoring_from_nothing_is_wrong_use(db: Db, tmp_path: Path) -> None:
    told = db("restore", str(tmp_path / "gone.db"))
    assert told.exit_code == 2
    assert "trunkline db backup" in told.stderr

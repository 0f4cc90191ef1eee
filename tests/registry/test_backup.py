"""Backups of either engine, restored into either."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import create_engine, select, text

from forks import alone
from postgres_server import lent_database
from trunkline.errors import IntegrityError, NotFoundError, RefusedError, RegistryError, UsageError
from trunkline.refs import Ref
from trunkline.registry import session
from trunkline.registry.backup import back_up, create_unjournaled
from trunkline.registry.records import PredictionRecord, RequestEntry, VersionRecord
from trunkline.registry.registry import Registry
from trunkline.registry.restore import RestoreResult, restore
from trunkline.registry.tables import Table

KILL = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import Engine, event
from trunkline.registry.restore import RestoreResult, restore

def die(*ignored):
    os.kill(os.getpid(), signal.SIGKILL)

def note(connection, cursor, statement, *more):
    if sys.argv[4] in " ".join(statement.split()) and str(connection.engine.url) == sys.argv[5]:
        die()

def committed(connection):
    if str(connection.engine.url) == sys.argv[5] and sys.argv[4] == "COMMIT":
        die()

event.listen(Engine, "after_cursor_execute", note)
event.listen(Engine, "commit", committed)
restore(sys.argv[1], Path(sys.argv[2]), save_as=Path(sys.argv[3]), replace=True)
"""

WRITE = """
import sys
from trunkline.registry.registry import Registry
with Registry.open(sys.argv[1], busy_seconds=30) as registry:
    print(registry.keys.create("later")[0].owner)
"""


@pytest.fixture
def full(registry: Registry, publish: Callable[..., VersionRecord]) -> Registry:
    """The registry with rows in most of its tables."""
    version = publish()
    publish()
    registry.aliases.set(Ref.parse("medical/icd10@1"), "champion", actor="key/0aaaaaaa ada")
    registry.aliases.set(Ref.parse("medical/icd10@2"), "champion")
    registry.runs.log_metrics(version.run or 0, 10, {"loss": 0.5, "broken": float("nan")})
    registry.evaluations.record(
        recipe="medical/icd10",
        base_digest=version.base_digest,
        dataset_id=1,
        split="test",
        results={"scores": {"accuracy": {"value": 0.8, "low": 0.7, "high": None}}},
        predictions=[PredictionRecord(row_id="a", group="g", target="größer", prediction="😀")],
        version=version.ref,
    )
    registry.keys.create("ada", expires=datetime(2099, 1, 1, tzinfo=UTC))
    registry.requests.log(
        RequestEntry(
            id=f"r{number}",
            at=datetime(2026, 1, 1, 12, 0, 0, number, tzinfo=UTC),
            key=None,
            route="/v1",
            model="base",
            version="base",
            digest=None,
            prompt_tokens=1,
            new_tokens=2,
            status=200,
            seconds=0.1,
        )
        for number in range(3)
    )
    registry.tags.set("medical/icd10@1", "stage", "trial")
    return registry


@pytest.fixture
def backup(full: Registry, url: str, tmp_path: Path) -> Path:
    return back_up(url, tmp_path / "backup.db").path


@pytest.fixture(params=["sqlite", "postgresql"])
def other_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of another database, empty, on each engine."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'other.db'}"
        return
    with lent_database() as made:
        yield made


@pytest.fixture
def read_back(tmp_path: Path) -> Callable[..., RestoreResult]:
    """``read_back(url, backup)`` restores; the old registry is saved as ``aside.db``."""

    def read_back(url: str, backup: Path, **more: Any) -> RestoreResult:
        return restore(url, backup, save_as=tmp_path / "aside.db", busy_seconds=0.5, **more)

    return read_back


def rows(url: str | Path) -> dict[str, list[Any]]:
    """Every row of every table, as Python values."""
    engine = create_engine(f"sqlite:///{url}" if isinstance(url, Path) else url)
    with engine.connect() as connection:
        tables = {
            table.name: connection.execute(select(table).order_by(*table.primary_key)).all()
            for table in Table.metadata.sorted_tables
        }
    engine.dispose()
    return tables


# ------------------------------------------------------------------------------- backing up


@pytest.mark.dialect
def test_a_backup_holds_every_row(full: Registry, url: str, backup: Path) -> None:
    assert rows(backup) == rows(url)


def test_a_backup_is_a_registry_by_itself(backup: Path) -> None:
    with Registry.open(f"sqlite:///{backup}") as registry:
        assert registry.adapters.get("medical", "icd10").aliases == {"champion": 2}
        assert all(report.intact for report in registry.audit.verify())


def test_a_backup_is_one_file(backup: Path) -> None:
    assert [path.name for path in backup.parent.glob("*backup.db*")] == ["backup.db"]
    with closing(sqlite3.connect(backup)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_backup_returns_the_heads_of_its_chains(full: Registry, url: str, tmp_path: Path) -> None:
    made = back_up(url, tmp_path / "backup.db")
    assert made.heads == full.events.heads()
    assert (made.revision, made.bytes) == (session.head_revision(), made.path.stat().st_size)


def test_a_backups_head_reveals_a_later_rewrite(full: Registry, url: str, tmp_path: Path) -> None:
    heads = back_up(url, tmp_path / "backup.db").heads
    full.keys.create("bob")
    assert all(report.intact for report in full.audit.verify(heads))


@pytest.mark.dialect
def test_a_backup_does_not_wait_for_a_writer(full: Registry, url: str, tmp_path: Path) -> None:
    with full.sessions.write() as session:
        session.execute(text("UPDATE api_keys SET owner = 'half-way'"))
        back_up(url, tmp_path / "backup.db")
    (key,) = rows(tmp_path / "backup.db")["api_keys"]
    assert key.owner == "ada"


@pytest.mark.dialect
def test_a_backup_is_of_one_moment_while_others_write(
    full: Registry, url: str, tmp_path: Path
) -> None:
    before = rows(url)

    class Writer:
        written = 0

        def stage(self, text: str) -> None:
            raise AssertionError

        def progress(self, done: int, total: int, values: object) -> None:
            if not self.written:
                full.keys.create("meanwhile")
                self.written += 1

    back_up(url, tmp_path / "backup.db", listener=Writer())
    assert rows(tmp_path / "backup.db") == before
    assert len(full.keys.list()) == 2


def test_a_backup_is_never_overwritten(full: Registry, url: str, backup: Path) -> None:
    before = backup.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        back_up(url, backup)
    assert backup.read_bytes() == before


def test_no_backup_is_written_through_a_dangling_link(
    full: Registry, url: str, tmp_path: Path
) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "nowhere.db")
    with pytest.raises(UsageError, match="exists already"):
        back_up(url, tmp_path / "link.db")
    assert not (tmp_path / "nowhere.db").exists()


def test_a_backup_that_can_not_be_written_leaves_nothing(
    full: Registry, url: str, tmp_path: Path
) -> None:
    with pytest.raises(RegistryError, match=r"backup .*backup\.db' can't be written") as caught:
        back_up(url, tmp_path / "nosuch" / "backup.db")
    assert caught.value.hint
    assert not list(tmp_path.glob("*backup.db*"))


def test_a_killed_backup_can_be_repeated(full: Registry, url: str, tmp_path: Path) -> None:
    (tmp_path / ".backup.db.part").write_bytes(b"half of a backup")
    assert rows(back_up(url, tmp_path / "backup.db").path) == rows(url)
    assert not (tmp_path / ".backup.db.part").exists()


def test_backing_up_a_missing_registry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no registry at"):
        back_up(f"sqlite:///{tmp_path / 'registry.db'}", tmp_path / "backup.db")
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------- restoring


def test_a_backup_of_either_engine_is_restored_into_either(
    url: str, backup: Path, other_url: str, read_back: Callable[..., RestoreResult]
) -> None:
    done = read_back(other_url, backup)
    before, after = rows(url), rows(other_url)
    event = after["events"].pop()
    assert {**before, "chain_heads": []} == {**after, "chain_heads": []}
    assert (event.kind, event.subject) == ("registry.restored", "registry")
    assert (done.rows, done.previous) == (sum(map(len, before.values())), None)


def test_a_restored_registrys_chains_are_intact_and_end_with_the_restore(
    full: Registry, backup: Path, other_url: str, read_back: Callable[..., RestoreResult]
) -> None:
    kept = full.events.heads()
    done = read_back(other_url, backup, actor="system:ada")
    with Registry.open(other_url) as registry:
        assert all(report.intact for report in registry.audit.verify(kept))
        assert registry.events.heads() == done.heads
        event = registry.events.list(limit=1)[0]
    assert (event.actor, event.detail["backup"]) == ("system:ada", "backup.db")
    assert event.detail["heads"] == {name: str(head) for name, head in kept.items()}


@pytest.mark.dialect
def test_a_restored_registry_continues_with_the_next_numbers(
    backup: Path, other_url: str, read_back: Callable[..., RestoreResult]
) -> None:
    read_back(other_url, backup)
    with Registry.open(other_url) as registry:
        assert registry.versions.reserve("medical", "icd10", task="classification") == 3
        run = registry.runs.get(2)
        started = registry.runs.start(
            recipe=run.recipe,
            base_digest=run.base_digest,
            dataset_id=run.dataset_id,
            seed=0,
            settings={},
            environment={},
        )
        assert started == 3
        registry.keys.create("bob")
        registry.aliases.set(Ref.parse("medical/icd10@1"), "canary")
        assert all(report.intact for report in registry.audit.verify())


def test_restoring_over_rows_is_refused(
    full: Registry, url: str, backup: Path, read_back: Callable[..., RestoreResult]
) -> None:
    before = rows(url)
    with pytest.raises(RefusedError, match="holds rows already") as caught:
        read_back(url, backup)
    assert "--replace" in (caught.value.hint or "")
    assert rows(url) == before


def test_the_replaced_registry_is_saved(
    full: Registry, url: str, backup: Path, read_back: Callable[..., RestoreResult], tmp_path: Path
) -> None:
    full.keys.create("after the backup")
    before = rows(url)
    done = read_back(url, backup, replace=True)
    assert done.previous == tmp_path / "aside.db"
    assert rows(tmp_path / "aside.db") == before
    (key,) = full.keys.list()
    assert key.owner == "ada"


@pytest.mark.dialect
def test_numbers_reserved_after_the_backup_stay_used(
    full: Registry,
    url: str,
    backup: Path,
    publish: Callable[..., VersionRecord],
    read_back: Callable[..., RestoreResult],
) -> None:
    publish()
    publish("other")
    read_back(url, backup, replace=True)
    assert full.adapters.get("medical", "icd10").newest == 2
    assert full.versions.reserve("medical", "icd10", task="classification") == 4
    assert full.versions.reserve("medical", "other", task="classification") == 2


def test_readers_and_an_open_server_see_the_restored_registry(
    full: Registry, url: str, backup: Path, read_back: Callable[..., RestoreResult]
) -> None:
    full.aliases.set(Ref.parse("medical/icd10@1"), "champion")
    read_back(url, backup, replace=True)
    assert full.versions.resolve(Ref.parse("medical/icd10"))[0].number == 2
    assert alone(WRITE, url).out == "later"


@pytest.mark.dialect
@pytest.mark.parametrize("moment", ["DELETE FROM adapters", "INSERT INTO runs", "COMMIT"])
def test_a_killed_restore_changes_nothing_and_can_be_repeated(
    full: Registry,
    url: str,
    backup: Path,
    read_back: Callable[..., RestoreResult],
    tmp_path: Path,
    moment: str,
) -> None:
    full.keys.create("after the backup")
    before = rows(url)
    if moment.startswith("DELETE") and "postgresql" in url:
        moment = "TRUNCATE"
    aside = tmp_path / "killed-aside.db"
    shown = str(full.sessions.engines.url)
    assert alone(KILL, url, str(backup), str(aside), moment, shown).code == -9
    assert rows(url) == before
    assert read_back(url, backup, replace=True).rows == sum(map(len, rows(backup).values()))


def test_a_failed_restore_changes_nothing_and_saves_nothing(
    full: Registry,
    url: str,
    backup: Path,
    read_back: Callable[..., RestoreResult],
    tmp_path: Path,
) -> None:
    class FullDisk:
        stages: ClassVar[list[str]] = []

        def stage(self, text: str) -> None:
            self.stages.append(text)

        def progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
            if self.stages[-1] == "copying the rows" and done == total:
                raise sqlite3.OperationalError("database or disk is full")

    before = rows(url)
    with pytest.raises(RegistryError, match=r"can't be written|failed"):
        read_back(url, backup, replace=True, listener=FullDisk())
    assert rows(url) == before
    assert not (tmp_path / "aside.db").exists()


@pytest.mark.dialect
def test_restoring_into_a_locked_registry_is_refused(
    full: Registry, url: str, backup: Path, read_back: Callable[..., RestoreResult], tmp_path: Path
) -> None:
    before = rows(url)
    with full.sessions.write() as session:
        session.execute(text("UPDATE api_keys SET owner = owner"))
        with pytest.raises(RegistryError, match="locked"):
            read_back(url, backup, replace=True)
    assert rows(url) == before
    assert not (tmp_path / "aside.db").exists()


# ---------------------------------------------------------------------- what is not read back


@pytest.fixture
def one_backup(tmp_path: Path) -> Path:
    """A backup of a small registry on SQLite."""
    with Registry.open(f"sqlite:///{tmp_path / 'small.db'}") as registry:
        registry.keys.create("ada")
        registry.keys.create("bob")
    return back_up(f"sqlite:///{tmp_path / 'small.db'}", tmp_path / "one.db").path


def test_restoring_a_missing_backup_is_refused(
    url: str, tmp_path: Path, read_back: Callable[..., RestoreResult]
) -> None:
    with pytest.raises(NotFoundError, match=r"no backup .*gone\.db"):
        read_back(url, tmp_path / "gone.db")


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100, b"SQLite format 3\0" * 300])
def test_restoring_another_file_is_refused(
    url: str, tmp_path: Path, read_back: Callable[..., RestoreResult], content: bytes
) -> None:
    path = tmp_path / "file.db"
    path.write_bytes(content)
    with pytest.raises(RegistryError, match=r"file\.db") as caught:
        read_back(url, path)
    assert caught.value.hint
    assert path.read_bytes() == content


def test_a_backup_with_damaged_pages_is_refused(
    registry: Registry, url: str, one_backup: Path, read_back: Callable[..., RestoreResult]
) -> None:
    content = bytearray(one_backup.read_bytes())
    for place in range(8192, len(content), 4096):
        content[place : place + 64] = b"\xff" * 64
    one_backup.write_bytes(content)
    with pytest.raises(RegistryError, match=r"one\.db"):
        read_back(url, one_backup)
    assert registry.keys.list() == []


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE events SET actor = 'mallory' WHERE seq = 1",
        "DELETE FROM events WHERE seq = 1",
        "DELETE FROM events WHERE seq = 2",
    ],
)
def test_a_backup_with_a_broken_chain_is_refused(
    registry: Registry,
    url: str,
    one_backup: Path,
    read_back: Callable[..., RestoreResult],
    tampering: str,
) -> None:
    with closing(sqlite3.connect(one_backup)) as connection, connection:
        connection.execute(tampering)
    with pytest.raises(IntegrityError, match="was changed"):
        read_back(url, one_backup)
    assert registry.events.list() == []


def test_a_backup_of_a_newer_release_is_refused(
    url: str, one_backup: Path, read_back: Callable[..., RestoreResult]
) -> None:
    with closing(sqlite3.connect(one_backup)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(RegistryError, match=r"one\.db' has the schema '9999'"):
        read_back(url, one_backup)


def test_another_programs_database_is_no_backup(
    url: str, tmp_path: Path, read_back: Callable[..., RestoreResult]
) -> None:
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection, connection:
        connection.execute("CREATE TABLE customers (id INTEGER)")
    with pytest.raises(RegistryError, match=r"shop\.db' is not a Trunkline registry"):
        read_back(url, tmp_path / "shop.db")


def test_a_full_temporary_folder_is_named(
    registry: Registry,
    url: str,
    one_backup: Path,
    read_back: Callable[..., RestoreResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare = create_unjournaled

    def small(path: Path) -> sqlite3.Connection:
        connection = bare(path)
        connection.execute("PRAGMA max_page_count = 2")
        return connection

    monkeypatch.setattr("trunkline.registry.restore.create_unjournaled", small)
    with pytest.raises(RegistryError, match="no space") as caught:
        read_back(url, one_backup)
    assert "TMPDIR" in (caught.value.hint or "")


# ------------------------------------------------------------------------- a damaged registry


def test_a_damaged_registry_is_moved_and_restored(
    tmp_path: Path, one_backup: Path, read_back: Callable[..., RestoreResult]
) -> None:
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"no database at all" * 100)
    done = read_back(f"sqlite:///{damaged}", one_backup, replace=True)
    assert done.previous is not None
    assert done.previous.read_bytes() == b"no database at all" * 100
    with Registry.open(f"sqlite:///{damaged}") as registry:
        assert len(registry.keys.list()) == 2


def test_a_damaged_registry_is_not_replaced_by_default(
    tmp_path: Path, one_backup: Path, read_back: Callable[..., RestoreResult]
) -> None:
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"no database at all" * 100)
    with pytest.raises(RegistryError, match="is not a database or is damaged") as caught:
        read_back(f"sqlite:///{damaged}", one_backup)
    assert "trunkline db restore" in (caught.value.hint or "")
    assert damaged.read_bytes() == b"no database at all" * 100


def test_a_file_copy_with_its_log_is_restored_like_a_backup(
    url: str, tmp_path: Path, read_back: Callable[..., RestoreResult]
) -> None:
    with Registry.open(f"sqlite:///{tmp_path / 'live.db'}") as live:
        live.keys.create("ada")
        (tmp_path / "copy").mkdir()
        for path in tmp_path.glob("live.db*"):
            shutil.copy(path, tmp_path / "copy" / path.name)
    assert read_back(url, tmp_path / "copy" / "live.db").rows == 4

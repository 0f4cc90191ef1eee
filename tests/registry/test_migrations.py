"""The migrations create the tables of the code, and an upgrade keeps rows, waits and recovers."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

import next_revision
from forks import alone
from registry_rows import REVISION, columns_of, contents, fill, revision
from trunkline.errors import RegistryError
from trunkline.refs import Ref
from trunkline.registry import session
from trunkline.registry.backup import back_up
from trunkline.registry.registry import Registry
from trunkline.registry.tables import Table

pytestmark = pytest.mark.dialect

TABLES = sorted(Table.metadata.tables)

KILL = """
import os, signal, sys
import next_revision
from sqlalchemy import Engine, event
from trunkline.registry.session import upgrade

def kill(*ignored):
    os.kill(os.getpid(), signal.SIGKILL)

url, migrations, statement = sys.argv[1:]
if statement == "COMMIT":
    event.listen(Engine, "commit", kill)
else:
    def check(connection, cursor, executed, *more):
        if statement in " ".join(executed.split()):
            kill()
    event.listen(Engine, "after_cursor_execute", check)
next_revision.use(migrations)
upgrade(url)
"""


@pytest.fixture
def filled(empty_url: str) -> str:
    """The URL of a registry of the first schema with rows in every table."""
    fill(empty_url)
    return empty_url


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    """A migrations folder with a second revision."""
    return next_revision.write(tmp_path / "next")


@pytest.fixture
def upgraded_code(filled: str, migrations: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second revision is what this process needs."""
    monkeypatch.setattr(session, "MIGRATIONS", migrations)


# ------------------------------------------------------------------------------- the first schema


def test_listed_revisions_are_alembic_s() -> None:
    config = Config()
    config.set_main_option("script_location", str(session.MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    walked = [one.revision for one in script.walk_revisions()]
    assert walked == list(reversed(session.revisions()))
    assert script.get_current_head() == session.head_revision()


def test_migrations_create_the_tables_of_the_code(url: str) -> None:
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []
        assert context.get_current_revision() == session.head_revision()
    engine.dispose()


def test_migrations_name_constraints_and_indexes_as_the_code_does(url: str, empty_url: str) -> None:
    def constraints(url: str) -> set[tuple[str, str | None]]:
        engine = create_engine(url)
        inspector = inspect(engine)
        names = {(table, inspector.get_pk_constraint(table)["name"]) for table in TABLES}
        for list_constraints in (
            inspector.get_foreign_keys,
            inspector.get_unique_constraints,
            inspector.get_check_constraints,
            inspector.get_indexes,
        ):
            names |= {(table, one["name"]) for table in TABLES for one in list_constraints(table)}
        engine.dispose()
        return names

    engine = create_engine(empty_url)
    Table.metadata.create_all(engine)
    engine.dispose()
    assert constraints(url) == constraints(empty_url)


def test_hashes_of_the_chains_are_the_same_on_every_engine(filled: str) -> None:
    with Registry.open(filled) as registry:
        heads = {name: str(head)[:18] for name, head in registry.events.heads().items()}
    assert heads == {"events": "4:beb76f1ff0ff303e", "requests": "5:a4cc44fd5b85ccea"}


def test_creating_a_registry_reports_every_revision(empty_url: str) -> None:
    upgrade = session.upgrade(empty_url)
    assert (upgrade.before, upgrade.after) == (None, session.head_revision())
    assert [step.revision for step in upgrade.steps] == list(session.revisions())
    assert all(step.title for step in upgrade.steps)


# ------------------------------------------------------------------------------------- an upgrade


@pytest.mark.usefixtures("upgraded_code")
def test_an_upgrade_keeps_every_row(filled: str) -> None:
    columns = columns_of(filled)
    before = contents(filled, columns)
    assert all(before.values()), "every table must hold rows"
    upgrade = session.upgrade(filled)
    assert (upgrade.before, upgrade.after) == (REVISION, next_revision.REVISION)
    assert [(step.revision, step.title) for step in upgrade.steps] == [
        (next_revision.REVISION, "A revision for tests.")
    ]
    assert contents(filled, columns) == before


@pytest.mark.usefixtures("upgraded_code")
def test_opening_an_older_registry_upgrades_it(filled: str) -> None:
    with Registry.open(filled) as registry:
        version, how = registry.versions.resolve(Ref.parse("toy/animals"))
        assert (str(version.ref), how) == ("toy/animals@2", "champion")
        assert registry.versions.reserve("toy", "animals", task="classification") == 4
        assert all(report.intact for report in registry.audit.verify())
    assert revision(filled) == next_revision.REVISION


@pytest.mark.usefixtures("upgraded_code")
def test_upgrading_twice_changes_nothing(filled: str) -> None:
    session.upgrade(filled)
    before = contents(filled)
    assert session.upgrade(filled).steps == ()
    assert contents(filled) == before


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE runs ADD COLUMN",
        "CREATE TABLE leaderboard",
        "UPDATE requests",
        "INSERT INTO leaderboard",
        "UPDATE alembic_version",
        "COMMIT",
    ],
)
def test_a_killed_upgrade_changes_nothing_and_can_be_repeated(
    filled: str, migrations: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    before = contents(filled)
    assert alone(KILL, filled, str(migrations), statement).code == -9
    assert contents(filled) == before
    assert session.inspect_database(filled).revision == REVISION
    monkeypatch.setattr(session, "MIGRATIONS", migrations)
    assert [step.revision for step in session.upgrade(filled).steps] == [next_revision.REVISION]
    with Registry.open(filled) as registry:
        assert all(report.intact for report in registry.audit.verify())


def test_the_script_that_kills_upgrades_when_nothing_is_killed(
    filled: str, migrations: Path
) -> None:
    assert alone(KILL, filled, str(migrations), "no such statement").code == 0
    assert revision(filled) == next_revision.REVISION


def test_code_of_the_revision_before_uses_a_newer_schema_that_permits_it(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrations = next_revision.write(tmp_path / "rolling", oldest=REVISION)
    with monkeypatch.context() as newer:
        newer.setattr(session, "MIGRATIONS", migrations)
        session.upgrade(filled)
    with Registry.open(filled) as registry:
        version, how = registry.versions.resolve(Ref.parse("toy/animals"))
        assert (str(version.ref), how) == ("toy/animals@2", "champion")
        assert registry.versions.reserve("toy", "animals", task="classification") == 4
        assert all(report.intact for report in registry.audit.verify())
    upgrade = session.upgrade(filled)
    assert (upgrade.after, upgrade.steps) == (next_revision.REVISION, ())
    assert session.inspect_database(filled).oldest == REVISION
    with pytest.raises(RegistryError, match="does not know"):  # it would leave columns out
        back_up(filled, tmp_path / "backup.db")


def test_a_newer_registry_is_refused(filled: str, migrations: Path) -> None:
    assert alone(KILL, filled, str(migrations), "no such statement").code == 0
    with pytest.raises(RegistryError, match="does not know") as caught:
        Registry.open(filled)
    assert "upgrade" in (caught.value.hint or "")


@pytest.mark.usefixtures("upgraded_code")
def test_inspecting_an_older_registry_changes_nothing(filled: str) -> None:
    before = contents(filled)
    info = session.inspect_database(filled)
    assert (info.revision, info.rows["requests"]) == (REVISION, 5)
    assert set(info.heads) == {"events", "requests"}
    assert contents(filled) == before


@pytest.mark.usefixtures("upgraded_code")
def test_a_read_only_registry_of_an_older_schema_is_refused(
    filled: str, read_only: Callable[[str], str]
) -> None:
    with pytest.raises(RegistryError, match="read-only"):
        Registry.open(read_only(filled))
    assert revision(filled) == REVISION


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """``read_only(url)`` makes a database read-only for this process and gives its URL."""

    def make(url: str) -> str:
        if not url.startswith("sqlite"):
            return url + "&options=-c%20default_transaction_read_only%3Don"
        real = os.access
        monkeypatch.setattr(
            "trunkline.registry.engine.os.access",
            lambda path, mode: mode != os.W_OK and real(path, mode),
        )
        return url

    return make


@pytest.mark.parametrize(
    ("architecture", "modality"),
    [
        ("LlamaForCausalLM", "text"),
        ("GPT2LMHeadModel", "text"),
        ("unknown", "text"),
        ("tf_efficientnet_lite0", "image"),
        ("ViTModel", "image"),
        ("ConvNextForImageClassification", "image"),
    ],
)
def test_modality_of_recorded_bases_follows_from_their_architecture(
    architecture: str, modality: str
) -> None:
    file = session.MIGRATIONS / "versions" / "0005_base_modality.py"
    spec = importlib.util.spec_from_file_location("revision_0005", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with create_engine("sqlite://").connect() as connection:
        connection.execute(text("CREATE TABLE bases (architecture TEXT)"))
        connection.execute(text("INSERT INTO bases VALUES (:name)"), {"name": architecture})
        with Operations.context(MigrationContext.configure(connection)):
            module.upgrade()
        assert connection.execute(text("SELECT modality FROM bases")).scalar_one() == modality

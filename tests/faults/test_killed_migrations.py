"""Killed at any step of a migration, the registry has the old schema or the new, and runs on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from faults.cases import Ended, Scene, try_all
from faults.left import AUDIT
from faults.old_registry import (
    OLD,
    is_damaged,
    make_old,
    old_rows,
    revision,
    table_names,
)
from faults.postgresql import Postgres
from faults.steps import Fault
from trunkline.registry.schema import HEAD

UPGRADE = ["db", "upgrade"]
ALL = pytest.param(None, marks=pytest.mark.slow, id="every-step")


class Migrated:
    """What may be left of a migration: nothing, or all of it."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene.reset()
        self._rows = old_rows(scene.registry_url)
        assert revision(scene.registry_url) == OLD
        assert all(self._rows.values()), "every table must hold rows"
        [done] = scene.commands(UPGRADE)
        assert done["status"] == 0, done["output"]
        self._tables = table_names(scene.registry_url)

    def __call__(self, fault: Fault, ended: Ended) -> Iterator[str]:
        url = self._scene.registry_url
        found = revision(url)
        if found not in (OLD, HEAD):
            yield f"the schema is {found}"
        yield from self._same_rows(url, "the fault")
        for words in (UPGRADE, AUDIT, ["adapters", "list", "--json"]):
            [done] = self._scene.commands(words)
            if done["status"] != 0:
                yield f"`{' '.join(words)}` ends with {done['status']}: {done['output'].strip()}"
        if revision(url) != HEAD:
            yield f"the schema is {revision(url)} after an upgrade"
        yield from self._same_rows(url, "the upgrade")
        if table_names(url) != self._tables:
            yield f"the tables differ by {sorted(table_names(url) ^ self._tables)}"
        if is_damaged(url):
            yield "the file is damaged"

    def _same_rows(self, url: str, after: str) -> Iterator[str]:
        for name, rows in old_rows(url).items():
            if rows != self._rows[name]:
                yield f"the rows of {name} are others after {after}"


@pytest.fixture(scope="module")
def old_postgresql(empty: Scene, postgres: Postgres) -> Scene:
    """The same on PostgreSQL."""
    template = postgres.template("old", make_old)
    return replace(
        empty,
        settings={"TRUNKLINE_REGISTRY": postgres.url("case")},
        renew=lambda: postgres.renew("case", template),
    )


@pytest.mark.parametrize("most", [pytest.param(5, id="some-steps"), ALL])
def test_migration_killed_on_sqlite_runs_again(old: Scene, most: int | None) -> None:
    modes = ("before", "after")
    try_all(old, "command", Migrated(old), modes=modes, most=most, words=UPGRADE)


@pytest.mark.parametrize("most", [pytest.param(3, id="some-steps"), ALL])
def test_migration_killed_on_postgresql_runs_again(old_postgresql: Scene, most: int | None) -> None:
    modes = ("before", "after")
    settled = Migrated(old_postgresql)
    try_all(old_postgresql, "command", settled, modes=modes, most=most, words=UPGRADE)


@pytest.mark.parametrize("most", [pytest.param(3, id="some-steps"), ALL])
def test_making_a_registry_killed_runs_again(empty: Scene, most: int | None) -> None:
    def settled(fault: Fault, ended: Ended) -> Iterator[str]:
        for words in (UPGRADE, AUDIT):
            [done] = empty.commands(words)
            if done["status"] != 0:
                yield f"`{' '.join(words)}` ends with {done['status']}: {done['output'].strip()}"
        if is_damaged(empty.registry_url) or revision(empty.registry_url) != HEAD:
            yield "the registry is not whole"

    try_all(empty, "command", settled, modes=("before", "after"), most=most, words=UPGRADE)

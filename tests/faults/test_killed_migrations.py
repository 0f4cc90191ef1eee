"""Killed at any step of a migration, the registry has the old schema or the new, and runs on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

import next_revision
from faults.cases import Outcome, Scene, try_faults
from faults.postgresql import Postgres
from faults.recovery import AUDIT
from faults.steps import Fault
from registry_rows import REVISION, columns_of, contents, fill, is_damaged, revision
from trunkline.registry.session import head_revision

pytestmark = pytest.mark.merge

UPGRADE = ["db", "upgrade"]
ALL = pytest.param(None, marks=pytest.mark.slow, id="every-step")


class UpgradeLeft:
    """What a killed upgrade may leave: the old schema or the new one, with the same rows."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene.reset()
        url = scene.registry_url
        self._columns = columns_of(url)
        self._rows = contents(url, self._columns)
        assert revision(url) == REVISION
        assert all(self._rows.values()), "every table must hold rows"
        [result] = scene.commands(UPGRADE)
        assert result["status"] == 0, result["output"]
        self._tables = set(columns_of(url))

    def __call__(self, fault: Fault, ended: Outcome) -> Iterator[str]:
        url = self._scene.registry_url
        if revision(url) not in (REVISION, next_revision.REVISION):
            yield f"the schema is {revision(url)}"
        yield from self._changed_rows(url, "the fault")
        for args in (UPGRADE, AUDIT, ["adapters", "list", "--json"]):
            [result] = self._scene.commands(args)
            if result["status"] != 0:
                output = result["output"].strip()
                yield f"`{' '.join(args)}` ends with {result['status']}: {output}"
        if revision(url) != next_revision.REVISION:
            yield f"the schema is {revision(url)} after an upgrade"
        yield from self._changed_rows(url, "the upgrade")
        if set(columns_of(url)) != self._tables:
            yield f"the tables differ by {sorted(set(columns_of(url)) ^ self._tables)}"
        if is_damaged(url):
            yield "the file is damaged"

    def _changed_rows(self, url: str, after: str) -> Iterator[str]:
        for name, rows in contents(url, self._columns).items():
            if rows != self._rows[name]:
                yield f"the rows of {name} changed after {after}"


@pytest.fixture(scope="module")
def old_postgresql(old: Scene, empty: Scene, postgres: Postgres) -> Scene:
    """As ``old``, on PostgreSQL."""
    template = postgres.template("old", fill)
    return replace(
        old,
        made=empty.made,
        settings={**old.settings, "TRUNKLINE_REGISTRY": postgres.url("case")},
        renew=lambda: postgres.renew("case", template),
    )


@pytest.mark.parametrize("most", [pytest.param(5, id="some-steps"), ALL])
def test_migration_killed_on_sqlite_runs_again(old: Scene, most: int | None) -> None:
    modes = ("before", "after")
    try_faults(old, "command", UpgradeLeft(old), modes=modes, most=most, args=UPGRADE)


@pytest.mark.parametrize("most", [pytest.param(3, id="some-steps"), ALL])
def test_migration_killed_on_postgresql_runs_again(old_postgresql: Scene, most: int | None) -> None:
    modes = ("before", "after")
    settled = UpgradeLeft(old_postgresql)
    try_faults(old_postgresql, "command", settled, modes=modes, most=most, args=UPGRADE)


@pytest.mark.parametrize("most", [pytest.param(3, id="some-steps"), ALL])
def test_making_a_registry_killed_runs_again(empty: Scene, most: int | None) -> None:
    def settled(fault: Fault, ended: Outcome) -> Iterator[str]:
        for args in (UPGRADE, AUDIT):
            [done] = empty.commands(args)
            if done["status"] != 0:
                yield f"`{' '.join(args)}` ends with {done['status']}: {done['output'].strip()}"
        if is_damaged(empty.registry_url) or revision(empty.registry_url) != head_revision():
            yield "the registry is incomplete"

    try_faults(empty, "command", settled, modes=("before", "after"), most=most, args=UPGRADE)

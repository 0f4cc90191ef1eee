"""A command that is killed at any step leaves its result absent or complete."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faults.cases import Forks, Outcome, Scene, enumerate_steps, try_faults
from faults.recovery import AUDIT, GC, LITTER, VERIFY, RecoveryCheck
from faults.steps import Fault, When

pytestmark = pytest.mark.merge

MODES: tuple[When, ...] = ("before", "after", "torn")
STAGING = ("tmp/trunkline-*",)
"""A killed process can't clean up its temporary folder, and gc ignores it."""


def some(count: int) -> Any:
    """Run with a sample of faults, and in the slow tier with all of them."""
    return pytest.mark.parametrize(
        "most",
        [
            pytest.param(count, id="some-steps"),
            pytest.param(None, marks=pytest.mark.slow, id="every-step"),
        ],
    )


# ------------------------------------------------------------------------------------ publish


@some(5)
def test_publish_killed_leaves_a_version_absent_or_complete(
    stocked: Scene, sound: Path, base_digest: str, imports: list[str], most: int | None
) -> None:
    try_faults(
        stocked,
        "publish",
        RecoveryCheck(stocked, again=imports, makes=1),
        modes=MODES,
        most=most,
        source=str(sound),
        ref="toy/animals",
        base_digest=base_digest,
    )


def test_publish_syncs_everything_before_it_becomes_visible(
    stocked: Scene, sound: Path, base_digest: str
) -> None:
    steps = enumerate_steps(
        stocked, "publish", source=str(sound), ref="toy/new", base_digest=base_digest
    )
    unsynced: set[str] = set()
    for step in steps:
        parent = step.what.rpartition("/")[0]
        if step.kind in ("open", "write"):
            unsynced.add(step.what)
        elif step.kind in ("mkdir", "remove"):
            unsynced.add(parent)
        elif step.kind == "sync":
            unsynced.discard(step.what)
        elif step.kind == "rename":
            inside = {one for one in unsynced if ".publishing-" in one}
            assert not inside, f"renamed before {sorted(inside)} were synced"
            unsynced.add(parent)
    last = [index for index, step in enumerate(steps) if step.kind == "commit"][-1]
    assert steps[last] == steps[-1], "something is written after the version is visible"
    assert not unsynced, f"visible before {sorted(unsynced)} were synced"


# ------------------------------------------------------------------------------------- import


@some(5)
def test_import_killed_leaves_a_version_absent_or_complete(
    stocked: Scene, imports: list[str], most: int | None
) -> None:
    def every_import_has_an_event() -> Iterator[str]:
        [(events,)] = stocked.rows("SELECT COUNT(*) FROM events WHERE kind = 'version.imported'")
        [(made,)] = stocked.rows("SELECT COUNT(*) FROM versions WHERE status = 'visible'")
        if events != made:
            yield f"{made} versions were imported, {events} events record it"

    settled = RecoveryCheck(
        stocked, again=imports, makes=1, allowed=STAGING, also=every_import_has_an_event
    )
    try_faults(stocked, "command", settled, modes=MODES, most=most, args=imports)


@some(3)
def test_import_of_an_archive_killed_leaves_a_version_absent_or_complete(
    packed: Scene, most: int | None
) -> None:
    args = ["adapters", "import", str(packed.root / "out/in.tar"), "--name", "toy/moved"]

    def bound_runs() -> Iterator[str]:
        free = packed.rows(
            "SELECT id FROM runs WHERE id NOT IN"
            " (SELECT run_id FROM versions WHERE run_id IS NOT NULL)"
        )
        if free:
            yield f"runs without a version: {free}"

    settled = RecoveryCheck(
        packed, again=args, makes=1, allowed=("out/in.tar", *STAGING), at_last=bound_runs
    )
    try_faults(packed, "command", settled, modes=MODES, most=most, args=args)


# ------------------------------------------------------------------------------------- export


@some(3)
def test_export_killed_leaves_an_archive_absent_or_complete(
    stocked: Scene, most: int | None
) -> None:
    archive = stocked.root / "out/animals.tar"
    args = ["adapters", "export", "toy/animals@1", str(archive), "--overwrite"]

    def archive_is_valid() -> Iterator[str]:
        if archive.exists():
            check = ["adapters", "import", str(archive), "--name", "toy/copy"]
            kept = stocked.root / "tmp" / "kept"
            shutil.copytree(stocked.workspace, kept)
            [done] = stocked.commands(["--workspace", str(kept), *check])
            shutil.rmtree(kept)
            if done["status"] != 0:
                yield f"the archive is not valid: {done['output'].strip()}"

    settled = RecoveryCheck(
        stocked, again=args, allowed=("out/animals.tar", *STAGING), also=archive_is_valid
    )
    try_faults(stocked, "command", settled, modes=MODES, most=most, args=args)


# ----------------------------------------------------------------------------------- rm and gc


@some(3)
def test_rm_killed_leaves_a_version_complete_or_removed(shelf: Scene, most: int | None) -> None:
    args = ["adapters", "rm", "toy/animals@2", "--reason", "a test"]
    settled = RecoveryCheck(shelf, again=args, takes=("toy/animals@2",))
    try_faults(shelf, "command", settled, modes=MODES, most=most, args=args)


@some(4)
def test_gc_killed_deletes_only_what_is_unused(littered: Scene, most: int | None) -> None:
    settled = RecoveryCheck(littered, again=GC, litter=LITTER)
    try_faults(littered, "command", settled, modes=MODES, most=most, args=list(GC))


# ------------------------------------------------------------------------------------ aliases


@some(2)
def test_promote_killed_moves_the_alias_with_its_history_or_not_at_all(
    shelf: Scene, most: int | None
) -> None:
    args = ["adapters", "promote", "toy/animals@2", "--force", "--reason", "a test"]

    def history_agrees() -> Iterator[str]:
        [(current,)] = shelf.rows(
            "SELECT number FROM aliases JOIN versions ON versions.id = version_id"
            " WHERE alias = 'champion'"
        )
        moves = shelf.rows(
            "SELECT number FROM alias_moves JOIN versions ON versions.id = version_id"
            " WHERE alias = 'champion' ORDER BY alias_moves.id"
        )
        events = shelf.rows("SELECT COUNT(*) FROM events WHERE kind = 'alias.moved'")
        if moves[-1] != (current,) or events != [(len(moves),)]:
            yield f"champion is {current}, its moves are {moves}, {events} events record them"

    settled = RecoveryCheck(shelf, again=args, also=history_agrees)
    try_faults(shelf, "command", settled, modes=MODES, most=most, args=args)


# ------------------------------------------------------------------------- cards and signatures


@some(2)
def test_card_killed_while_replaced_is_the_old_or_the_new(packed: Scene, most: int | None) -> None:
    args = ["adapters", "card", "toy/trained@1", "--write"]
    beside = ("adapters/toy/trained/1/README.md", "adapters/toy/trained/1/provenance.json")
    settled = RecoveryCheck(packed, again=args, litter=beside, allowed=("out/in.tar",), hours=2)
    try_faults(packed, "command", settled, modes=MODES, most=most, args=args)


# -------------------------------------------------------------------------- backup and restore


@some(2)
def test_backup_killed_leaves_a_backup_absent_or_complete(shelf: Scene, most: int | None) -> None:
    target = shelf.root / "out/backup.db"
    args = ["db", "backup", str(target)]

    def settled(fault: Fault, ended: Outcome) -> Iterator[str]:
        if target.exists():
            yield from _backup_wrong(shelf, target)
            target.unlink()
        for line in (args, AUDIT, VERIFY):
            [done] = shelf.commands(line)
            if done["status"] != 0:
                yield f"`{' '.join(line)}` ends with {done['status']}: {done['output'].strip()}"
        yield from _backup_wrong(shelf, target)
        for name in shelf.files("out"):
            if name != "backup.db":
                yield f"out/{name} is left after the same command"

    try_faults(shelf, "command", settled, modes=MODES, most=most, args=args)


def _backup_wrong(scene: Scene, target: Path) -> Iterator[str]:
    """Problems of a backup: damage, or other rows than the registry's."""
    counting = "SELECT COUNT(*), MAX(hash) FROM events UNION ALL SELECT COUNT(*), '' FROM versions"
    with closing(sqlite3.connect(target)) as connection:
        if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            yield "the backup is damaged"
        if connection.execute(counting).fetchall() != scene.rows(counting):
            yield "the backup has other rows than the registry"


@pytest.fixture(scope="module")
def backed_up(stocked: Scene, forks: Forks, imports: list[str]) -> Scene:
    """``stocked`` with a backup in ``out``, and a version and an event since."""
    stocked.reset()
    lines = [
        ["db", "backup", str(stocked.root / "out/backup.db")],
        imports,
        ["note", "toy/animals", "a note after the backup"],
    ]
    for done in stocked.commands(*lines):
        assert done["status"] == 0, done["output"]
    made = stocked.made.with_name("backed-up")
    shutil.copytree(stocked.root, made)
    return replace(stocked, made=made, forks=forks)


@some(3)
def test_restore_killed_leaves_the_old_registry_or_the_restored(
    backed_up: Scene, most: int | None
) -> None:
    args = ["db", "restore", str(backed_up.root / "out/backup.db"), "--replace"]
    backed_up.reset()
    old = _contents(backed_up)
    [done] = backed_up.commands(args)
    assert done["status"] == 0, done["output"]
    new = _contents(backed_up)
    assert new != old

    def settled(fault: Fault, ended: Outcome) -> Iterator[str]:
        if _contents(backed_up) not in (old, new):
            yield "the registry is neither the old one nor the restored"
        for line in (AUDIT, args, AUDIT, VERIFY):
            [done] = backed_up.commands(line)
            if done["status"] != 0:
                yield f"`{' '.join(line)}` ends with {done['status']}: {done['output'].strip()}"
        if _contents(backed_up)[1:] != new[1:]:
            yield "the same command leaves another registry than it does unharmed"
        for name in backed_up.files():
            if name.startswith(".registry"):
                yield f"{name} is left"

    try_faults(backed_up, "command", settled, modes=MODES, most=most, args=args)


def _contents(scene: Scene) -> list[Any]:
    """The number of restores, then what distinguishes the old registry from the restored one."""
    return [
        scene.rows("SELECT COUNT(*) FROM events WHERE kind = 'registry.restored'"),
        sorted(scene.versions().items()),
        scene.rows("SELECT seq, hash FROM events WHERE kind <> 'registry.restored' ORDER BY seq"),
    ]


# ------------------------------------------------------------------------------------ rebuild


@pytest.fixture(scope="module")
def forgotten(packed: Scene) -> Scene:
    """``packed`` without its registry."""
    packed.reset()
    for path in packed.workspace.glob("registry.db*"):
        path.unlink()
    made = packed.made.with_name("forgotten")
    shutil.copytree(packed.root, made)
    return replace(packed, made=made)


@some(3)
def test_rebuild_killed_runs_again_to_the_same_result(forgotten: Scene, most: int | None) -> None:
    args = ["db", "rebuild"]
    forgotten.reset()
    [done] = forgotten.commands(args)
    assert done["status"] == 0, done["output"]
    expected = forgotten.versions()
    files = {name for name in forgotten.files() if not name.endswith((".md", "provenance.json"))}
    assert {"toy/animals@1", "toy/fish@1", "toy/trained@1"} <= expected.keys()

    def settled(fault: Fault, ended: Outcome) -> Iterator[str]:
        [again] = forgotten.commands(args)
        if again["status"] != 0 and forgotten.versions() != expected:
            yield f"`db rebuild` ends with {again['status']}: {again['output'].strip()}"
        if forgotten.versions() != expected:
            yield f"the versions are {forgotten.versions()}"
        for line in (VERIFY, AUDIT, GC):
            [done] = forgotten.commands(line)
            if done["status"] != 0:
                yield f"`{' '.join(line)}` ends with {done['status']}: {done['output'].strip()}"
        if not files <= forgotten.files().keys():
            yield f"lost: {sorted(files - forgotten.files().keys())}"

    try_faults(forgotten, "command", settled, modes=MODES, most=most, args=args)

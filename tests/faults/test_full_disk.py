"""A full or read-only disk causes one clear error and leaves nothing; with space, all succeeds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from faults.cases import Outcome, Scene, try_faults
from faults.recovery import GC, LITTER, RecoveryCheck, reporting_problems
from faults.small_disk import PAGE, SmallDisk
from faults.steps import Fault
from registry_rows import REVISION, revision

pytestmark = pytest.mark.merge

ELSEWHERE = "import beside a registry with room"
COMMANDS = ("publish", "import", ELSEWHERE, "export", "rm", "gc", "backup", "migration")

amounts = pytest.mark.parametrize(
    "amounts",
    [
        pytest.param((0, 12, 30), id="some-amounts"),
        pytest.param(range(128), marks=pytest.mark.slow, id="every-amount"),
    ],
)
"""Free pages; every command here needs fewer than the largest number."""


@dataclass(frozen=True)
class DiskCase:
    """A command, its scene, and the checks once there is space again."""

    scene: Scene
    operation: str
    arguments: Mapping[str, Any]
    look: Callable[[], Iterable[str]]


@pytest.fixture
def way(
    request: pytest.FixtureRequest,
    stocked: Scene,
    shelf: Scene,
    littered: Scene,
    old: Scene,
    small_disk: SmallDisk,
    sound: Path,
    base_digest: str,
    imports: list[str],
) -> DiskCase:
    """The command that the test names, on the small disk."""
    scene = replace(stocked, root=small_disk.folder)
    out = scene.root / "out"

    def leaving(args: Sequence[str], **left: Any) -> DiskCase:
        return DiskCase(
            scene, "command", {"args": [*args]}, RecoveryCheck(scene, again=args, **left).look
        )

    def again(scene: Scene, *args: str) -> DiskCase:
        def succeeds() -> Iterator[str]:
            [done] = scene.commands(args)
            if done["status"] != 0:
                yield f"`{' '.join(args)}` ends with {done['status']}: {done['output'].strip()}"

        return DiskCase(scene, "command", {"args": args}, succeeds)

    match request.param:
        case "publish":
            arguments = {"source": str(sound), "ref": "toy/animals", "base_digest": base_digest}
            return DiskCase(
                scene, "publish", arguments, RecoveryCheck(scene, again=imports, makes=1).look
            )
        case "import":
            return leaving(imports, makes=1)
        case _ if request.param == ELSEWHERE:
            registry = stocked.root.with_name("registry-with-room.db")

            def renew() -> None:
                for path in registry.parent.glob(f"{registry.name}*"):
                    path.unlink()
                for path in (stocked.made / "workspace").glob("registry.db*"):
                    ending = path.name.removeprefix("registry.db")
                    shutil.copy(path, f"{registry}{ending}")

            url = f"sqlite:///{registry}"
            scene = replace(scene, settings={"TRUNKLINE_REGISTRY": url}, renew=renew)
            return leaving(imports, makes=1)
        case "export":
            args = ["adapters", "export", "toy/animals@1", str(out / "animals.tar")]
            return leaving(args, allowed=("out/animals.tar",))
        case "rm":
            args = ["adapters", "rm", "toy/animals@2", "--reason", "a test"]
            scene = replace(shelf, root=small_disk.folder)
            return leaving(args, takes=("toy/animals@2",))
        case "gc":
            scene = replace(littered, root=small_disk.folder)
            return leaving(GC, litter=LITTER)
        case "backup":
            return again(
                replace(shelf, root=small_disk.folder), "db", "backup", str(out / "backup.db")
            )
        case "migration":
            return again(replace(old, root=small_disk.folder), "db", "upgrade")
        case name:
            raise AssertionError(name)


@amounts
@pytest.mark.parametrize("way", COMMANDS, indirect=True)
def test_full_disk_is_one_error_and_leaves_nothing(
    way: DiskCase, small_disk: SmallDisk, amounts: Sequence[int]
) -> None:
    wrong, failed = [], 0
    for pages in amounts:
        before = everything(way.scene.reset())
        small_disk.fill(pages * PAGE)
        ended = way.scene.run(way.operation, **way.arguments)
        small_disk.empty()
        if ended.result != 0:
            failed += 1
            complaints = [*refused(way.scene, ended, before), *way.look()]
            wrong += [f"{pages} pages free: {complaint}" for complaint in complaints]
    assert failed, "the disk was never full"
    assert not wrong, f"{len(wrong)} complaints:\n" + "\n".join(wrong)


@pytest.mark.parametrize("way", COMMANDS, indirect=True)
def test_read_only_disk_is_one_error_and_leaves_nothing(
    way: DiskCase, small_disk: SmallDisk
) -> None:
    before = everything(way.scene.reset())
    with small_disk.read_only():
        ended = way.scene.run(way.operation, **way.arguments)
    assert ended.result == 1, ended.output
    assert [*refused(way.scene, ended, before), *way.look()] == []


@pytest.mark.parametrize(
    "most",
    [
        pytest.param(4, id="some-steps"),
        pytest.param(None, marks=pytest.mark.slow, id="every-step"),
    ],
)
def test_disk_that_is_full_from_a_step_on_is_one_error_and_leaves_nothing(
    stocked: Scene, imports: list[str], most: int | None
) -> None:
    left = RecoveryCheck(stocked, again=imports, makes=1)
    before = everything(stocked.reset())

    def settled(fault: Fault, ended: Outcome) -> Iterator[str]:
        if ended.result != 0:
            yield from refused(stocked, ended, before)
        yield from left.look()

    try_faults(stocked, "command", settled, modes=("full",), most=most, args=imports)


def refused(scene: Scene, ended: Outcome, before: Mapping[str, str]) -> Iterator[str]:
    """Problems of a failure: its report, and anything that differs from before."""
    if ended.status != 0:
        yield f"it ended with {ended.status}: {ended.output.strip()}"
        return
    yield from reporting_problems(ended.output)
    now = everything(scene)
    for name in sorted(now.keys() | before.keys()):
        if now.get(name) != before.get(name):
            yield f"{name} is {'left' if name not in before else 'changed or lost'}"


def everything(scene: Scene) -> dict[str, str]:
    """Path → digest of a case's files without the registry's own, and the visible versions.

    A reservation can't be given back on a disk that is full; where the registry has room, it is.
    """
    state = {
        f"{below}/{name}": digest
        for below in ("workspace", "tmp", "out")
        for name, digest in scene.files(below).items()
    }
    if revision(scene.registry_url) == REVISION:
        return {**state, "schema": REVISION}
    has_room = "TRUNKLINE_REGISTRY" in scene.settings
    listed = ("visible", "pending") if has_room else ("visible",)
    return state | {ref: state for ref, state in scene.versions().items() if state in listed}

"""What lies in the store and belongs to nobody.

Owns: telling garbage from what somebody holds, and taking it away. Must not know: terminals; how a
run trains.

Garbage is what has no visible row: reservations whose publisher is gone, the files of such and of
removed versions, half-written folders, copies of versions that are no more, folders of runs that
ended without a checkpoint. A row is written before its files, so a whole artifact whose number
was never given out comes from another registry: it is told of, since `trunkline db rebuild` may
want it, and taken only where that is asked for.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from trunkline.adapters.artifact import KNOWN, REQUIRED
from trunkline.adapters.storage import LEFTOVER, StoredFolder, writing
from trunkline.adapters.store import AdapterStore
from trunkline.errors import RegistryError
from trunkline.refs import Ref
from trunkline.registry.publisher import OCCUPIED, PATIENCE, is_gone
from trunkline.registry.records import StoredVersion

_AGAIN = "run `trunkline gc` again"
_RUN = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_COARSE = timedelta(seconds=2)
"""Object stores tell times in whole seconds."""


@dataclass(frozen=True, slots=True)
class Found:
    """Something that upkeep found.

    Attributes:
        kind: ``reservation``, ``folder``, ``leftover``, ``cached`` or ``run``, which it takes;
            ``unknown`` (a whole artifact of another registry, or files that are no version's)
            and ``missing`` (a version without files), which it tells of.
        name: a ref, a path in the store, or a folder.
        bytes: what taking it away frees.
    """

    kind: str
    name: str
    why: str
    bytes: int = 0
    digest: str | None = None

    @property
    def taken(self) -> bool:
        """Whether it is garbage."""
        return self.kind not in ("unknown", "missing")


def find_garbage(store: AdapterStore, *, unknown: bool = False) -> list[Found]:
    """Everything that can be taken away, and what is only told of; changes nothing.

    What the store holds is listed before the rows are read, so that whatever is published
    meanwhile has a row by then.

    Args:
        unknown: count whole artifacts that this registry never heard of as garbage.
    """
    folders = list(store.storage.folders())
    now = datetime.now(UTC)
    held = store.registry.servers.holders()
    visible = {version.path: version for version in store.registry.artifacts.iter_visible()}
    found = [*_reservations(store, now)]
    for begin in range(0, len(folders), 500):
        some = folders[begin : begin + 500]
        rows = store.registry.artifacts.find({one.version for one in some if one.version})
        for folder in some:
            row = rows.get(folder.version) if folder.version else None
            told = None if folder.path in visible else _evaluate(folder, row, held, now, unknown)
            if told is not None:
                found.append(told)
    there = {folder.path for folder in folders}
    found += [
        Found("missing", str(version.ref), "the registry has it, the store does not")
        for path, version in visible.items()
        if path not in there and not store.storage.holds(path)
    ]
    return [*found, *_cached(store, held), *_runs(store)]


def take(store: AdapterStore, found: Found) -> bool:
    """Take one piece of garbage away; False where somebody has come to hold it.

    Raises:
        RegistryError: it can't be taken away.
    """
    if found.kind == "reservation":
        ref = Ref.parse(found.name)
        try:
            store.registry.versions.abandon(ref.domain, ref.name, ref.number or 0)
        except RegistryError:
            if any(one.ref == ref for one in _pending(store)):
                raise
            return False
    elif found.kind in ("folder", "leftover", "unknown"):
        with writing(store.storage.place(found.name), _AGAIN):
            store.storage.remove(found.name)
    elif found.kind == "cached":
        return any(
            store.cache.drop(one) for one in store.cache.folders() if one.folder.name == found.name
        )
    elif found.kind == "run":
        return _drop_run(store.workspace.runs / found.name)
    return True


def collect(store: AdapterStore, found: Sequence[Found]) -> Iterator[Found]:
    """Take garbage away piece by piece, giving each that was taken."""
    for one in found:
        if take(store, one):
            yield one
    with writing(str(store.workspace.adapters), _AGAIN):
        store.storage.tidy()


def _pending(store: AdapterStore) -> Iterator[StoredVersion]:
    after = 0
    while page := store.registry.artifacts.list_pending(after=after):
        yield from page
        after = page[-1].id


def _reservations(store: AdapterStore, now: datetime) -> Iterator[Found]:
    for one in _pending(store):
        if _is_given_up(one, now):
            yield Found("reservation", str(one.ref), "its publication ended half-way")


def _evaluate(
    folder: StoredFolder,
    row: StoredVersion | None,
    held: Collection[str],
    now: datetime,
    unknown: bool,
) -> Found | None:
    """What a folder is that no visible version has for its place; None: somebody holds it."""
    kind = "leftover" if folder.path.startswith(LEFTOVER) else "folder"
    recent = folder.modified is not None and now - folder.modified <= PATIENCE
    if row is None:
        is_held = recent and kind == "leftover"
    elif row.status == "visible":
        is_held = recent or kind == "folder"
    elif row.status == "pending":
        is_held = not _is_given_up(row, now)
    else:
        is_held = row.status == "removed" and row.digest in held
    if is_held:
        return None
    if kind == "folder" and _is_foreign(folder, row):
        why = "a whole version of another registry; `trunkline db rebuild` may want it"
        return Found("folder" if unknown else "unknown", folder.path, why, folder.bytes)
    if row is None and kind == "folder" and not folder.names <= KNOWN:
        why = "files that no version has: is this folder for the store alone?"
        return Found("unknown", folder.path, why, folder.bytes)
    return Found(kind, folder.path, _why(row), folder.bytes)


def _is_given_up(row: StoredVersion, now: datetime) -> bool:
    return is_gone(row.publisher, row.reserved, now)


def _is_foreign(folder: StoredFolder, row: StoredVersion | None) -> bool:
    """Whether a whole artifact was not written under the number that it lies under."""
    if not folder.names.issuperset(REQUIRED):
        return False
    if row is None or row.removal == OCCUPIED:
        return True
    if row.status == "removed" or folder.modified is None:
        return False
    return folder.modified < row.reserved - _COARSE


def _why(row: StoredVersion | None) -> str:
    if row is None:
        return "not whole, and of no version"
    return {
        "pending": f"the publication of {row.ref} ended half-way",
        "visible": f"a file of {row.ref} was being written anew",
        "removed": f"{row.ref} was removed",
        "failed": f"the publication of {row.ref} failed",
    }[row.status]


def _cached(store: AdapterStore, held: Collection[str]) -> Iterator[Found]:
    cached = store.cache.folders()
    wanted = store.registry.artifacts.visible_digests({one.digest for one in cached})
    for one in cached:
        if one.whole and (one.digest in wanted or one.digest in held):
            continue
        why = "a copy of no version" if one.whole else "a copy that was not finished"
        yield Found("cached", one.folder.name, why, one.bytes, one.digest)


def _runs(store: AdapterStore) -> Iterator[Found]:
    """Folders of runs that nobody works on and that can't be resumed."""
    root = store.workspace.runs
    folders = {int(one.name): one for one in _numbered(root)}
    statuses = store.registry.runs.statuses(folders)
    for number, folder in sorted(folders.items()):
        status = statuses.get(number)
        resumable = any(folder.glob("checkpoints/checkpoint-*/trainer_state.json"))
        if (resumable and status != "finished") or _is_worked_on(folder, status):
            continue
        size = sum(path.lstat().st_size for path in folder.rglob("*"))
        why = "its run has finished" if status == "finished" else "its run left no checkpoint"
        yield Found("run", folder.name, why, size)


def _numbered(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [one for one in root.iterdir() if _RUN.fullmatch(one.name) and one.is_dir()]


def _is_worked_on(folder: Path, status: str | None) -> bool:
    """Whether a training holds the lock in its folder, or is about to."""
    from filelock import FileLock, Timeout

    if not (folder / ".lock").exists():
        if status != "running" and not any(folder.iterdir()):
            return False
        begun = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
        return datetime.now(UTC) - begun <= PATIENCE
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def _drop_run(folder: Path) -> bool:
    from filelock import FileLock, Timeout

    with writing(str(folder), _AGAIN):
        try:
            with FileLock(folder / ".lock", timeout=0):
                for one in folder.iterdir():
                    if one.name != ".lock":
                        shutil.rmtree(one) if one.is_dir() else one.unlink()
                shutil.rmtree(folder)
        except Timeout:
            return False
        except FileNotFoundError:
            return True
    return True

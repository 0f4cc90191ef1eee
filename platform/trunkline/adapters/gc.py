"""Garbage collection, verification and removal of versions.

Garbage is what no visible version uses: reservations whose owner is gone, the files of these and of
removed versions, partial folders, cached copies of deleted versions, and folders of runs that ended
without a checkpoint. A row is always written before its files, so a complete artifact under a
number that was never reserved comes from another registry: it is listed, since `trunkline db
rebuild` may need it, but only deleted on request.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from trunkline.adapters.artifact import CARD, KNOWN, REQUIRED, SIGNATURE, required_names
from trunkline.adapters.storage import (
    PARTIAL,
    StoredFolder,
    describe_files,
    matches_record,
    write_errors,
)
from trunkline.adapters.store import AdapterStore
from trunkline.errors import IntegrityError, RegistryError, reason_of
from trunkline.refs import Ref
from trunkline.registry.artifacts import LEASE, PATH_TAKEN, reservation_expired
from trunkline.registry.records import StoredVersion, VersionRecord

_RETRY = "run `trunkline gc` again"
_RUN = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_SCRATCH = re.compile(r"(folds|tune)-[0-9a-f]+")
_CLOCK_RESOLUTION = timedelta(seconds=2)
"""Object stores record times in whole seconds."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something in the store that no version uses.

    Attributes:
        kind: ``reservation``, ``folder``, ``leftover``, ``cached`` or ``run``, which gc deletes;
            ``unknown`` (a complete artifact of another registry, or foreign files) and ``missing``
            (a version without files), which it only lists.
        name: a ref, a path in the store, or the name of a folder.
        bytes: how much space its deletion frees.
    """

    kind: str
    name: str
    reason: str
    bytes: int = 0
    digest: str | None = None

    @property
    def deletable(self) -> bool:
        """Whether gc deletes it."""
        return self.kind not in ("unknown", "missing")


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The result of verifying one version.

    Attributes:
        damage: what is wrong, in a sentence; None if the version is intact.
        remarks: changes since the publication to files that the digest does not cover.
        signed_by: the fingerprint of the key, if a signature was required.
        hint: what to do about the damage.
    """

    version: str
    digest: str
    damage: str | None
    remarks: tuple[str, ...] = ()
    signed_by: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class RemoveResult:
    """A removed version; ``files_kept`` is the reason why its files still exist, if they do."""

    version: VersionRecord
    files_kept: str | None = None


# ----------------------------------------------------------------------- verify and remove


def verify_version(
    store: AdapterStore,
    version: VersionRecord,
    *,
    require_signature: bool = False,
    keys: Sequence[Path] = (),
) -> VerifyResult:
    """Recompute a version's digests from its files in the storage itself.

    Args:
        store: of the workspace.
        version: a visible one.
        require_signature: treat a version that none of the ``keys`` signed as damaged.
        keys: trusted public keys.

    Raises:
        RegistryError: the store can't be reached.
        UsageError: a signature is required and there are no keys.
    """
    signed_by = None
    try:
        with store.open(version) as artifact:
            remarks = _compare_files(version, describe_files(artifact))
            if require_signature:
                from trunkline.adapters.signing import check_signature

                signed_by = check_signature(artifact.folder, keys)
    except IntegrityError as error:
        return VerifyResult(str(version.ref), version.digest, error.message, hint=error.hint)
    return VerifyResult(str(version.ref), version.digest, None, remarks, signed_by)


def remove_version(
    store: AdapterStore, ref: Ref, *, reason: str, actor: str | None = None
) -> RemoveResult:
    """Mark a version as removed, then delete its files.

    If the process is killed in between, the version is removed and gc deletes the files.

    Raises:
        RefusedError: an alias or a running server uses it.
        NotFoundError, UsageError: see :meth:`Versions.remove`.
    """
    registry = store.registry
    version = registry.versions.remove(
        ref, reason=reason, actor=actor, held=registry.servers.holders()
    )
    holders = registry.servers.holders([version.digest])
    if servers := holders.get(version.digest):
        return RemoveResult(version, f"{servers[0]} has just loaded it")
    try:
        store.storage.remove(version.path)
    except (OSError, RegistryError) as error:
        return RemoveResult(version, reason_of(error))
    return RemoveResult(version)


def _compare_files(
    version: VersionRecord, current: Mapping[str, Mapping[str, object]]
) -> tuple[str, ...]:
    """Remarks on a changed card or signature; raises IntegrityError for other changed files."""
    remarks = []
    for name, recorded in (version.files or {}).items():
        if name in REQUIRED or matches_record(recorded, current.get(name)):
            continue
        change = "was changed" if name in current else "is missing"
        if name not in (CARD, SIGNATURE):
            raise IntegrityError(f"{name} of {version.ref} {change} since it was published.")
        remarks.append(f"{name} {change} since it was published")
    return tuple(remarks)


# ---------------------------------------------------------------------- garbage collection


def find_garbage(store: AdapterStore, *, unknown: bool = False) -> list[Garbage]:
    """List all garbage without changing anything.

    The storage is listed before the rows are read, so whatever is published meanwhile has a row.

    Args:
        store: of the workspace.
        unknown: treat complete artifacts of other registries as deletable.
    """
    folders = list(store.storage.folders())
    now = datetime.now(UTC)
    holders = store.registry.servers.holders()
    visible = {version.path: version for version in store.registry.artifacts.iter_visible()}
    garbage = [*_reservations(store, now)]
    for start in range(0, len(folders), 500):
        page = folders[start : start + 500]
        rows = store.registry.artifacts.find({folder.version for folder in page if folder.version})
        for folder in page:
            if folder.path in visible:
                continue
            row = rows.get(folder.version) if folder.version else None
            if (item := _classify(folder, row, holders, now, unknown)) is not None:
                garbage.append(item)
    listed = {folder.path for folder in folders}
    garbage += [
        Garbage("missing", str(version.ref), "it is in the registry but not in the store")
        for path, version in visible.items()
        if path not in listed and not store.storage.exists(path)
    ]
    return [*garbage, *_cached(store, holders), *_runs(store)]


def delete(store: AdapterStore, item: Garbage) -> bool:
    """Delete one piece of garbage; False if it has come into use.

    Raises:
        RegistryError: it can't be deleted.
    """
    if item.kind == "reservation":
        ref = Ref.parse(item.name)
        try:
            store.registry.versions.abandon(ref.domain, ref.name, ref.number or 0)
        except RegistryError:
            if any(version.ref == ref for version in _pending(store)):
                raise
            return False
    elif item.kind in ("folder", "leftover", "unknown"):
        with write_errors(store.storage.location(item.name), _RETRY):
            store.storage.remove(item.name)
    elif item.kind == "cached":
        return any(
            store.cache.remove(cached)
            for cached in store.cache.folders()
            if cached.folder.name == item.name
        )
    elif item.kind == "run":
        return _delete_run(store.workspace.runs / item.name)
    return True


def collect(store: AdapterStore, garbage: Sequence[Garbage]) -> Iterator[Garbage]:
    """Delete garbage piece by piece, yielding each deleted piece."""
    for item in garbage:
        if delete(store, item):
            yield item
    with write_errors(str(store.workspace.adapters), _RETRY):
        store.storage.remove_empty_folders()


def _pending(store: AdapterStore) -> Iterator[StoredVersion]:
    after = 0
    while page := store.registry.artifacts.list_pending(after=after):
        yield from page
        after = page[-1].id


def _reservations(store: AdapterStore, now: datetime) -> Iterator[Garbage]:
    for row in _pending(store):
        if _is_abandoned(row, now):
            yield Garbage("reservation", str(row.ref), "its publication was interrupted")


def _classify(
    folder: StoredFolder,
    row: StoredVersion | None,
    holders: Collection[str],
    now: datetime,
    unknown: bool,
) -> Garbage | None:
    """What a folder is that is not the path of a visible version; None if it is in use."""
    kind = "leftover" if folder.path.startswith(PARTIAL) else "folder"
    recent = folder.modified is not None and now - folder.modified <= LEASE
    if row is None:
        in_use = recent and kind == "leftover"
    elif row.status == "visible":
        in_use = recent or kind == "folder"
    elif row.status == "pending":
        in_use = not _is_abandoned(row, now)
    else:
        in_use = row.status == "removed" and row.digest in holders
    if in_use:
        return None
    if kind == "folder" and _is_foreign(folder, row):
        reason = "a complete version of another registry; `trunkline db rebuild` may need it"
        return Garbage("folder" if unknown else "unknown", folder.path, reason, folder.bytes)
    if row is None and kind == "folder" and not folder.names <= KNOWN:
        reason = "files that no version has: is this folder used for something else?"
        return Garbage("unknown", folder.path, reason, folder.bytes)
    return Garbage(kind, folder.path, _reason(row), folder.bytes)


def _is_abandoned(row: StoredVersion, now: datetime) -> bool:
    return reservation_expired(row.reserved_by, row.reserved, now)


def _is_foreign(folder: StoredFolder, row: StoredVersion | None) -> bool:
    """Whether a complete artifact was not written by the reservation of its number."""
    if not folder.names.issuperset(required_names(folder.names)):
        return False
    if row is None or row.removal_reason == PATH_TAKEN:
        return True
    if row.status == "removed" or folder.modified is None:
        return False
    return folder.modified < row.reserved - _CLOCK_RESOLUTION


def _reason(row: StoredVersion | None) -> str:
    if row is None:
        return "incomplete, and of no version"
    return {
        "pending": f"the publication of {row.ref} was interrupted",
        "visible": f"a file of {row.ref} was being replaced",
        "removed": f"{row.ref} was removed",
        "failed": f"the publication of {row.ref} failed",
    }[row.status]


def _cached(store: AdapterStore, holders: Collection[str]) -> Iterator[Garbage]:
    folders = store.cache.folders()
    visible = store.registry.artifacts.visible_digests({cached.digest for cached in folders})
    for cached in folders:
        if cached.complete and (cached.digest in visible or cached.digest in holders):
            continue
        reason = "a copy of no version" if cached.complete else "an incomplete copy"
        yield Garbage("cached", cached.folder.name, reason, cached.bytes, cached.digest)


def _runs(store: AdapterStore) -> Iterator[Garbage]:
    """Folders of runs that are not in progress and can't be resumed."""
    root = store.workspace.runs
    folders = {}
    if root.is_dir():
        numbered = (path for path in root.iterdir() if _RUN.fullmatch(path.name) and path.is_dir())
        folders = {int(path.name): path for path in numbered}
    statuses = store.registry.runs.statuses(folders)
    for number, folder in sorted(folders.items()):
        status = statuses.get(number)
        resumable = any(folder.glob("checkpoints/checkpoint-*/trainer_state.json"))
        if (resumable and status != "finished") or _is_in_progress(folder, status):
            continue
        size = sum(path.lstat().st_size for path in folder.rglob("*"))
        reason = "its run has finished" if status == "finished" else "its run left no checkpoint"
        yield Garbage("run", folder.name, reason, size)
    for folder in sorted(root.glob("*-*")) if root.is_dir() else ():
        if _SCRATCH.fullmatch(folder.name) and not _is_in_progress(folder, None):
            size = sum(path.lstat().st_size for path in folder.rglob("*"))
            yield Garbage("run", folder.name, "left by an evaluation or a search", size)


def _is_in_progress(folder: Path, status: str | None) -> bool:
    """Whether a training holds the lock of its folder, or is about to take it."""
    from filelock import FileLock, Timeout

    if not (folder / ".lock").exists():
        if status != "running" and not any(folder.iterdir()):
            return False
        modified = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
        return datetime.now(UTC) - modified <= LEASE
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def _delete_run(folder: Path) -> bool:
    from filelock import FileLock, Timeout

    with write_errors(str(folder), _RETRY):
        try:
            with FileLock(folder / ".lock", timeout=0):
                for path in folder.iterdir():
                    if path.name != ".lock":
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                shutil.rmtree(folder)
        except Timeout:
            return False
        except FileNotFoundError:
            return True
    return True

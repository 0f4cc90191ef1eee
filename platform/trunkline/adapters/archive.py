"""Export a version to one tar file, and import it in another workspace.

An archive is not trusted. Every header is checked before the first byte is unpacked: an archive is
uncompressed and holds regular files with the names that an artifact may have, nothing else. The
files are then compared with the digest in their own manifest, which proves that they belong
together. A digest that you received another way, or a signature, proves that they are the right
ones. The digest does not cover the lineage; it is what the other workspace claims.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from trunkline.adapters.artifact import KNOWN, WEIGHTS, Artifact, check_finite, read_artifact
from trunkline.adapters.peft_import import check_import_target
from trunkline.adapters.provenance import (
    Provenance,
    read_provenance,
    version_provenance,
    write_provenance,
)
from trunkline.adapters.signing import check_signature, signed_by
from trunkline.adapters.store import AdapterStore, Lineage
from trunkline.errors import (
    BaseMismatchError,
    IntegrityError,
    NotFoundError,
    RefusedError,
    RegistryError,
    TrunklineError,
    UsageError,
    one_line,
    reason_of,
)
from trunkline.files import MAX_JSON_BYTES, REPAIR, sha256_file
from trunkline.refs import Ref, shown
from trunkline.registry.actors import system_actor
from trunkline.registry.records import RecordedProvenance, VersionRecord
from trunkline.registry.tables import utc_now

MAX_BYTES = 8 << 30
"""The maximum size of an archive. Files other than the weights have the limit of a JSON file."""

MAX_PADDING = 1 << 20
"""The maximum number of zero bytes after the last member."""

_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
_TYPES = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a directory",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.GNUTYPE_LONGNAME: "a long name",
    tarfile.GNUTYPE_LONGLINK: "a long link",
    tarfile.XHDTYPE: "an extended header",
    tarfile.XGLTYPE: "an extended header",
}
_EXPORT_HINT = "Create the archive with `trunkline adapters export REF FILE`; nothing was unpacked."
_RETRY_HINT = "Request the archive again and compare its sha256."


@dataclass(frozen=True, slots=True)
class ExportResult:
    """An archive that was written; ``signed_by`` is the key fingerprint in its signature."""

    version: VersionRecord
    file: Path
    bytes: int
    names: tuple[str, ...]
    digest: str
    signed_by: str | None


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The version that an archive became; ``notes`` are remarks for the user, in sentences."""

    version: VersionRecord
    provenance: Provenance
    notes: tuple[str, ...]


# ------------------------------------------------------------------------------- tar files


def pack(
    folder: Path,
    target: Path,
    *,
    overwrite: bool = False,
    before_rename: Callable[[Path], None] | None = None,
) -> int:
    """Write an artifact's files into an archive and return its size in bytes.

    The same files always produce the same bytes. The archive appears under its name once it is
    complete, or not at all.

    Args:
        folder: of the artifact; files with other names are skipped.
        target: the archive.
        overwrite: replace an existing file.
        before_rename: called with the complete temporary file; it may refuse by raising.

    Raises:
        UsageError: ``target`` exists, or can't be overwritten.
        RegistryError: the archive can't be written; nothing is left behind.
    """
    if os.path.lexists(target) and not (overwrite and target.is_file()):
        raise UsageError(
            f"{str(target)!r} already exists.", "Name another file, or replace it with --overwrite."
        )
    part = target.with_name(f".{target.name[:64]}.part")
    try:
        part.unlink(missing_ok=True)
        with part.open("xb") as file:
            _write_members(folder, file)
            file.flush()
            os.fsync(file.fileno())
        if before_rename is not None:
            before_rename(part)
        os.replace(part, target)
    except TrunklineError:
        with suppress(OSError):
            part.unlink()
        raise
    except (OSError, ValueError) as error:
        with suppress(OSError):
            part.unlink()
        reason = reason_of(error)
        raise RegistryError(
            f"The archive {str(target)!r} can't be written: {reason}.",
            "Free disk space or grant write permission, or name a file elsewhere.",
        ) from error
    return target.stat().st_size


def unpack(path: Path, folder: Path, *, max_bytes: int = MAX_BYTES) -> tuple[str, ...]:
    """Unpack an archive into an empty folder after checking all of its headers.

    Args:
        path: the archive.
        folder: an existing, empty folder.
        max_bytes: the maximum size of the archive, and so of the files.

    Returns:
        The names of the files.

    Raises:
        NotFoundError: the file doesn't exist.
        IntegrityError: it is not an archive as :func:`pack` writes it; nothing was unpacked.
        OSError: the folder can't be written.
    """
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"There is no file {str(path)!r}.", "Name an archive written by `adapters export`."
        ) from error
    if not stat.S_ISREG(state.st_mode):
        raise _refusal(path, "is not a plain file")
    if state.st_size > max_bytes:
        raise _refusal(path, f"has {state.st_size:,} bytes; at most {max_bytes:,} are allowed")
    try:
        file = path.open("rb")
    except OSError as error:
        raise _refusal(path, f"can't be read: {reason_of(error)}") from error
    with file:
        try:
            with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header, encoding="utf-8") as tar:
                members = _checked_members(tar)
                _check_end(file, members, state.st_size)
                for member in members:
                    _extract(tar, member, folder)
        except _HeaderRefused as error:
            raise _refusal(path, str(error)) from None
        except tarfile.TarError as error:
            reason = f"is not an uncompressed tar archive, or is damaged ({one_line(error)})"
            raise _refusal(path, reason) from error
    return tuple(member.name for member in members)


class _HeaderRefused(Exception):
    """A header that an archive of a version can't have."""


class _Header(tarfile.TarInfo):
    """A header that is checked before :mod:`tarfile` acts on it, so no extension is followed."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type not in _REGULAR:
            kind = _TYPES.get(header.type, "not a regular file")
            raise _HeaderRefused(f"holds {shown(header.name)}, which is {kind}")
        if header.name not in KNOWN or header.linkname:
            raise _HeaderRefused(f"holds {shown(header.name)}, which an artifact may not hold")
        limit = MAX_BYTES if header.name == WEIGHTS else MAX_JSON_BYTES
        if not 0 <= header.size <= limit:
            raise _HeaderRefused(
                f"holds {header.name!r} with {header.size:,} bytes; at most {limit:,} are allowed"
            )
        return header


def _checked_members(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    members: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        if member.name in members:
            raise _HeaderRefused(f"holds {member.name!r} twice")
        members[member.name] = member
    return list(members.values())


def _check_end(file: BinaryIO, members: list[tarfile.TarInfo], size: int) -> None:
    """After the last member there are at least two zero blocks, and little else."""
    end, block = 0, tarfile.BLOCKSIZE
    if members:
        end = members[-1].offset_data + -(-members[-1].size // block) * block
    padding = size - end
    file.seek(end)
    if not 2 * block <= padding <= MAX_PADDING or any(file.read(padding)):
        raise _HeaderRefused("does not end like a tar archive")


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None  # a regular file
    with source, (folder / member.name).open("xb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _write_members(folder: Path, file: BinaryIO) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(folder.iterdir()):
            if path.name not in KNOWN:
                continue
            member = tarfile.TarInfo(path.name)
            member.size = path.stat().st_size
            with path.open("rb") as source:
                tar.addfile(member, source)


def _refusal(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(f"The archive {str(path)!r} {reason}.", _EXPORT_HINT)


# ------------------------------------------------------------------------------- versions


def export_version(
    store: AdapterStore,
    version: VersionRecord,
    target: Path,
    *,
    overwrite: bool = False,
    actor: str | None = None,
) -> ExportResult:
    """Write a version into an archive: artifact, current provenance, card and signature.

    The event is recorded before the archive appears, so every archive has one.

    Raises:
        UsageError: ``target`` exists.
        IntegrityError: the artifact is not what the registry recorded.
        RegistryError: the archive can't be written; nothing is left behind.
    """
    artifact = store.fetch(version, signed=False)
    with _staging_folder() as folder:
        for path in sorted(artifact.folder.iterdir()):
            shutil.copyfile(path, folder / path.name)
        copy = read_artifact(folder, version.digest)
        write_provenance(folder, version_provenance(store.registry, version, copy))
        names = tuple(sorted(path.name for path in folder.iterdir()))
        fingerprint = signed_by(folder)

        def record_event(archive: Path) -> None:
            detail = {"archive": target.name, "archive_sha256": sha256_file(archive)}
            store.registry.events.append("version.exported", version.ref, detail, actor=actor)

        size = pack(folder, target, overwrite=overwrite, before_rename=record_event)
    return ExportResult(version, target, size, names, version.digest, fingerprint)


def import_archive(
    store: AdapterStore,
    file: Path,
    ref: Ref | None = None,
    *,
    digest: str | None = None,
    base_digest: str | None = None,
    actor: str | None = None,
) -> ImportResult:
    """Publish the version in an archive as the next version, with its lineage.

    Args:
        store: of this workspace.
        file: written by :func:`export_version`.
        ref: ``domain/name`` of the new version; by default its old name.
        digest: the required digest of the version.
        base_digest: the required base of the version.
        actor: recorded as the importer; by default the system's user.

    Raises:
        NotFoundError: the file doesn't exist.
        IntegrityError: the archive or its artifact is malformed, has another digest, or is not
            signed as ``trunkline.toml`` requires; nothing was written.
        BaseMismatchError: it was trained on another base.
        RefusedError: the adapter exists for another task.
        RegistryError: it can't be written; no version is left behind.
    """
    actor = actor or system_actor()
    with _staging_folder() as folder:
        unpack(file, folder)
        notes: list[str] = []
        with _naming_archive(file, folder):
            artifact = read_artifact(folder)
            _check_expected(artifact, file, digest, base_digest)
            fingerprint = _check_signed(store, folder, notes)
            origin = read_provenance(artifact)
            if artifact.manifest.fusion is None:
                check_finite(folder / WEIGHTS, folder / WEIGHTS)
        ref = _default_name(origin, file) if ref is None else ref
        task = str(artifact.manifest.task["kind"])
        check_import_target(store.registry, ref, task)
        _check_parents(store, artifact, file)
        _note_duplicate(store, ref, artifact, notes)
        provenance = origin

        def update_provenance(restored: RecordedProvenance) -> None:
            nonlocal provenance
            provenance = origin.with_transfer(
                run=restored.run,
                origin=origin.version.adapter or "unknown",
                by=actor,
                at=utc_now(),
            )
            write_provenance(folder, provenance)

        version = store.publish(
            folder,
            ref,
            task=task,
            run=None,
            lineage=Lineage(origin.to_json(), update_provenance),
            imported={
                "archive": file.name,
                "archive_sha256": sha256_file(file),
                "from": origin.version.adapter,
                "signed_by": fingerprint,
            },
            actor=actor,
        )
    if origin.evaluations:
        notes.append(
            "Its evaluations are claims of the archive. To evaluate it here, install its recipe "
            f"and run `trunkline eval {version.ref}`."
        )
    return ImportResult(version, provenance, tuple(notes))


@contextmanager
def _staging_folder() -> Iterator[Path]:
    """A temporary folder; errors of its disk become :class:`RegistryError`."""
    try:
        with tempfile.TemporaryDirectory(prefix="trunkline-archive-") as folder:
            yield Path(folder)
    except OSError as error:
        raise RegistryError(
            f"The version can't be copied: {reason_of(error)}.",
            "Free space in the folder for temporary files, or set TMPDIR to another one.",
        ) from error


@contextmanager
def _naming_archive(file: Path, folder: Path) -> Iterator[None]:
    """Let errors about unpacked files name the archive, since the folder is temporary."""
    try:
        yield
    except IntegrityError as error:
        message = error.message.replace(str(folder), str(file))
        hint = (error.hint or "").replace(str(folder), str(file)).replace(REPAIR, _RETRY_HINT)
        raise IntegrityError(message, hint) from error


def _check_expected(
    artifact: Artifact, file: Path, digest: str | None, base_digest: str | None
) -> None:
    if digest is not None and artifact.digest != digest:
        raise IntegrityError(
            f"The archive '{file}' holds {artifact.digest}, not {digest}.",
            f"It is another version, or was changed in transit. {_RETRY_HINT}",
        )
    base = artifact.manifest.base
    if base_digest is not None and base["digest"] != base_digest:
        raise BaseMismatchError(
            f"The adapter in '{file}' was trained on {base['name']} ({base['digest'][:19]}…), not "
            f"on a base with {base_digest[:19]}….",
            "Omit --base to import it for the base that it was trained on.",
        )


def _check_parents(store: AdapterStore, artifact: Artifact, file: Path) -> None:
    """Refuse a fusion whose parents this workspace does not have."""
    for parent in () if artifact.manifest.fusion is None else artifact.manifest.fusion.parents:
        version = store.registry.versions.of_digest(parent.digest)
        if version is None or version.removed is not None:
            raise RefusedError(
                f"The archive '{file}' holds a fusion of {parent.ref} ({parent.digest[:19]}…), "
                "which this workspace does not have.",
                "Export both parents there with `trunkline adapters export`, and import them "
                "first.",
            )


def _check_signed(store: AdapterStore, folder: Path, notes: list[str]) -> str | None:
    """The fingerprint of the verified key; None if unsigned, or if no trusted key is configured."""
    rules = store.workspace.configuration.signatures
    fingerprint = signed_by(folder)
    if rules.required or (fingerprint is not None and rules.keys):
        return check_signature(folder, rules.keys)
    if fingerprint is not None:
        notes.append(
            f"Its signature names the key {fingerprint}, but trunkline.toml has no trusted key, "
            "so it was not verified."
        )
    return None


def _default_name(provenance: Provenance, file: Path) -> Ref:
    if provenance.version.adapter is None:
        raise UsageError(
            f"The archive '{file}' does not name its adapter.",
            "Give it a name with --name DOMAIN/NAME.",
        )
    return Ref.parse(provenance.version.adapter)


def _note_duplicate(store: AdapterStore, ref: Ref, artifact: Artifact, notes: list[str]) -> None:
    try:
        version = store.registry.versions.resolve(ref.at(artifact.digest), suggest=False)[0]
    except NotFoundError:
        return
    notes.append(f"The same artifact already exists as {version.ref}; it gets a second number.")

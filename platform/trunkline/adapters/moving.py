"""Versions between workspaces: out into an archive, in again with what stands behind them; signed.

Owns: the order of checks, and what is told of each move. Must not know: the command line, the form
of an archive, of a signature or of ``provenance.json``.

An archive is trusted in nothing. Its files are held against the digest that they themselves name,
which proves that they belong together; that they are the right ones is proved by a digest that
came on another way, or by a signature. The lineage in it lies outside of the digest: it is what
the other workspace says.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trunkline.adapters.archive import pack, unpack
from trunkline.adapters.artifact import SIGNATURE, WEIGHTS, Artifact, read_artifact
from trunkline.adapters.foreign import check_finite
from trunkline.adapters.importing import check_name
from trunkline.adapters.provenance import (
    Provenance,
    read_provenance,
    version_provenance,
    write_provenance,
)
from trunkline.adapters.signing import check_signature, sign, signed_by
from trunkline.adapters.store import AdapterStore, Arriving
from trunkline.errors import (
    BaseMismatchError,
    IntegrityError,
    NotFoundError,
    RegistryError,
    UsageError,
)
from trunkline.files import REPAIR, sha256_file
from trunkline.refs import Ref
from trunkline.registry.records import RestoredLineage, VersionRecord
from trunkline.registry.session import system_actor, utc_now

_ASK_AGAIN = "Ask for the archive again, and compare its sha256."


@dataclass(frozen=True, slots=True)
class Exported:
    """An archive that was written; ``signed_by`` is the fingerprint that its signature names."""

    version: VersionRecord
    file: Path
    bytes: int
    names: tuple[str, ...]
    digest: str
    signed_by: str | None


@dataclass(frozen=True, slots=True)
class Arrived:
    """A version that came with an archive, and what is to be said of it, in sentences."""

    version: VersionRecord
    provenance: Provenance
    notes: tuple[str, ...]


def export_version(
    store: AdapterStore,
    version: VersionRecord,
    target: Path,
    *,
    overwrite: bool = False,
    actor: str | None = None,
) -> Exported:
    """Write a version into an archive: artifact, lineage as it is known now, card, signature.

    The event is written before the archive appears, so that none goes out unrecorded.

    Raises:
        UsageError: there is something at ``target``.
        IntegrityError: the artifact is not what the registry knows.
        RegistryError: the archive can't be written; nothing is left behind.
    """
    artifact = store.fetch(version, signed=False)
    with _staging() as folder:
        for path in sorted(artifact.folder.iterdir()):
            shutil.copyfile(path, folder / path.name)
        copied = read_artifact(folder, version.digest)
        write_provenance(folder, version_provenance(store.registry, version, copied))
        names = tuple(sorted(path.name for path in folder.iterdir()))
        fingerprint = signed_by(folder)

        def tell(whole: Path) -> None:
            told = {"archive": target.name, "archive_sha256": sha256_file(whole)}
            store.registry.events.append("adapter.exported", version.ref, told, actor=actor)

        size = pack(folder, target, overwrite=overwrite, before=tell)
    return Exported(version, target, size, names, version.digest, fingerprint)


def import_archive(
    store: AdapterStore,
    file: Path,
    ref: Ref | None = None,
    *,
    digest: str | None = None,
    base_digest: str | None = None,
    actor: str | None = None,
) -> Arrived:
    """Publish what an archive holds as the next version, with the lineage that it brings.

    Args:
        store: of this workspace.
        file: made by :func:`export_version`.
        ref: ``domain/name`` that it becomes; by default the one that it had.
        digest: that the version must have.
        base_digest: of the base that it must have been trained on.
        actor: who imports; by default the system's user.

    Raises:
        NotFoundError: there is no such file.
        IntegrityError: the archive or the artifact in it is not sound, is not the one of
            ``digest``, or is not signed as ``trunkline.toml`` demands; nothing was written.
        BaseMismatchError: it was trained on another base.
        RefusedError: the adapter exists for another task.
        RegistryError: it can't be written; no version is left behind.
    """
    actor = actor or system_actor()
    with _staging() as folder:
        unpack(file, folder)
        notes: list[str] = []
        with _told_of(file, folder):
            artifact = read_artifact(folder)
            _check_expected(artifact, file, digest, base_digest)
            fingerprint = _check_signed(store, folder, notes)
            provenance = read_provenance(artifact)
            check_finite(folder / WEIGHTS, folder / WEIGHTS)
        ref = _name(provenance, file) if ref is None else ref
        kind = str(artifact.manifest.task["kind"])
        check_name(store.registry, ref, kind)
        _tell_same(store, ref, artifact, notes)
        came = provenance

        def settle(made: RestoredLineage) -> None:
            nonlocal came
            came = provenance.with_transfer(
                run=made.run, origin=provenance.version.adapter or "unknown", by=actor, at=utc_now()
            )
            write_provenance(folder, came)

        told = {
            "archive": file.name,
            "archive_sha256": sha256_file(file),
            "from": provenance.version.adapter,
            "signed_by": fingerprint,
        }
        version = store.publish(
            folder,
            ref,
            task=kind,
            run=None,
            lineage=Arriving(provenance.to_json(), settle),
            imported=told,
            actor=actor,
        )
    if provenance.evaluations:
        notes.append(
            "Its evaluations are what the archive says; `trunkline eval "
            f"{version.ref}` evaluates it here, where its recipe is installed."
        )
    return Arrived(version, came, tuple(notes))


def sign_version(
    store: AdapterStore,
    version: VersionRecord,
    key: Path,
    password: str | None = None,
    *,
    actor: str | None = None,
) -> str:
    """Sign a version whose digest was verified first; gives the key's fingerprint.

    Raises:
        UsageError: the key can't be used.
        IntegrityError: the artifact is not what the registry knows.
        RegistryError: the signature can't be written; an earlier one stands.
    """
    artifact = store.fetch(version, signed=False)
    made = sign(artifact.folder, key, password)
    store.write_file(version, SIGNATURE, made.data)
    told = {"signed_by": made.fingerprint}
    store.registry.events.append("version.signed", version.ref, told, actor=actor)
    return made.fingerprint


@contextmanager
def _staging() -> Iterator[Path]:
    """A folder for a while; that it can't be written is told in one sentence."""
    try:
        with tempfile.TemporaryDirectory(prefix="trunkline-moving-") as made:
            yield Path(made)
    except OSError as error:
        raise RegistryError(
            f"The version can't be copied: {error.strerror or error}.",
            "Make room in the folder for temporary files, or name another with TMPDIR.",
        ) from error


@contextmanager
def _told_of(file: Path, folder: Path) -> Iterator[None]:
    """An error of what was unpacked names the archive, not a folder that is gone by then."""
    try:
        yield
    except IntegrityError as error:
        message = error.message.replace(str(folder), str(file))
        hint = (error.hint or "").replace(str(folder), str(file)).replace(REPAIR, _ASK_AGAIN)
        raise IntegrityError(message, hint) from error


def _check_expected(
    artifact: Artifact, file: Path, digest: str | None, base_digest: str | None
) -> None:
    if digest is not None and artifact.digest != digest:
        raise IntegrityError(
            f"The archive '{file}' holds {artifact.digest}, not {digest}.",
            f"It is another version, or was changed on its way. {_ASK_AGAIN}",
        )
    trained_on = artifact.manifest.base
    if base_digest is not None and trained_on["digest"] != base_digest:
        raise BaseMismatchError(
            f"The adapter in '{file}' was trained on {trained_on['name']} "
            f"({trained_on['digest'][:19]}…), not on a base with {base_digest[:19]}….",
            "Leave --base away to import it for the base that it was trained on.",
        )


def _check_signed(store: AdapterStore, folder: Path, notes: list[str]) -> str | None:
    """The key whose signature holds; None where there is none, or none is known that counts."""
    demanded = store.workspace.configuration.signatures
    said = signed_by(folder)
    if demanded.required or (said is not None and demanded.keys):
        return check_signature(folder, demanded.keys)
    if said is not None:
        notes.append(
            f"Its signature names the key {said}; no key is known here that counts, so it was "
            "not verified."
        )
    return None


def _name(provenance: Provenance, file: Path) -> Ref:
    if provenance.version.adapter is None:
        raise UsageError(
            f"The archive '{file}' does not say what its adapter was called.",
            "Give it a name with --name DOMAIN/NAME.",
        )
    return Ref.parse(provenance.version.adapter)


def _tell_same(store: AdapterStore, ref: Ref, artifact: Artifact, notes: list[str]) -> None:
    try:
        known = store.registry.versions.resolve(ref.at(artifact.digest), suggest=False)[0]
    except NotFoundError:
        return
    notes.append(f"The same artifact is here already as {known.ref}; it gets another number.")

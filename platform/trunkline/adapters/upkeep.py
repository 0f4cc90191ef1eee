"""Whether a version's files are what the registry says; and taking a version away.

Owns: what verifying compares, and the order in which a version goes. Must not know: terminals, or
what else lies in the store (:mod:`trunkline.adapters.gc`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trunkline.adapters.artifact import CARD, REQUIRED, SIGNATURE
from trunkline.adapters.storage import described, is_known
from trunkline.adapters.store import AdapterStore
from trunkline.errors import IntegrityError, RegistryError
from trunkline.refs import Ref
from trunkline.registry.records import VersionRecord


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of verifying one version.

    Attributes:
        damage: what is wrong, in a sentence; None where the version is sound.
        remarks: what was written anew since it was published, outside of its identity.
        signed_by: fingerprint of the key, where a signature was asked for.
        advice: on the damage.
    """

    version: str
    digest: str
    damage: str | None
    remarks: tuple[str, ...] = ()
    signed_by: str | None = None
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """A version that is a tombstone now; ``files_stay`` tells why its files are still there."""

    version: VersionRecord
    files_stay: str | None = None


def verify(
    store: AdapterStore,
    version: VersionRecord,
    *,
    require_signature: bool = False,
    keys: Sequence[Path] = (),
) -> Verdict:
    """Recompute a version's digests from its files in the store itself.

    Args:
        require_signature: one that is not signed by one of the ``keys`` counts as damaged.
        keys: public keys that count.

    Raises:
        RegistryError: the store can't be reached.
        UsageError: a signature is asked for and there are no keys.
    """
    signed_by = None
    try:
        with store.examined(version) as artifact:
            remarks = _compare(version, described(artifact))
            if require_signature:
                from trunkline.adapters.signing import check_signature

                signed_by = check_signature(artifact.folder, keys)
    except IntegrityError as error:
        return Verdict(str(version.ref), version.digest, error.message, advice=error.hint)
    return Verdict(str(version.ref), version.digest, None, remarks, signed_by)


def remove(store: AdapterStore, ref: Ref, *, reason: str, actor: str | None = None) -> Removed:
    """Make a version a tombstone, then take its files away.

    Killed in between, the version is removed and upkeep takes the files.

    Raises:
        RefusedError: an alias or a running server holds it.
        NotFoundError, UsageError: see :meth:`Removal.remove_version`.
    """
    registry = store.registry
    version = registry.versions.remove(
        ref, reason=reason, actor=actor, held=registry.servers.holders()
    )
    held = registry.servers.holders([version.digest])
    if servers := held.get(version.digest):
        return Removed(version, f"{servers[0]} has loaded it just now")
    try:
        store.storage.remove(version.path)
    except (OSError, RegistryError) as error:
        return Removed(version, str(error))
    return Removed(version)


def _compare(version: VersionRecord, now: Mapping[str, Mapping[str, object]]) -> tuple[str, ...]:
    """Remarks on files that people may write anew; raises for the others beside the identity."""
    remarks = []
    for name, known in (version.files or {}).items():
        if name in REQUIRED or is_known(known, now.get(name)):
            continue
        what = "was changed" if name in now else "is gone"
        if name not in (CARD, SIGNATURE):
            raise IntegrityError(f"{name} of {version.ref} {what} since it was published.")
        remarks.append(f"{name} {what} since it was published")
    return tuple(remarks)

"""Rebuild a lost registry from the artifacts in the store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from trunkline.adapters.artifact import CARD, MANIFEST, Artifact
from trunkline.adapters.card import render_card
from trunkline.adapters.provenance import Provenance, manifest_provenance, read_provenance
from trunkline.adapters.storage import PARTIAL, StoredFolder, describe_files, write_errors
from trunkline.adapters.store import AdapterStore, template_digest
from trunkline.contracts import ProgressListener
from trunkline.errors import IntegrityError
from trunkline.files import canonical_json, parse_json_object
from trunkline.refs import Ref
from trunkline.registry.records import RecoveredVersion

LOST = (
    "aliases and their history, events, tags and notes, API keys, the request log, servers, "
    "the prediction of each row, metrics by training step, runs that published nothing, and the "
    "records of removed versions, whose numbers may be reused if they were the highest"
)
"""What only the database contains, and no artifact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildResult:
    """What was recovered.

    Attributes:
        cards: how many missing cards were rewritten.
        skipped: paths of folders that are not valid versions.
        notes: one sentence for everything that differs from before.
    """

    bases: int
    datasets: int
    runs: int
    versions: int
    cards: int
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


def rebuild_registry(
    store: AdapterStore, *, listener: ProgressListener, actor: str | None = None
) -> RebuildResult:
    """Fill the store's empty registry from the artifacts, after verifying each of them.

    A version gets the number of its folder. Damaged artifacts are skipped and listed; a valid
    artifact whose provenance is unusable is recovered without it. One transaction writes
    everything, or nothing.

    Raises:
        RefusedError: the registry is not empty; nothing was changed.
        RegistryError: the store or the registry can't be read or written.
    """
    store.registry.provenance.check_empty()
    listener.stage("reading artifacts")
    folders = [folder for folder in store.storage.folders() if _is_version(folder)]
    folders.sort(key=lambda folder: folder.version or ())
    versions: list[RecoveredVersion] = []
    cards = 0
    skipped: list[str] = []
    notes: list[str] = []
    tasks: dict[str, str] = {}
    for done, folder in enumerate(folders, 1):
        try:
            with _open_artifact(store, folder) as artifact:
                version, card = _read_version(artifact, folder, notes)
            _check_task(version, tasks)
            if card is not None:
                version = _write_card(store, version, card)
                cards += 1
        except (IntegrityError, OSError) as error:
            skipped.append(folder.path)
            notes.append(f"{folder.path} was skipped: {getattr(error, 'message', error)}")
            continue
        versions.append(version)
        listener.progress(done, len(folders), {})
    listener.stage("writing the registry")
    counts = store.registry.provenance.rebuild(versions, actor=actor)
    return RebuildResult(
        bases=counts.bases,
        datasets=counts.datasets,
        runs=counts.runs,
        versions=counts.versions,
        cards=cards,
        skipped=tuple(skipped),
        notes=tuple(notes),
    )


def _is_version(folder: StoredFolder) -> bool:
    complete = folder.version is not None and MANIFEST in folder.names
    return complete and not folder.path.startswith(PARTIAL)


@contextmanager
def _open_artifact(store: AdapterStore, folder: StoredFolder) -> Iterator[Artifact]:
    """The artifact, verified against the digest of its own manifest."""
    label = f"{store.storage.location(folder.path)}/{MANIFEST}"
    manifest = parse_json_object(store.storage.read_manifest(folder.path), label)
    digest = "sha256:" + hashlib.sha256(canonical_json(manifest)).hexdigest()
    with store.storage.open(folder.path, digest, None) as artifact:
        yield artifact


def _read_version(
    artifact: Artifact, folder: StoredFolder, notes: list[str]
) -> tuple[RecoveredVersion, str | None]:
    """The version, and its new card if it has none."""
    assert folder.version is not None
    domain, name, number = folder.version
    ref = Ref(domain, name, str(number))
    provenance = _read_provenance(artifact, folder, notes)
    files = dict(describe_files(artifact))
    version = RecoveredVersion(
        ref=ref,
        task=provenance.version.task,
        digest=artifact.digest,
        path=folder.path,
        bytes=sum(entry["bytes"] for entry in files.values()),
        files=files,
        template_digest=template_digest(artifact),
        created=provenance.version.created,
        provenance=provenance.to_json(),
    )
    card = None if CARD in files else render_card(artifact, provenance, str(ref))
    return version, card


def _write_card(store: AdapterStore, version: RecoveredVersion, card: str) -> RecoveredVersion:
    """Write the card and return the version with it; nothing else changes."""
    data = card.encode()
    with write_errors(f"{store.storage.location(version.path)}/{CARD}", "rebuild again"):
        store.storage.write_file(version.path, CARD, data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    files = {**version.files, CARD: entry}
    return replace(version, files=files, bytes=version.bytes + len(data))


def _read_provenance(artifact: Artifact, folder: StoredFolder, notes: list[str]) -> Provenance:
    try:
        provenance = read_provenance(artifact)
    except IntegrityError as error:
        notes.append(f"{folder.path} was recovered without its provenance: {error.message}")
        return manifest_provenance(artifact)
    if provenance.version.adapter is None:
        notes.append(
            f"{folder.path} has no provenance.json: its time is that of its files, and its run is "
            "unknown."
        )
    return provenance


def _check_task(version: RecoveredVersion, tasks: dict[str, str]) -> None:
    """Check that all versions of an adapter have the task of the first."""
    adapter = version.ref.adapter
    if tasks.setdefault(adapter, version.task) != version.task:
        raise IntegrityError(
            f"its task is {version.task}, but '{adapter}' is for {tasks[adapter]}.",
            "Move it to another name.",
        )

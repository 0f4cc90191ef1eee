"""A lost registry made again out of what stands in the artifacts.

Owns: which artifacts count, and what is said of the others. Must not know: the registry's tables;
one transaction takes everything over, or nothing.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from trunkline.adapters.artifact import CARD, MANIFEST, Artifact, read_artifact
from trunkline.adapters.card import render_card
from trunkline.adapters.provenance import Provenance, manifest_provenance, read_provenance
from trunkline.adapters.storage import LEFTOVER, LocalStorage, StoredFolder, described, writing
from trunkline.adapters.store import AdapterStore, template_digest
from trunkline.errors import IntegrityError, RegistryError
from trunkline.files import MAX_JSON_BYTES, canonical_json, read_json_object
from trunkline.refs import Ref
from trunkline.registry.records import FoundVersion

LOST = (
    "aliases and their history, events, tags and notes, API keys, the request log, deployments, "
    "the prediction of each row, figures by training step, runs that published nothing, and the "
    "traces of removed versions, whose numbers may be given again where they were the highest"
)
"""What only the database knew."""


class Listener(Protocol):
    """Whoever wants to hear how the work goes on."""

    def stage(self, text: str) -> None:
        """A new part of the work begins."""
        ...

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        """``done`` of ``total`` artifacts."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild:
    """What came back.

    Attributes:
        cards: how many cards were missing and written anew.
        left_out: paths of folders that are no sound version.
        notes: a sentence for everything that is not as it was.
    """

    bases: int
    datasets: int
    runs: int
    versions: int
    cards: int
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def rebuild_registry(
    store: AdapterStore, *, listener: Listener, actor: str | None = None
) -> Rebuild:
    """Fill the store's empty registry from the artifacts, each of which is verified.

    A version's number is that of its folder. What is damaged is left out and named; a sound
    artifact whose provenance can't be used comes back without its origin.

    Raises:
        RefusedError: the registry is not empty; nothing was changed.
        RegistryError: the store or the registry can't be read or written.
    """
    store.registry.check_empty()
    listener.stage("reading artifacts")
    folders = [one for one in store.storage.folders() if _is_version(one)]
    folders.sort(key=lambda one: one.version or ())
    found: list[FoundVersion] = []
    cards = 0
    left_out: list[str] = []
    notes: list[str] = []
    tasks: dict[str, str] = {}
    for done, folder in enumerate(folders, 1):
        try:
            with _examined(store, folder) as artifact:
                one, card = _found(artifact, folder, notes)
            _check_task(one, tasks)
            if card is not None:
                one = _with_card(store, one, card)
                cards += 1
        except (IntegrityError, OSError) as error:
            left_out.append(folder.path)
            notes.append(f"{folder.path} is left out: {getattr(error, 'message', error)}")
            continue
        found.append(one)
        listener.progress(done, len(folders), {})
    listener.stage("writing the registry")
    made = store.registry.rebuild(found, actor=actor)
    return Rebuild(
        bases=made.bases,
        datasets=made.datasets,
        runs=made.runs,
        versions=made.versions,
        cards=cards,
        left_out=tuple(left_out),
        notes=tuple(notes),
    )


def _is_version(folder: StoredFolder) -> bool:
    """What was being written when its writer was killed is none."""
    whole = folder.version is not None and MANIFEST in folder.names
    return whole and not folder.path.startswith(LEFTOVER)


@contextmanager
def _examined(store: AdapterStore, folder: StoredFolder) -> Iterator[Artifact]:
    """The artifact in a local folder, its digests verified against its own manifest."""
    storage = store.storage
    if isinstance(storage, LocalStorage):
        yield read_artifact(storage.root / folder.path)
        return
    with storage.examined(folder.path, _digest(store, folder), None) as artifact:
        yield artifact


def _digest(store: AdapterStore, folder: StoredFolder) -> str:
    """The identity that the manifest of an artifact in an object store claims."""
    import fsspec

    url = f"{store.storage.place(folder.path)}/{MANIFEST}"
    with tempfile.TemporaryDirectory(prefix="trunkline-rebuild-") as work:
        copy = Path(work, MANIFEST)
        try:
            with fsspec.open(url, "rb", **store.workspace.configuration.store.options) as file:
                copy.write_bytes(file.read(MAX_JSON_BYTES + 1))
        except Exception as error:  # each store's driver has exceptions of its own
            raise RegistryError(
                f"{url} can't be read: {type(error).__name__}.",
                "Check the network and the credentials, then try again.",
            ) from error
        return "sha256:" + hashlib.sha256(canonical_json(read_json_object(copy))).hexdigest()


def _found(
    artifact: Artifact, folder: StoredFolder, notes: list[str]
) -> tuple[FoundVersion, str | None]:
    """The version, and its card if there is none beside it."""
    assert folder.version is not None
    domain, name, number = folder.version
    ref = Ref(domain, name, str(number))
    provenance = _provenance(artifact, folder, notes)
    files = dict(described(artifact))
    version = FoundVersion(
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


def _with_card(store: AdapterStore, found: FoundVersion, card: str) -> FoundVersion:
    """The version with its card written; nothing else of it is touched."""
    data = card.encode()
    with writing(f"{store.storage.place(found.path)}/{CARD}", "rebuild again"):
        store.storage.write_file(found.path, CARD, data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    files = {**found.files, CARD: entry}
    return replace(found, files=files, bytes=found.bytes + len(data))


def _provenance(artifact: Artifact, folder: StoredFolder, notes: list[str]) -> Provenance:
    try:
        found = read_provenance(artifact)
    except IntegrityError as error:
        notes.append(f"{folder.path} comes back without its origin: {error.message}")
        return manifest_provenance(artifact)
    if found.version.adapter is None:
        notes.append(
            f"{folder.path} has no provenance.json: its time is that of its files, and its run is "
            "unknown."
        )
    return found


def _check_task(found: FoundVersion, tasks: dict[str, str]) -> None:
    """All versions of an adapter are for one task: that of the first."""
    adapter = found.ref.adapter
    if tasks.setdefault(adapter, found.task) != found.task:
        raise IntegrityError(
            f"it is for {found.task}, but '{adapter}' is for {tasks[adapter]}.",
            "Move it below another name.",
        )

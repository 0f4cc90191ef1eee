"""The versions of a workspace: publish a folder as a version, and fetch its files.

A version is absent or complete. One transaction reserves its number, the storage writes its files,
and a second transaction makes it visible. If the process is killed in between, the number stays
unused and gc deletes the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.adapters.artifact import (
    CARD,
    CROISSANT,
    PROVENANCE,
    SIGNATURE,
    Artifact,
    read_artifact,
)
from trunkline.adapters.storage import LocalStorage, Storage, write_errors
from trunkline.errors import NotFoundError, RegistryError, UsageError
from trunkline.files import canonical_json
from trunkline.refs import Ref
from trunkline.registry.artifacts import PATH_TAKEN
from trunkline.registry.records import RecordedProvenance, VersionRecord
from trunkline.registry.registry import Registry
from trunkline.workspace import Workspace

if TYPE_CHECKING:
    from trunkline.adapters.object_store import ArtifactCache

MUTABLE = (PROVENANCE, CARD, CROISSANT, SIGNATURE)
"""Files of a version that its digest does not cover; they may be replaced."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """The lineage of a version from another workspace.

    Attributes:
        provenance: the validated content of its ``provenance.json``.
        on_restored: called with the restored rows before the files are copied.
    """

    provenance: Mapping[str, Any]
    on_restored: Callable[[RecordedProvenance], None]


class AdapterStore:
    """The artifacts of one workspace."""

    def __init__(self, workspace: Workspace, registry: Registry) -> None:
        self.workspace = workspace
        self.registry = registry

    @cached_property
    def cache(self) -> ArtifactCache:
        """Local copies of artifacts in an object store."""
        return open_cache(self.workspace)

    @cached_property
    def storage(self) -> Storage:
        """Where the files are: the folder ``adapters/``, or the store in ``trunkline.toml``.

        Raises:
            UsageError: ``trunkline.toml`` can't be read.
        """
        return open_storage(self.workspace)

    def publish(
        self,
        source: Path,
        ref: Ref,
        *,
        task: str,
        run: int | None,
        base_digest: str | None = None,
        lineage: Lineage | None = None,
        imported: Mapping[str, Any] | None = None,
        merge: Mapping[str, Any] | None = None,
        dataset_id: int | None = None,
        actor: str | None = None,
    ) -> VersionRecord:
        """Publish a sealed folder as the next version of ``ref``.

        Args:
            source: the artifact.
            ref: the adapter, without a selector.
            task: the adapter's task.
            run: the run that trained it, if any.
            base_digest: of a recorded base; required if there is no run.
            lineage: of a version from another workspace; it is recorded together with the number,
                instead of ``run``.
            imported: the origin of an imported version, for its event.
            merge: how a merged version was made, and from which; ``dataset_id`` is then the
                recorded dataset that its parents share, if any.
            actor: recorded as the publisher; by default the system's user.

        Raises:
            IntegrityError: the folder is not a valid artifact.
            RegistryError: it can't be written; nothing is left behind.
        """
        artifact, storage = read_artifact(source), self.storage
        number, path, restored = self._reserve(ref, task, run, lineage, actor)
        retry = "import it again" if run is None else "train again with --resume"
        retry = retry if merge is None else "merge again"
        if lineage is not None:
            merge = lineage.provenance["merge"]
        try:
            if lineage is not None and restored is not None:
                lineage.on_restored(restored)
            with write_errors(storage.location(path), retry):
                files = storage.add(artifact, path)
            return self.registry.versions.publish(
                ref.domain,
                ref.name,
                number,
                digest=artifact.digest,
                path=path,
                bytes=sum(entry["bytes"] for entry in files.values()),
                base_digest=base_digest if restored is None else restored.base_digest,
                dataset_id=dataset_id if restored is None else restored.dataset_id,
                files=files,
                template_digest=template_digest(artifact),
                actor=actor,
                imported=imported,
                merge=merge,
            )
        except BaseException:
            with suppress(RegistryError):
                self.registry.versions.abandon(ref.domain, ref.name, number)
            if not self._may_be_visible(ref.at(number)):
                with suppress(OSError, RegistryError):
                    storage.remove(path)
            raise

    def fetch(self, version: VersionRecord, *, signed: bool | None = None) -> Artifact:
        """The verified artifact of a version, in a local folder that must not be changed.

        Args:
            version: from the registry.
            signed: whether a trusted key must have signed it; by default as ``trunkline.toml``
                requires.

        Raises:
            IntegrityError: it does not have the recorded digest, or lacks a required signature.
            RegistryError: the store can't be reached.
        """
        artifact = self.storage.fetch(version.path, version.digest, version.files)
        rules = self.workspace.configuration.signatures
        if rules.required if signed is None else signed:
            from trunkline.adapters.signing import check_signature

            check_signature(artifact.folder, rules.keys)
        return artifact

    def open(self, version: VersionRecord) -> AbstractContextManager[Artifact]:
        """A context with the verified artifact as it is in the storage, bypassing the cache."""
        return self.storage.open(version.path, version.digest, version.files)

    def location(self, version: VersionRecord) -> str:
        """Where a version's files are: a folder or a URL."""
        return self.storage.location(version.path)

    def write_file(self, version: VersionRecord, name: str, data: bytes) -> VersionRecord:
        """Create or replace one of the files that a version's digest does not cover.

        Args:
            version: a visible one.
            name: one of :data:`MUTABLE`.
            data: the content of the file.

        Returns:
            The version as it is recorded now.

        Raises:
            UsageError: the file is part of the identity, or of no artifact.
            RegistryError: it can't be written; the old file is kept.
        """
        if name not in MUTABLE:
            raise UsageError(
                f"{name!r} of {version.ref} can't be replaced.",
                f"Only these files of a version can be: {', '.join(MUTABLE)}.",
            )
        size, digest = len(data), hashlib.sha256(data).hexdigest()
        record = partial(
            self.registry.artifacts.record_file, version.ref, name, bytes=size, sha256=digest
        )
        record(written=False)
        with write_errors(f"{self.location(version)}/{name}", "try again"):
            self.storage.write_file(version.path, name, data)
        return record(written=True)

    def render_card(self, version: VersionRecord) -> str:
        """The model card of a version, from what the registry records now."""
        return self._render(version)[1]

    def update_card(self, version: VersionRecord) -> VersionRecord:
        """Rewrite ``provenance.json`` and ``README.md`` from what the registry records now.

        Raises:
            RegistryError: the store can't be written; each file is the old or the new one.
        """
        provenance, card = self._render(version)
        version = self.write_file(version, PROVENANCE, provenance)
        return self.write_file(version, CARD, card.encode())

    def _render(self, version: VersionRecord) -> tuple[bytes, str]:
        """``provenance.json`` and the model card of a version."""
        from trunkline.adapters.card import render_card
        from trunkline.adapters.provenance import provenance_bytes, version_provenance

        artifact = self.fetch(version)
        provenance = version_provenance(self.registry, version, artifact)
        return provenance_bytes(provenance), render_card(artifact, provenance, str(version.ref))

    def _may_be_visible(self, ref: Ref) -> bool:
        try:
            self.registry.versions.resolve(ref)
        except NotFoundError:
            return False
        except RegistryError:
            return True
        return True

    def _reserve(
        self, ref: Ref, task: str, run: int | None, lineage: Lineage | None, actor: str | None
    ) -> tuple[int, str, RecordedProvenance | None]:
        """Reserve a number whose path is free: files of another registry are never overwritten."""
        restored = None
        while True:
            if lineage is None:
                number = self.registry.versions.reserve(ref.domain, ref.name, task=task, run=run)
            else:
                number, restored = self.registry.provenance.reserve(
                    ref, task=task, provenance=lineage.provenance, actor=actor
                )
            path = f"{ref.domain}/{ref.name}/{number}"
            try:
                if not self.storage.exists(path):
                    return number, path, restored
            except BaseException:
                with suppress(RegistryError):
                    self.registry.versions.abandon(ref.domain, ref.name, number)
                raise
            self.registry.versions.abandon(ref.domain, ref.name, number, reason=PATH_TAKEN)


def open_cache(workspace: Workspace) -> ArtifactCache:
    """The local copies of a workspace's artifacts in an object store."""
    from trunkline.adapters.object_store import ArtifactCache

    return ArtifactCache(workspace.root / ".trunkline" / "cache")


def open_storage(workspace: Workspace) -> Storage:
    """Where a workspace's files are: its ``adapters/``, or the store in ``trunkline.toml``.

    Raises:
        UsageError: ``trunkline.toml`` can't be read.
    """
    settings = workspace.configuration.store
    if settings.url is None:
        return LocalStorage(workspace.adapters)
    protocol, separator, rest = settings.url.partition("://")
    if not separator or protocol in ("file", "local"):
        folder = Path(rest if separator else settings.url).expanduser()
        return LocalStorage(workspace.root / folder)
    from trunkline.adapters.object_store import ObjectStorage

    return ObjectStorage(settings.url, settings.options, open_cache(workspace))


def template_digest(artifact: Artifact) -> str:
    """The sha256 of the canonical prompt template, 64 hex digits."""
    return hashlib.sha256(canonical_json(dict(artifact.manifest.template))).hexdigest()

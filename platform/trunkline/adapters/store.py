"""Where versions are kept: publish a folder, find it again.

Owns: the way from a finished folder to a visible version, and back. Must not know: how artifacts
are made or used, or what its storage is.

A version is absent or complete. The database gives out the number in one transaction; the storage
writes the files, all of them or none that count; a second transaction makes the version visible.
Killed in between, a number stays unused, and upkeep takes what was written of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import (
    CARD,
    CROISSANT,
    PROVENANCE,
    SIGNATURE,
    Artifact,
    read_artifact,
)
from trunkline.adapters.cache import Cache
from trunkline.adapters.storage import LocalStorage, Storage, writing
from trunkline.errors import NotFoundError, RegistryError, UsageError
from trunkline.files import canonical_json
from trunkline.refs import Ref
from trunkline.registry.publisher import OCCUPIED
from trunkline.registry.records import RestoredLineage, VersionRecord
from trunkline.registry.registry import Registry
from trunkline.workspace import Workspace

BESIDE = (PROVENANCE, CARD, CROISSANT, SIGNATURE)
"""Files of a version that lie outside of its identity and may be written anew."""


@dataclass(frozen=True, slots=True)
class Arriving:
    """The lineage that comes with a version from elsewhere.

    Attributes:
        provenance: in the form of ``provenance.json``, read strictly before.
        settle: told what it became here, before the files are copied.
    """

    provenance: Mapping[str, Any]
    settle: Callable[[RestoredLineage], None]


class AdapterStore:
    """The artifacts of one workspace."""

    def __init__(self, workspace: Workspace, registry: Registry) -> None:
        self.workspace = workspace
        self.registry = registry

    @cached_property
    def cache(self) -> Cache:
        """Copies of what lies in an object store."""
        return Cache(self.workspace.root / ".trunkline" / "cache")

    @cached_property
    def storage(self) -> Storage:
        """Where the files lie: the folder ``adapters/``, or what ``trunkline.toml`` says.

        Raises:
            UsageError: ``trunkline.toml`` can't be read.
        """
        said = self.workspace.configuration.store
        if said.url is None:
            return LocalStorage(self.workspace.adapters)
        protocol, separator, rest = said.url.partition("://")
        if not separator or protocol in ("file", "local"):
            folder = Path(rest if separator else said.url).expanduser()
            return LocalStorage(self.workspace.root / folder)
        from trunkline.adapters.objects import ObjectStorage

        return ObjectStorage(said.url, said.options, self.cache)

    def publish(
        self,
        source: Path,
        ref: Ref,
        *,
        task: str,
        run: int | None,
        base_digest: str | None = None,
        lineage: Arriving | None = None,
        imported: Mapping[str, Any] | None = None,
        actor: str | None = None,
    ) -> VersionRecord:
        """Copy a sealed folder in as the next version of ``ref``.

        Args:
            source: the artifact.
            ref: of the adapter, without a selector.
            task: what it is for.
            run: that made it, if one did.
            base_digest: of a recorded base; needed where there is no run.
            lineage: of a version from elsewhere; it is recorded together with the number, in place
                of ``run``.
            imported: where a version that was not made here comes from; told in an event.
            actor: who publishes; by default the system's user.

        Raises:
            IntegrityError: the folder is no sound artifact.
            RegistryError: it can't be written; nothing is left behind.
        """
        artifact, storage = read_artifact(source), self.storage
        number, path, made = self._reserve(ref, task, run, lineage, actor)
        again = "import it again" if run is None else "train again with --resume"
        try:
            if lineage is not None and made is not None:
                lineage.settle(made)
            with writing(storage.place(path), again):
                files = storage.add(artifact, path)
            return self.registry.versions.publish(
                ref.domain,
                ref.name,
                number,
                digest=artifact.digest,
                path=path,
                bytes=sum(entry["bytes"] for entry in files.values()),
                base_digest=base_digest if made is None else made.base_digest,
                dataset_id=None if made is None else made.dataset_id,
                files=files,
                template_digest=template_digest(artifact),
                actor=actor,
                imported=imported,
            )
        except BaseException:
            with suppress(RegistryError):
                self.registry.versions.abandon(ref.domain, ref.name, number)
            if not self._may_be_visible(ref.at(number)):
                with suppress(OSError, RegistryError):
                    storage.remove(path)
            raise

    def fetch(self, version: VersionRecord, *, signed: bool | None = None) -> Artifact:
        """The verified artifact of a version, in a local folder that is only to be read.

        Args:
            version: from the registry.
            signed: whether it must be signed by a key that counts; by default as
                ``trunkline.toml`` demands.

        Raises:
            IntegrityError: it is not what the registry knows under this digest, or it is not
                signed as it must be.
            RegistryError: the store can't be reached.
        """
        artifact = self.storage.fetch(version.path, version.digest, version.files)
        demanded = self.workspace.configuration.signatures
        if demanded.required if signed is None else signed:
            from trunkline.adapters.signing import check_signature

            check_signature(artifact.folder, demanded.keys)
        return artifact

    def examined(self, version: VersionRecord) -> AbstractContextManager[Artifact]:
        """The verified artifact as it lies in the store itself, past any copy; for a while."""
        return self.storage.examined(version.path, version.digest, version.files)

    def place(self, version: VersionRecord) -> str:
        """Where a version's files lie, for people: a folder or a URL."""
        return self.storage.place(version.path)

    def write_file(self, version: VersionRecord, name: str, data: bytes) -> VersionRecord:
        """Write one of the files beside a version's identity, in the place of an earlier one.

        Args:
            version: a visible one.
            name: one of :data:`BESIDE`.
            data: the whole file.

        Returns:
            The version as the registry knows it now.

        Raises:
            UsageError: the file is part of the identity, or none of an artifact's.
            RegistryError: it can't be written; the earlier one stands.
        """
        if name not in BESIDE:
            raise UsageError(
                f"{name!r} of {version.ref} can't be written anew.",
                f"What lies outside of a version's identity is: {', '.join(BESIDE)}.",
            )
        size, digest = len(data), hashlib.sha256(data).hexdigest()
        record = partial(
            self.registry.artifacts.record_file, version.ref, name, bytes=size, sha256=digest
        )
        record(written=False)
        with writing(f"{self.place(version)}/{name}", "try again"):
            self.storage.write_file(version.path, name, data)
        return record(written=True)

    def render_card(self, version: VersionRecord) -> str:
        """The model card of a version, from what the registry knows now."""
        from trunkline.adapters.card import render_card
        from trunkline.adapters.provenance import version_provenance

        artifact = self.fetch(version)
        provenance = version_provenance(self.registry, version, artifact)
        return render_card(artifact, provenance, str(version.ref))

    def update_card(self, version: VersionRecord) -> VersionRecord:
        """Rewrite ``provenance.json`` and ``README.md`` from what the registry knows now.

        Raises:
            RegistryError: the store can't be written; each file is the old or the new one.
        """
        from trunkline.adapters.card import render_card
        from trunkline.adapters.provenance import provenance_bytes, version_provenance

        artifact = self.fetch(version)
        provenance = version_provenance(self.registry, version, artifact)
        card = render_card(artifact, provenance, str(version.ref))
        version = self.write_file(version, PROVENANCE, provenance_bytes(provenance))
        return self.write_file(version, CARD, card.encode())

    def _may_be_visible(self, ref: Ref) -> bool:
        try:
            self.registry.versions.resolve(ref)
        except NotFoundError:
            return False
        except RegistryError:
            return True
        return True

    def _reserve(
        self, ref: Ref, task: str, run: int | None, lineage: Arriving | None, actor: str | None
    ) -> tuple[int, str, RestoredLineage | None]:
        """A number whose place is free: files of an earlier registry are never written over."""
        made = None
        while True:
            if lineage is None:
                number = self.registry.versions.reserve(ref.domain, ref.name, task=task, run=run)
            else:
                number, made = self.registry.versions.reserve_imported(
                    ref, task=task, provenance=lineage.provenance, actor=actor
                )
            path = f"{ref.domain}/{ref.name}/{number}"
            try:
                if not self.storage.holds(path):
                    return number, path, made
            except BaseException:
                with suppress(RegistryError):
                    self.registry.versions.abandon(ref.domain, ref.name, number)
                raise
            self.registry.versions.abandon(ref.domain, ref.name, number, reason=OCCUPIED)


def template_digest(artifact: Artifact) -> str:
    """sha256 of the canonical prompt template, in hex."""
    return hashlib.sha256(canonical_json(dict(artifact.manifest.template))).hexdigest()

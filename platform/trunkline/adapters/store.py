"""Where versions are kept: publish a folder, find it again.

Owns: the way from a finished folder to a visible version, and back. Must not know: how artifacts
are made or used.

A version is absent or complete. The database gives out the number in one transaction; the files
are written to a temporary folder on the same disk, synced, and renamed into place; a second
transaction makes the version visible. Killed in between, a number stays unused.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import Artifact, read_artifact
from trunkline.errors import NotFoundError, RegistryError
from trunkline.refs import Ref
from trunkline.registry.records import VersionRecord
from trunkline.registry.store import Registry
from trunkline.workspace import Workspace


class AdapterStore:
    """The artifacts of one workspace."""

    def __init__(self, workspace: Workspace, registry: Registry) -> None:
        self._workspace = workspace
        self.registry = registry

    def publish(
        self,
        source: Path,
        ref: Ref,
        *,
        task: str,
        run: int | None,
        base_digest: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> VersionRecord:
        """Copy a sealed folder in as the next version of ``ref``.

        Args:
            source: the artifact.
            ref: of the adapter, without a selector.
            task: what it is for.
            run: that made it, if one did.
            base_digest: of a recorded base; needed where there is no run.
            detail: kept in the event of the publication.

        Raises:
            IntegrityError: the folder is no sound artifact.
            RegistryError: it can't be written; nothing is left behind.
        """
        artifact = read_artifact(source)
        number, target = self._reserve(ref, task, run)
        try:
            _copy_in(artifact, target, self._workspace.adapters)
            return self.registry.publish_version(
                ref.domain,
                ref.name,
                number,
                digest=artifact.digest,
                path=target.relative_to(self._workspace.adapters).as_posix(),
                bytes=artifact.bytes,
                base_digest=base_digest,
                detail=detail,
            )
        except BaseException as error:
            with suppress(RegistryError):
                self.registry.abandon_version(ref.domain, ref.name, number)
            if not self._may_be_visible(ref.at(number)):
                _remove(target, self._workspace.adapters)
            if isinstance(error, OSError):
                again = "import it again" if run is None else "train again with --resume"
                raise RegistryError(
                    f"The artifact can't be written to {target}: {error.strerror or error}.",
                    f"Make room or give write permission, then {again}.",
                ) from error
            raise

    def fetch(self, version: VersionRecord) -> Artifact:
        """The verified artifact of a version.

        Raises:
            IntegrityError: it is not what the registry knows under this digest.
        """
        return read_artifact(self._workspace.adapters / version.path, version.digest)

    def _may_be_visible(self, ref: Ref) -> bool:
        try:
            self.registry.resolve(ref)
        except NotFoundError:
            return False
        except RegistryError:
            return True
        return True

    def _reserve(self, ref: Ref, task: str, run: int | None) -> tuple[int, Path]:
        """A number whose folder is free: files of an earlier registry are never written over."""
        while True:
            number = self.registry.reserve_version(ref.domain, ref.name, task=task, run=run)
            target = self._workspace.version_path(ref.domain, ref.name, number)
            if not os.path.lexists(target):
                return number, target
            self.registry.abandon_version(ref.domain, ref.name, number)


def _copy_in(artifact: Artifact, target: Path, root: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".publishing-", dir=root))
    try:
        for path in sorted(artifact.folder.iterdir()):
            shutil.copyfile(path, work / path.name)
            _sync(work / path.name)
        read_artifact(work, artifact.digest)
        os.chmod(work, 0o755)
        _sync(work)
        os.rename(work, target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _remove(target: Path, root: Path) -> None:
    """Remove what was written of a version, and the folders above it that are empty now."""
    shutil.rmtree(target, ignore_errors=True)
    for folder in target.parents:
        if folder == root:
            return
        try:
            folder.rmdir()
        except OSError:
            return


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

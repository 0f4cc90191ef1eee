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
from pathlib import Path

from trunkline.adapters.artifact import Artifact, read_artifact
from trunkline.errors import RegistryError
from trunkline.refs import Ref
from trunkline.registry.records import VersionRecord
from trunkline.registry.store import Registry
from trunkline.workspace import Workspace


class AdapterStore:
    """The artifacts of one workspace."""

    def __init__(self, workspace: Workspace, registry: Registry) -> None:
        self._workspace = workspace
        self._registry = registry

    def publish(self, source: Path, ref: Ref, *, task: str, run: int | None) -> VersionRecord:
        """Copy a sealed folder in as the next version of ``ref``.

        Raises:
            IntegrityError: the folder is no sound artifact.
            RegistryError: it can't be written; nothing is left behind.
        """
        artifact = read_artifact(source)
        number = self._registry.reserve_version(ref.domain, ref.name, task=task, run=run)
        target = self._workspace.version_path(ref.domain, ref.name, number)
        try:
            _copy_in(source, target, self._workspace.adapters)
        except BaseException as error:
            self._registry.abandon_version(ref.domain, ref.name, number)
            if isinstance(error, OSError):
                raise RegistryError(
                    f"The artifact can't be written to {target}: {error.strerror or error}.",
                    "Make room or give write permission, then train again with --resume.",
                ) from error
            raise
        return self._registry.publish_version(
            ref.domain,
            ref.name,
            number,
            digest=artifact.digest,
            path=target.relative_to(self._workspace.adapters).as_posix(),
            bytes=artifact.bytes,
        )

    def fetch(self, version: VersionRecord) -> Artifact:
        """The verified artifact of a version.

        Raises:
            IntegrityError: it is not what the registry knows under this digest.
        """
        return read_artifact(self._workspace.adapters / version.path, version.digest)


def _copy_in(source: Path, target: Path, root: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".publishing-", dir=root))
    try:
        for path in sorted(source.iterdir()):
            shutil.copyfile(path, work / path.name)
            _sync(work / path.name)
        os.chmod(work, 0o755)
        _sync(work)
        os.rename(work, target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

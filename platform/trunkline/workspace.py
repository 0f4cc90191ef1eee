"""Where things are: the workspace's registry, adapters and runs, and the user's cache.

Owns: paths and the environment variables that move them.
Must not know: what is in the files.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from trunkline.configuration import Configuration
from trunkline.errors import UsageError
from trunkline.refs import Ref, shown


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder that holds ``registry.db`` and ``adapters/``.

    Attributes:
        root: absolute path of an existing folder.
    """

    root: Path

    @classmethod
    def locate(cls, folder: Path | str | None = None) -> Workspace:
        """Find the workspace: ``folder``, else ``TRUNKLINE_WORKSPACE``, else the current folder.

        Raises:
            UsageError: the folder does not exist, or is not a folder.
        """
        chosen = folder or os.environ.get("TRUNKLINE_WORKSPACE") or "."
        try:
            root = Path(chosen).expanduser().resolve()
            exists, is_folder = root.exists(), root.is_dir()
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"The workspace folder {shown(str(chosen))} can't be reached: {error}.",
                "Name an existing folder with --workspace.",
            ) from error
        if not exists:
            raise UsageError(
                f"The workspace folder '{root}' does not exist.",
                f"Make it with: mkdir -p '{root}', or name another with --workspace.",
            )
        if not is_folder:
            raise UsageError(
                f"The workspace '{root}' is a file, not a folder.",
                "Name the folder that holds registry.db with --workspace.",
            )
        if "?" in str(root):
            raise UsageError(
                f"The workspace folder '{root}' has a '?' in its path, which a registry's URL "
                "can't carry.",
                "Rename the folder, or name another with --workspace.",
            )
        return cls(root)

    @property
    def registry_url(self) -> str:
        """SQLAlchemy URL: ``TRUNKLINE_REGISTRY``, else the file ``registry.db`` in the root."""
        return os.environ.get("TRUNKLINE_REGISTRY") or f"sqlite:///{self.root / 'registry.db'}"

    @property
    def configuration(self) -> Configuration:
        """What ``trunkline.toml`` says, read anew each time."""
        return Configuration.read(self.root)

    @property
    def adapters(self) -> Path:
        """The folder of the artifacts; the paths in the registry are relative to it."""
        return self.root / "adapters"

    @property
    def runs(self) -> Path:
        """The folder of the running and past trainings' own files."""
        return self.root / ".trunkline" / "runs"

    def run_path(self, number: int) -> Path:
        """The folder of one run: checkpoints and logs."""
        return self.runs / str(number)

    def version_path(self, domain: str, name: str, number: int) -> Path:
        """The folder of one version's artifact.

        Raises:
            UsageError: a part that could not stand in a ref, so no path leaves ``adapters/``.
        """
        ref = Ref(domain, name, str(number))
        if ref.number is None:
            raise UsageError(
                f"{shown(str(number))} is not a version number.", "Numbers start at 1."
            )
        return self.adapters / ref.domain / ref.name / str(ref.number)


def cache_folder() -> Path:
    """The user's cache, for converted bases and extracted data; not made here.

    ``TRUNKLINE_CACHE``, else ``trunkline`` under ``XDG_CACHE_HOME`` or ``~/.cache``.
    """
    if own := os.environ.get("TRUNKLINE_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    parent = Path(shared) if os.path.isabs(shared) else Path.home() / ".cache"
    return parent / "trunkline"

"""Fetch adapters from the Hugging Face hub: ``hf:<repo>[@revision]``.

Only the configuration and the weights are fetched; the import checks their content.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trunkline.adapters.artifact import CONFIG, WEIGHTS
from trunkline.errors import TrunklineError, UsageError, one_line
from trunkline.refs import shown

SCHEME = "hf:"

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubAdapter:
    """A fetched repository: the commit and the folder of its snapshot."""

    repo: str
    commit: str
    folder: Path

    @property
    def origin(self) -> dict[str, str]:
        """The repository and the commit, which always mean the same files."""
        return {"source": f"{SCHEME}{self.repo}", "revision": self.commit}


def fetch_adapter(name: str) -> HubAdapter:
    """Fetch configuration and weights of ``hf:<repo>[@revision]`` into the hub library's cache.

    Pickles and code are not fetched. Without a network, the cache is used.

    Raises:
        UsageError: the name is malformed.
        TrunklineError: the hub can't be reached, or has no such repository or revision.
    """
    repo, at, revision = name.removeprefix(SCHEME).partition("@")
    well_formed = name.startswith(SCHEME) and _REPO.fullmatch(repo) and ".." not in name
    if not well_formed or (at and not _REVISION.fullmatch(revision)):
        raise UsageError(
            f"{shown(name)} is not the name of an adapter on the hub.",
            "Write hf:<owner>/<repo> or hf:<owner>/<repo>@<revision>.",
        )
    from huggingface_hub import snapshot_download

    fetch: Callable[..., str] = snapshot_download
    try:
        folder = Path(fetch(repo, revision=revision or None, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # the hub library raises HTTP, OS and validation errors
        raise TrunklineError(
            f"Fetching the adapter {name!r} from the hub at {revision or 'main'} failed: "
            f"{one_line(error)}.",
            "Check the name and the network (HF_ENDPOINT, HF_TOKEN, HTTPS_PROXY), or copy the "
            "adapter's folder to this machine and import that.",
        ) from error
    return HubAdapter(repo, folder.name, folder)

"""Adapters on the Hugging Face hub: from a name to a folder with the two files that are read.

Owns: the grammar ``hf:<repo>[@revision]``, and which files are fetched. Must not know: what is in
them; whoever imports the folder trusts nothing of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trunkline.adapters.artifact import CONFIG, WEIGHTS
from trunkline.errors import TrunklineError, UsageError
from trunkline.refs import shown

SCHEME = "hf:"

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubAdapter:
    """A repository of the hub, as it was found: its snapshot's folder and commit."""

    repo: str
    commit: str
    folder: Path

    @property
    def origin(self) -> dict[str, str]:
        """What is told of it: repository and commit mean the same files for ever."""
        return {"source": f"{SCHEME}{self.repo}", "revision": self.commit}


def fetch_adapter(name: str) -> HubAdapter:
    """Fetch configuration and weights of ``hf:<repo>[@revision]`` into the hub library's cache.

    Pickles and code are not fetched, let alone opened. Without a network, what is in the cache
    already is taken.

    Raises:
        UsageError: the name is malformed.
        TrunklineError: the hub can't be reached, or has no such repository or revision.
    """
    repo, at, revision = name.removeprefix(SCHEME).partition("@")
    well_formed = name.startswith(SCHEME) and _REPO.fullmatch(repo) and ".." not in name
    if not well_formed or (at and not _REVISION.fullmatch(revision)):
        raise UsageError(
            f"{shown(name)} is no name of an adapter on the hub.",
            "Write hf:<owner>/<repo> or hf:<owner>/<repo>@<revision>.",
        )
    from huggingface_hub import snapshot_download

    fetch: Callable[..., str] = snapshot_download
    try:
        folder = Path(fetch(repo, revision=revision or None, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # the hub library raises HTTP, OS and validation errors alike
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise TrunklineError(
            f"The adapter {name!r} could not be fetched: tried snapshot_download of the hub "
            f"repository {repo} at {revision or 'main'}, which said: {reason}.",
            "Check the name and the network (HF_ENDPOINT, HF_TOKEN, HTTPS_PROXY), or copy the "
            "adapter's folder here and import that.",
        ) from error
    return HubAdapter(repo, folder.name, folder)

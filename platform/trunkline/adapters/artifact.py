"""The folder that one version is: files, identity, verification.

Owns: which files there are, how the digest is made, and every check that needs no torch.
Must not know: the registry or where artifacts are kept.

Plain PEFT loads the folder. ``trunkline.json`` says what makes the version what it is; the sha256
of its canonical form is the version's identity. ``provenance.json`` and ``README.md`` lie outside
the identity.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trunkline.adapters.config import (
    TASK_TYPES,
    LoraShape,
    check_config,
    check_tensors,
    normalized_config,
)
from trunkline.contracts import Template
from trunkline.errors import IntegrityError, UsageError
from trunkline.files import (
    REPAIR,
    TensorInfo,
    brief_repr,
    canonical_json,
    indented_json,
    read_json_object,
    read_safetensors_header,
    sha256_file,
)

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MANIFEST = "trunkline.json"
PROVENANCE = "provenance.json"
CARD = "README.md"
CROISSANT = "croissant.json"
SIGNATURE = "model.sig"
REQUIRED = (CONFIG, WEIGHTS, MANIFEST)
KNOWN = frozenset((*REQUIRED, PROVENANCE, CARD, CROISSANT, SIGNATURE))

FORMAT = 1

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What ``trunkline.json`` holds: the whole identity of a version."""

    weights: str
    adapter_config: str
    task: Mapping[str, Any]
    template: Mapping[str, Any]
    base: Mapping[str, str]
    data: Mapping[str, str]
    format: int = FORMAT

    def canonical(self) -> bytes:
        """The bytes that the digest is taken of."""
        return canonical_json(asdict(self))

    @property
    def digest(self) -> str:
        """``sha256:`` and 64 hex digits over the canonical form."""
        return "sha256:" + hashlib.sha256(self.canonical()).hexdigest()

    def make_template(self) -> Template:
        """The template that prompts were made with in training."""
        fields = dict(self.template)
        fields["clean"] = tuple(fields["clean"])
        return Template(**fields)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A folder whose digests and shapes were checked."""

    folder: Path
    manifest: Manifest
    lora: LoraShape
    tensors: Mapping[str, TensorInfo]
    bytes: int

    @property
    def digest(self) -> str:
        """The version's identity."""
        return self.manifest.digest


def seal(
    folder: Path,
    *,
    base: Mapping[str, str],
    task: Mapping[str, Any],
    template: Template,
    data: Mapping[str, str],
) -> Manifest:
    """Write ``trunkline.json`` for a folder that PEFT has saved into, and return it.

    ``adapter_config.json`` is written anew in its normal form.

    Raises:
        IntegrityError: it asks for something that is never loaded.
    """
    config = read_json_object(folder / CONFIG)
    check_config(config, folder / CONFIG)
    config = normalized_config(config, base["name"])
    write_json(folder / CONFIG, config)
    manifest = Manifest(
        weights=sha256_file(folder / WEIGHTS),
        adapter_config=hashlib.sha256(canonical_json(config)).hexdigest(),
        task=dict(task),
        template={**asdict(template), "clean": list(template.clean)},
        base=dict(base),
        data=dict(data),
    )
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def read_artifact(folder: Path, expected_digest: str | None = None) -> Artifact:
    """Check a folder and describe it, reading no tensor and importing no torch.

    Args:
        folder: the artifact.
        expected_digest: the identity that the registry knows, ``sha256:…``.

    Raises:
        IntegrityError: a file is missing, foreign, a pickle, cut off, changed, or asks for
            something that is never loaded.
    """
    try:
        return _read(folder, expected_digest)
    except OSError as error:
        raise IntegrityError(
            f"The artifact {folder} can't be read: {error.strerror or error}.", REPAIR
        ) from error


def _read(folder: Path, expected_digest: str | None) -> Artifact:
    _check_files(folder)
    manifest = _read_manifest(folder / MANIFEST)
    if expected_digest is not None and manifest.digest != expected_digest:
        raise IntegrityError(
            f"{folder / MANIFEST} is not that of the version: its digest is {manifest.digest}, "
            f"the registry knows {expected_digest}.",
            REPAIR,
        )
    config = read_json_object(folder / CONFIG)
    if hashlib.sha256(canonical_json(config)).hexdigest() != manifest.adapter_config:
        raise IntegrityError(f"{folder / CONFIG} was changed after it was published.", REPAIR)
    if sha256_file(folder / WEIGHTS) != manifest.weights:
        raise IntegrityError(f"{folder / WEIGHTS} was changed after it was published.", REPAIR)
    lora = check_config(config, folder / CONFIG)
    if config["task_type"] != TASK_TYPES[manifest.task["kind"]]:
        raise IntegrityError(
            f"{folder / CONFIG} has the task_type {config['task_type']}, but the task is "
            f"{manifest.task['kind']}.",
            REPAIR,
        )
    tensors = read_safetensors_header(folder / WEIGHTS)
    check_tensors(tensors, lora, manifest.task, folder / WEIGHTS)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Artifact(folder, manifest, lora, tensors, size)


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        raise IntegrityError(f"There is no artifact at {folder}.", REPAIR)
    names = {path.name for path in folder.iterdir()}
    foreign = sorted(names - KNOWN)
    if foreign:
        raise IntegrityError(
            f"{folder} holds {foreign[0]!r}, which an artifact may not hold; nothing was opened.",
            "An artifact is safetensors and JSON only. Remove the file if you know its origin.",
        )
    for name in REQUIRED:
        if name not in names:
            raise IntegrityError(f"{folder / name} is missing.", REPAIR)
    for name in sorted(names):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise IntegrityError(f"{path} is not a plain file.", REPAIR)


def _read_manifest(path: Path) -> Manifest:
    data = read_json_object(path)
    if data.get("format") != FORMAT:
        raise IntegrityError(
            f"{path} is of format {brief_repr(data.get('format'))}; this Trunkline reads {FORMAT}.",
            "Upgrade with `pip install --upgrade trunkline`, or train it again.",
        )
    try:
        manifest = Manifest(**data)
        _check_manifest(manifest)
        manifest.make_template()
    except (AttributeError, KeyError, TypeError, ValueError, UsageError) as error:
        raise IntegrityError(f"{path} is not complete: {error}.", REPAIR) from error
    return manifest


def _check_manifest(manifest: Manifest) -> None:
    """Raise ValueError, KeyError or TypeError where a part is not of its kind."""
    for digest in (manifest.weights, manifest.adapter_config):
        if not _SHA256.fullmatch(digest):
            raise ValueError(f"{brief_repr(digest)} is no digest")
    for part in (manifest.base, manifest.data):
        if not all(isinstance(value, str) for value in part.values()):
            raise ValueError(f"{brief_repr(part)} must hold texts")
    if not {"name", "digest"} <= manifest.base.keys():
        raise KeyError("base")
    if manifest.task["kind"] not in TASK_TYPES:
        raise ValueError(f"the task {brief_repr(manifest.task['kind'])} is not known")
    if manifest.task["kind"] == "classification":
        labels = manifest.task["labels"]
        texts = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        if not texts or len(labels) < 2 or len(set(labels)) != len(labels):
            raise ValueError("labels must be two or more different texts")
    template = manifest.template
    kinds = {"prompt": str, "clean": list, "chat": bool, "system": str | None}
    if template.keys() != kinds.keys() or not all(
        isinstance(template[key], kind) for key, kind in kinds.items()
    ):
        raise ValueError(f"the template {brief_repr(dict(template))} is malformed")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file of the artifact: indented, keys sorted."""
    path.write_bytes(indented_json(value))

"""The folder of one adapter version: its files, its manifest, its digest, its verification.

Plain PEFT loads the folder. ``trunkline.json`` is the manifest; the sha256 of its canonical form
identifies the version. ``provenance.json``, ``README.md``, ``croissant.json`` and ``model.sig`` do
not enter the digest. Verification reads no tensor and imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from trunkline.adapters.config import (
    TASK_TYPES,
    LoraShape,
    check_config,
    check_tensors,
    normalized_config,
)
from trunkline.contracts import IMAGE_TASKS, Template
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
    validation_problem,
)
from trunkline.preprocessing import Preprocessing

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MANIFEST = "trunkline.json"
PROVENANCE = "provenance.json"
CARD = "README.md"
CROISSANT = "croissant.json"
SIGNATURE = "model.sig"
REQUIRED = (CONFIG, WEIGHTS, MANIFEST)
KNOWN = frozenset((*REQUIRED, PROVENANCE, CARD, CROISSANT, SIGNATURE))

FORMAT: Final = 1


def _check_task(task: dict[str, Any]) -> dict[str, Any]:
    kind = task.get("kind")
    if not isinstance(kind, str) or kind not in TASK_TYPES:
        raise ValueError(f"kind must be one of {', '.join(TASK_TYPES)}")
    if kind in ("classification", "multilabel", "tagging"):
        labels = task.get("labels")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError("labels must be a list of texts")
        if len(labels) < (kind == "classification") + 1 or len(set(labels)) != len(labels):
            number = "two" if kind == "classification" else "one"
            raise ValueError(f"labels must be {number} or more different texts")
    return task


def _check_template(template: dict[str, Any]) -> dict[str, Any]:
    try:
        fields = _TemplateFields.model_validate(template)
        Template(**{**template, "clean": tuple(fields.clean)})
    except ValidationError as error:
        raise ValueError(validation_problem(error)) from None
    except UsageError as error:
        raise ValueError(error.message.rstrip(".")) from None
    return template


def _check_preprocessing(values: dict[str, Any] | None) -> dict[str, Any] | None:
    try:
        return None if values is None else Preprocessing.from_json(values).to_json()
    except UsageError as error:
        raise ValueError(error.message.rstrip(".")) from None


def _check_base(base: dict[str, str]) -> dict[str, str]:
    for key in ("name", "digest"):
        if key not in base:
            raise ValueError(f"{key} is missing")
    return base


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\z")]


class _TemplateFields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    prompt: str
    clean: list[str]
    chat: bool
    system: str | None


class Manifest(BaseModel):
    """The content of ``trunkline.json``.

    Attributes:
        weights, adapter_config: sha256 of the weights file, and of the canonical configuration.
        task: its kind, labels and further fields, see :func:`trunkline.tasks.task_from_json`.
        template: the fields of :class:`~trunkline.contracts.Template`; without effect on pictures.
        max_length: the longest prompt with answer, in tokens; a longer text is cut, in training as
            in inference. None: only the base's context limits it.
        base: name and digest of the base, both texts.
        data: dataset, its fingerprint and that of the split, all texts.
        preprocessing: of an adapter for pictures, the fields of
            :class:`~trunkline.preprocessing.Preprocessing`. None: it reads text.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    weights: Sha256
    adapter_config: Sha256
    task: Annotated[dict[str, Any], AfterValidator(_check_task)]
    template: Annotated[dict[str, Any], AfterValidator(_check_template)]
    max_length: Annotated[int, Field(ge=1, le=2**31 - 1)] | None
    base: Annotated[dict[str, str], AfterValidator(_check_base)]
    data: dict[str, str]
    preprocessing: Annotated[dict[str, Any] | None, AfterValidator(_check_preprocessing)] = None
    format: Literal[1] = FORMAT

    @model_validator(mode="after")
    def _check_room(self) -> Self:
        answer = self.task.get("max_new_tokens", 0)
        if self.max_length is not None and isinstance(answer, int) and answer >= self.max_length:
            raise ValueError(f"max_length {self.max_length} leaves no room beside {answer} tokens")
        if self.reads_images and self.task["kind"] not in IMAGE_TASKS:
            raise ValueError(f"a {self.task['kind']} can't have a preprocessing of pictures")
        return self

    @property
    def reads_images(self) -> bool:
        """Whether the adapter reads pictures, not text."""
        return self.preprocessing is not None

    def make_preprocessing(self) -> Preprocessing:
        """The preprocessing of an adapter for pictures."""
        return Preprocessing.from_json(self.preprocessing or {})

    def canonical(self) -> bytes:
        """The bytes that the digest is taken of."""
        left_out = None if self.reads_images else {"preprocessing"}
        return canonical_json(self.model_dump(exclude=left_out))

    @property
    def digest(self) -> str:
        """``sha256:`` and 64 hex digits over the canonical form."""
        return "sha256:" + hashlib.sha256(self.canonical()).hexdigest()

    def make_template(self) -> Template:
        """The template that training used for prompts."""
        return Template(**{**self.template, "clean": tuple(self.template["clean"])})


@dataclass(frozen=True, slots=True)
class Artifact:
    """A verified folder."""

    folder: Path
    manifest: Manifest
    lora: LoraShape
    tensors: Mapping[str, TensorInfo]
    bytes: int

    @property
    def digest(self) -> str:
        """The version's digest, ``sha256:…``."""
        return self.manifest.digest


def seal(
    folder: Path,
    *,
    base: Mapping[str, str],
    task: Mapping[str, Any],
    template: Template,
    data: Mapping[str, str],
    max_length: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> Manifest:
    """Write ``trunkline.json`` for a folder that PEFT has saved, and return the manifest.

    ``adapter_config.json`` is rewritten in its normalized form.

    Raises:
        IntegrityError: the configuration is not supported, or an argument is not well-formed.
    """
    config = read_json_object(folder / CONFIG)
    check_config(config, folder / CONFIG)
    config = normalized_config(config, base["name"])
    write_json(folder / CONFIG, config)
    value = {
        "weights": sha256_file(folder / WEIGHTS),
        "adapter_config": hashlib.sha256(canonical_json(config)).hexdigest(),
        "task": dict(task),
        "template": {**asdict(template), "clean": list(template.clean)},
        "max_length": max_length,
        "base": dict(base),
        "data": dict(data),
        "format": FORMAT,
    }
    if preprocessing is not None:
        value["preprocessing"] = preprocessing.to_json()
    manifest = _parse_manifest(value, folder / MANIFEST)
    write_json(folder / MANIFEST, value)
    return manifest


def read_artifact(folder: Path, expected_digest: str | None = None) -> Artifact:
    """Verify a folder and describe it, without reading a tensor.

    Args:
        folder: the artifact.
        expected_digest: the digest in the registry, ``sha256:…``.

    Raises:
        IntegrityError: a file is missing, unknown, a pickle, cut off or changed, or a setting is
            not supported.
    """
    try:
        return _read(folder, expected_digest)
    except OSError as error:
        raise IntegrityError(
            f"The artifact {folder} can't be read: {error.strerror or error}.", REPAIR
        ) from error


def check_finite(weights: Path, label: Path) -> None:
    """Check that no tensor has NaN or infinity, reading one tensor at a time.

    Args:
        weights: a safetensors file.
        label: the path to name in an error.

    Raises:
        IntegrityError: a tensor has NaN or infinity.
    """
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            if not bool(file.get_tensor(name).isfinite().all()):
                raise IntegrityError(f"{label}: {brief_repr(name)} has NaN or infinity.", REPAIR)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file of the artifact: indented, keys sorted."""
    path.write_bytes(indented_json(value))


def _read(folder: Path, expected_digest: str | None) -> Artifact:
    _check_files(folder)
    manifest = _read_manifest(folder / MANIFEST)
    if expected_digest is not None and manifest.digest != expected_digest:
        raise IntegrityError(
            f"{folder / MANIFEST} is not the version's: its digest is {manifest.digest}, but the "
            f"registry has {expected_digest}.",
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
    unknown = sorted(names - KNOWN)
    if unknown:
        raise IntegrityError(
            f"{folder} has {unknown[0]!r}, which an artifact may not hold; nothing was opened.",
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
    value = read_json_object(path)
    version = value.get("format")
    if type(version) is not int or version != FORMAT:
        raise IntegrityError(
            f"{path} has the format {brief_repr(version)}; this Trunkline reads {FORMAT}.",
            "Upgrade with `pip install --upgrade trunkline`, or train it again.",
        )
    return _parse_manifest(value, path)


def _parse_manifest(value: Mapping[str, Any], path: Path) -> Manifest:
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        raise IntegrityError(f"{path} is invalid: {validation_problem(error)}.", REPAIR) from None

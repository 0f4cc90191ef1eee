"""The folder of one adapter version: its files, its manifest, its digest, its verification.

Plain PEFT loads the folder. That of a fusion has a manifest and no weights. ``trunkline.json`` is
the manifest; the sha256 of its canonical form identifies the version. ``provenance.json``,
``README.md``, ``croissant.json`` and ``model.sig`` do not enter the digest. Verification reads no
tensor and imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
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
from trunkline.adapters.fusion import FUSED, Fusion
from trunkline.contracts import IMAGE_TASKS, Reads, Template
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
        weights, adapter_config: sha256 of the weights file, and of the canonical configuration;
            None: of a fusion.
        task: its kind, labels and further fields, see :func:`trunkline.tasks.task_from_json`.
        template: the fields of :class:`~trunkline.contracts.Template`; without effect on pictures.
        max_length: the longest prompt with answer, in tokens; a longer text is cut, in training as
            in inference. None: only the base's context limits it.
        base: name and digest of the base, both texts.
        data: dataset, its fingerprint and that of the split, all texts.
        preprocessing: of an adapter for pictures, the fields of
            :class:`~trunkline.preprocessing.Preprocessing`. None: it reads text.
        fusion: of a version that combines the answers of two others; its base is the pair of
            theirs, its template and ``max_length`` are those of the text's.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    weights: Sha256 | None = None
    adapter_config: Sha256 | None = None
    task: Annotated[dict[str, Any], AfterValidator(_check_task)]
    template: Annotated[dict[str, Any], AfterValidator(_check_template)]
    max_length: Annotated[int, Field(ge=1, le=2**31 - 1)] | None
    base: Annotated[dict[str, str], AfterValidator(_check_base)]
    data: dict[str, str]
    preprocessing: Annotated[dict[str, Any] | None, AfterValidator(_check_preprocessing)] = None
    fusion: Fusion | None = None
    format: Literal[1] = FORMAT

    @model_validator(mode="after")
    def _check_room(self) -> Self:
        answer = self.task.get("max_new_tokens", 0)
        if self.max_length is not None and isinstance(answer, int) and answer >= self.max_length:
            raise ValueError(f"max_length {self.max_length} leaves no room beside {answer} tokens")
        if self.reads_images and self.task["kind"] not in IMAGE_TASKS:
            raise ValueError(f"a {self.task['kind']} can't have a preprocessing of pictures")
        return self

    @model_validator(mode="after")
    def _check_fusion(self) -> Self:
        if self.fusion is None:
            for name in ("weights", "adapter_config"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name} is missing")
            return self
        if self.task["kind"] != "classification":
            raise ValueError(f"a {self.task['kind']} can't be a fusion")
        for name in ("weights", "adapter_config", "preprocessing"):
            if getattr(self, name) is not None:
                raise ValueError(f"a fusion has no {name}")
        self.fusion.check_labels(len(self.task["labels"]))
        return self

    @property
    def reads_images(self) -> bool:
        """Whether the adapter reads pictures, not text."""
        return self.preprocessing is not None

    @property
    def reads(self) -> Reads:
        """What the version reads."""
        if self.fusion is not None:
            return FUSED
        return "image" if self.reads_images else "text"

    def make_preprocessing(self) -> Preprocessing:
        """The preprocessing of an adapter for pictures."""
        return Preprocessing.from_json(self.preprocessing or {})

    def canonical(self) -> bytes:
        """The bytes that the digest is taken of."""
        names = ("weights", "adapter_config", "preprocessing", "fusion")
        value = self.model_dump(exclude={name for name in names if getattr(self, name) is None})
        if self.fusion is not None:
            value["fusion"] = self.fusion.to_json()
        return canonical_json(value)

    @property
    def digest(self) -> str:
        """``sha256:`` and 64 hex digits over the canonical form."""
        return "sha256:" + hashlib.sha256(self.canonical()).hexdigest()

    def make_template(self) -> Template:
        """The template that training used for prompts."""
        return Template(**{**self.template, "clean": tuple(self.template["clean"])})


@dataclass(frozen=True, slots=True)
class Artifact:
    """A verified folder; ``shape`` is None for a fusion, which has no tensors either."""

    folder: Path
    manifest: Manifest
    shape: LoraShape | None
    tensors: Mapping[str, TensorInfo]
    bytes: int

    @property
    def digest(self) -> str:
        """The version's digest, ``sha256:…``."""
        return self.manifest.digest

    @property
    def lora(self) -> LoraShape:
        """What the forward pass needs of the configuration.

        Raises:
            UsageError: it is a fusion.
        """
        if self.shape is None:
            raise no_weights(f"{self.digest[:19]}…", self.manifest)
        return self.shape


def no_weights(name: str, manifest: Manifest) -> UsageError:
    """The error where an adapter's weights are needed, and ``name`` is a fusion."""
    parents = () if manifest.fusion is None else (one.ref for one in manifest.fusion.parents)
    return UsageError(
        f"{name} is the fusion of {' and '.join(parents)}, and has no weights of its own.",
        "Name one of the two. A text and a picture together are answered by `trunkline predict` "
        "and POST /v1/classify.",
    )


def required_names(names: Collection[str]) -> tuple[str, ...]:
    """The files that identify a version: of a fusion, which has no weights, the manifest alone.

    Args:
        names: of the files of its folder.
    """
    return REQUIRED if {CONFIG, WEIGHTS} & set(names) else (MANIFEST,)


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


def seal_fusion(
    folder: Path,
    fusion: Fusion,
    *,
    base: Mapping[str, str],
    task: Mapping[str, Any],
    text: Manifest,
) -> Artifact:
    """Write a fusion's ``trunkline.json`` and read it back.

    Args:
        folder: an empty one.
        fusion: how the parents are combined.
        base: name and digest of the pair of bases.
        task: the classification.
        text: of the text's parent: template, limit and data are its.

    Raises:
        IntegrityError: an argument is not well-formed.
    """
    value = {
        **text.model_dump(include={"template", "max_length", "data", "format"}),
        "task": dict(task),
        "base": dict(base),
        "fusion": fusion.to_json(),
    }
    manifest = _parse_manifest(value, folder / MANIFEST)
    write_json(folder / MANIFEST, json.loads(manifest.canonical()))
    return read_artifact(folder, manifest.digest)


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
    names = _check_files(folder)
    manifest = _read_manifest(folder / MANIFEST)
    if expected_digest is not None and manifest.digest != expected_digest:
        raise IntegrityError(
            f"{folder / MANIFEST} is not the version's: its digest is {manifest.digest}, but the "
            f"registry has {expected_digest}.",
            REPAIR,
        )
    size = sum(path.stat().st_size for path in folder.iterdir())
    if manifest.fusion is not None:
        if weights := sorted({CONFIG, WEIGHTS} & names):
            raise IntegrityError(
                f"{folder} has {weights[0]!r}, which a fusion may not hold; it was not opened.",
                REPAIR,
            )
        return Artifact(folder, manifest, None, {}, size)
    _check_present(folder, names, REQUIRED)
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
    return Artifact(folder, manifest, lora, tensors, size)


def _check_files(folder: Path) -> set[str]:
    """The names of the files, which are plain and those that an artifact may have."""
    if not folder.is_dir():
        raise IntegrityError(f"There is no artifact at {folder}.", REPAIR)
    names = {path.name for path in folder.iterdir()}
    unknown = sorted(names - KNOWN)
    if unknown:
        raise IntegrityError(
            f"{folder} has {unknown[0]!r}, which an artifact may not hold; nothing was opened.",
            "An artifact is safetensors and JSON only. Remove the file if you know its origin.",
        )
    _check_present(folder, names, required_names(names))
    for name in sorted(names):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise IntegrityError(f"{path} is not a plain file.", REPAIR)
    return names


def _check_present(folder: Path, names: set[str], required: Collection[str]) -> None:
    for name in required:
        if name not in names:
            raise IntegrityError(f"{folder / name} is missing.", REPAIR)


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

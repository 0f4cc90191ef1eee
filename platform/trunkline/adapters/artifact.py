"""The folder that one version is: format, identity, verification.

Owns: which files there are, how the digest is made, and every check that needs no torch.
Must not know: the registry or where artifacts are kept.

Plain PEFT loads the folder. ``trunkline.json`` says what makes the version what it is; the sha256
of its canonical form is the version's identity. ``provenance.json`` and ``README.md`` lie outside
the identity.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trunkline.contracts import Template
from trunkline.errors import IntegrityError, UsageError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MANIFEST = "trunkline.json"
PROVENANCE = "provenance.json"
CARD = "README.md"
REQUIRED = (CONFIG, WEIGHTS, MANIFEST)
KNOWN = frozenset((*REQUIRED, PROVENANCE, CARD))

FORMAT = 1
MAX_JSON_BYTES = 4 << 20
MAX_HEADER_BYTES = 32 << 20
MAX_RANK = 1024
_REFIT = "Train it again, or restore the file from a copy."


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoraShape:
    """The numbers of ``adapter_config.json`` that the forward pass needs."""

    rank: int
    alpha: float
    rslora: bool

    @property
    def scaling(self) -> float:
        """PEFT's factor on ``B A x``: alpha / rank, or alpha / sqrt(rank) (rank-stabilised)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


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
        return canonical_json(asdict(self))

    @property
    def digest(self) -> str:
        """``sha256:`` and 64 hex digits over the canonical form."""
        return "sha256:" + hashlib.sha256(self.canonical()).hexdigest()

    def make_template(self) -> Template:
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
        return self.manifest.digest


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def normalised_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's configuration without what varies between equal adapters.

    Lists come in hash order, the base stands there by path, and versions are provenance.
    """
    left_out = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")
    kept = {key: value for key, value in config.items() if key not in left_out}
    return {
        key: sorted(value) if isinstance(value, list) and _texts(value) else value
        for key, value in kept.items()
    }


def seal(
    folder: Path,
    *,
    base: Mapping[str, str],
    task: Mapping[str, Any],
    template: Template,
    data: Mapping[str, str],
) -> Manifest:
    """Write ``trunkline.json`` for a folder that PEFT has saved into, and return it."""
    config_path = folder / CONFIG
    config = json.loads(config_path.read_bytes())
    config["base_model_name_or_path"] = base["name"]
    for key, value in config.items():
        if isinstance(value, list) and _texts(value):
            config[key] = sorted(value)
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    manifest = Manifest(
        weights=_sha256_file(folder / WEIGHTS),
        adapter_config=hashlib.sha256(canonical_json(normalised_config(config))).hexdigest(),
        task=dict(task),
        template={**asdict(template), "clean": list(template.clean)},
        base=dict(base),
        data=dict(data),
    )
    pretty = json.dumps(asdict(manifest), indent=2, sort_keys=True, ensure_ascii=False)
    (folder / MANIFEST).write_text(pretty + "\n", encoding="utf-8")
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
    _check_files(folder)
    manifest = _read_manifest(folder)
    if expected_digest is not None and manifest.digest != expected_digest:
        raise IntegrityError(
            f"{folder / MANIFEST} is not that of the version: its digest is {manifest.digest}, "
            f"the registry knows {expected_digest}.",
            _REFIT,
        )
    config = _read_json(folder / CONFIG)
    if hashlib.sha256(canonical_json(normalised_config(config))).hexdigest() != (
        manifest.adapter_config
    ):
        raise IntegrityError(f"{folder / CONFIG} was changed after it was published.", _REFIT)
    if _sha256_file(folder / WEIGHTS) != manifest.weights:
        raise IntegrityError(f"{folder / WEIGHTS} was changed after it was published.", _REFIT)
    lora = check_config(config, folder / CONFIG)
    tensors = read_header(folder / WEIGHTS)
    check_tensors(tensors, lora, manifest.task, folder / WEIGHTS)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Artifact(folder, manifest, lora, tensors, size)


def check_config(config: Mapping[str, Any], path: Path) -> LoraShape:
    """What the forward pass needs, once everything that it can't compute exactly is excluded."""
    plain: dict[str, tuple[Any, ...]] = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "use_dora": (False, None),
        "lora_bias": (False, None),
        "auto_map": (None,),
        "rank_pattern": ({}, None),
        "alpha_pattern": ({}, None),
        "init_lora_weights": (True, False, "gaussian", None),
        "trainable_token_indices": (None,),
        "target_parameters": (None, []),
        "layer_replication": (None,),
    }
    for key, allowed in plain.items():
        value = config.get(key)
        absent = value is None and key != "peft_type"
        if not absent and not any(value == item and type(value) is type(item) for item in allowed):
            raise IntegrityError(
                f"{path} has {key} = {_short(value)}, which is not supported.",
                "Plain LoRA adapters are served: no biases, no DoRA, no code of their own.",
            )
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not set(saved) <= {"score", "classifier"}:
        raise IntegrityError(
            f"{path} saves the modules {_short(saved)}; only a head may be saved.",
            "Train with LoRA on the linear layers and a head alone.",
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MAX_RANK:
        raise IntegrityError(f"{path} has the rank {_short(rank)}.", f"1 to {MAX_RANK} are loaded.")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
        raise IntegrityError(f"{path} has lora_alpha = {_short(alpha)}.", "It must be above zero.")
    return LoraShape(rank, float(alpha), bool(config.get("use_rslora")))


def check_tensors(
    tensors: Mapping[str, TensorInfo], lora: LoraShape, task: Mapping[str, Any], path: Path
) -> None:
    """Every A has its B with the adapter's rank between them, and the head is there if needed."""
    for name, info in tensors.items():
        if name.endswith(".lora_A.weight"):
            other = tensors.get(name.replace(".lora_A.weight", ".lora_B.weight"))
            if other is None:
                raise IntegrityError(f"{path} has {name} without its lora_B.", _REFIT)
            if len(info.shape) != 2 or len(other.shape) != 2:
                raise IntegrityError(f"{path}: {name} is no matrix: {info.shape}.", _REFIT)
            if info.shape[0] != lora.rank or other.shape[1] != lora.rank:
                raise IntegrityError(
                    f"{path}: {name} has the shape {info.shape}, its lora_B {other.shape}; "
                    f"the rank is {lora.rank}.",
                    _REFIT,
                )
        elif name.endswith(".lora_B.weight"):
            if name.replace(".lora_B.weight", ".lora_A.weight") not in tensors:
                raise IntegrityError(f"{path} has {name} without its lora_A.", _REFIT)
        elif not is_head(name):
            raise IntegrityError(f"{path} holds the unknown tensor {_short(name)}.", _REFIT)
    if not any(name.endswith(".lora_A.weight") for name in tensors):
        raise IntegrityError(f"{path} holds no LoRA matrices.", _REFIT)
    heads = [name for name in tensors if is_head(name)]
    outputs = {"classification": len(task.get("labels", ())), "regression": 1}.get(
        str(task.get("kind"))
    )
    if outputs is None:
        if heads:
            raise IntegrityError(f"{path} has a head, but its task generates text.", _REFIT)
    elif len(heads) != 1:
        raise IntegrityError(f"{path} has {len(heads)} heads; its task needs one.", _REFIT)
    elif len(tensors[heads[0]].shape) != 2 or tensors[heads[0]].shape[0] != outputs:
        raise IntegrityError(
            f"{path}: the head has the shape {tensors[heads[0]].shape}; the task has {outputs} "
            "outputs.",
            _REFIT,
        )


def is_head(name: str) -> bool:
    """Whether a tensor's name is that of the classification or regression head."""
    return name.split(".")[-2:] in (["score", "weight"], ["classifier", "weight"])


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The header of a safetensors file, checked against the file's size.

    Raises:
        IntegrityError: the header's length, its JSON, or a tensor's range is off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise IntegrityError(f"{path} is not a whole safetensors file.", _REFIT)
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise IntegrityError(f"{path} has an unreadable header: {error}.", _REFIT) from error
    tensors: dict[str, TensorInfo] = {}
    end = 0
    try:
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            tensors[name] = TensorInfo(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
            end = max(end, int(entry["data_offsets"][1]))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise IntegrityError(f"{path} has an unreadable header.", _REFIT) from error
    if end != size - 8 - length:
        raise IntegrityError(f"{path} is cut off or has bytes too many.", _REFIT)
    return tensors


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        raise IntegrityError(f"There is no artifact at {folder}.", _REFIT)
    names = {path.name for path in folder.iterdir()}
    foreign = sorted(names - KNOWN)
    if foreign:
        raise IntegrityError(
            f"{folder} holds {foreign[0]!r}, which an artifact may not hold; nothing was opened.",
            "An artifact is safetensors and JSON only. Remove the file if you know its origin.",
        )
    for name in REQUIRED:
        path = folder / name
        if name not in names:
            raise IntegrityError(f"{path} is missing.", _REFIT)
        if path.is_symlink() or not path.is_file():
            raise IntegrityError(f"{path} is not a plain file.", _REFIT)


def _read_manifest(folder: Path) -> Manifest:
    data = _read_json(folder / MANIFEST)
    try:
        manifest = Manifest(**data)
        if manifest.format != FORMAT:
            raise IntegrityError(
                f"{folder / MANIFEST} is of format {manifest.format!r}; this Trunkline reads "
                f"{FORMAT}.",
                "Upgrade with `pip install --upgrade trunkline`.",
            )
        manifest.make_template()
        str(manifest.base["digest"])
        str(manifest.base["name"])
    except (AttributeError, KeyError, TypeError, ValueError, UsageError) as error:
        raise IntegrityError(f"{folder / MANIFEST} is not complete: {error}.", _REFIT) from error
    return manifest


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise IntegrityError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB.", _REFIT)
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is no readable JSON: {error}.", _REFIT) from error
    if not isinstance(data, dict):
        raise IntegrityError(f"{path} holds no JSON object.", _REFIT)
    return data


def _sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

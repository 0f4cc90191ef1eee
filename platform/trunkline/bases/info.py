"""Describe a base from its files, without importing torch or transformers.

A base that ``pull`` converted has a manifest with its source, its identity and its files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
)

from trunkline.bases.identity import (
    cached_digest,
    damaged,
    json_object,
    stored_tensors,
    tokenizer_config,
    weight_files,
)
from trunkline.bases.sources import MANIFEST, FolderSource, WheelSource, located, resolve
from trunkline.errors import BaseModelError
from trunkline.files import indented_json, validation_problem, write_atomically

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\z")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ManifestFile(_Strict):
    """Size and digest of one file."""

    bytes: NonNegativeInt
    sha256: Sha256


class PulledManifest(_Strict):
    """``trunkline-base.json``; ``digest`` is the identity of the base."""

    format: Literal[1] = 1
    name: str
    source: str
    license: str
    wheel_sha256: Sha256
    digest: Sha256
    architecture: str
    parameters: PositiveInt
    dtype: str
    converted_with: dict[str, str]
    files: dict[str, ManifestFile]


class ImageManifest(PulledManifest):
    """That of an image base, made from a checkpoint of PyTorch."""

    modality: Literal["image"]
    checkpoint_sha256: Sha256


class BaseManifest(PulledManifest):
    """That of a text base, made from a GGUF file."""

    gguf_sha256: Sha256
    layers: PositiveInt
    hidden_size: PositiveInt
    vocabulary: PositiveInt
    context: PositiveInt


Manifest = TypeVar("Manifest", bound=PulledManifest)


def read_manifest(folder: Path, kind: type[Manifest]) -> Manifest:
    """The manifest of the base in ``folder``.

    Raises:
        BaseModelError: it is missing or malformed.
    """
    path = folder / MANIFEST
    data = json_object(path)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise damaged(path, f"is invalid: {validation_problem(error)}") from error


def write_manifest(folder: Path, manifest: PulledManifest) -> None:
    """Write the manifest of the base in ``folder``."""
    write_atomically(folder / MANIFEST, indented_json(manifest.model_dump()))


DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CAUSAL = ("ForCausalLM", "LMHeadModel")
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_UNSTATED_CONTEXT = 2048


def count_parameters(folder: Path) -> tuple[int, str]:
    """The number of stored parameters of a base, and the type that most of them have.

    Raises:
        BaseModelError: the folder holds no tensor.
    """
    tensors = stored_tensors(folder)
    if not tensors:
        raise BaseModelError(f"The base in {folder} holds no tensor.", "Copy the folder again.")
    numbers: Counter[str] = Counter()
    for tensor in tensors:
        numbers[tensor.dtype] += tensor.size
    most = numbers.most_common(1)[0][0]
    return numbers.total(), DTYPES.get(most, most.lower())


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseInfo:
    """A base that is on this machine.

    Attributes:
        name: of the base; of a folder the absolute path.
        source: a phrase on where its files come from.
        folder: the weights in the format that plain transformers loads.
        digest: identity, 64 hex digits.
        architecture: class name in transformers, such as ``LlamaForCausalLM``.
        parameters: stored parameters; a tied output layer is not counted twice.
        dtype: of most stored parameters, such as ``float32``.
        layers, hidden_size, vocabulary: of the network.
        context: the longest input, in tokens.
        bytes: of the weight files.
        pulled: whether ``pull`` fetched it (wheel or hub), unlike a user's own folder.
    """

    name: str
    source: str
    folder: Path
    digest: str
    architecture: str
    parameters: int
    dtype: str
    layers: int
    hidden_size: int
    vocabulary: int
    context: int
    bytes: int
    pulled: bool


def describe(name: str) -> BaseInfo:
    """Read a base's headers and configuration, and identify it.

    New files are read completely (about a second for 500 MB); the digest is then cached by the
    files' sizes and times.

    Raises:
        NotFoundError: there is no such base.
        BaseModelError: it was not pulled yet, is damaged, or is not a causal LM.
    """
    from trunkline.workspace import cache_folder

    source = resolve(name)
    folder, origin = located(source)
    pulled = not isinstance(source, FolderSource)
    info = read_info(source.name, origin, folder, cache_folder() / "digests", pulled=pulled)
    if isinstance(source, WheelSource):
        recorded = read_manifest(folder, BaseManifest).digest
        if recorded != info.digest:
            raise BaseModelError(
                f"The base {name!r} in {folder} is not what was pulled: its digest is "
                f"{info.digest[:12]}, not {recorded[:12]}.",
                f"Fetch it again: `trunkline base pull {name}`.",
            )
    return info


def read_info(name: str, origin: str, folder: Path, digests: Path, *, pulled: bool) -> BaseInfo:
    """:func:`describe` for a folder that is already located.

    Args:
        name, origin, pulled: to put into the result.
        folder: of the base.
        digests: the folder of cached digests.
    """
    if not (folder / "config.json").is_file():
        raise BaseModelError(
            f"The folder {folder} is not a base: it has no config.json.",
            "Give a folder written by save_pretrained of transformers, "
            "or fetch a base again: `trunkline base pull`.",
        )
    config = json_object(folder / "config.json")
    architecture = _architecture(config, folder)
    parameters, dtype = count_parameters(folder)
    return BaseInfo(
        name=name,
        source=origin,
        folder=folder,
        digest=cached_digest(folder, digests),
        architecture=architecture,
        parameters=parameters,
        dtype=dtype,
        layers=_number(config, folder, "num_hidden_layers", "n_layer", "num_layers"),
        hidden_size=_number(config, folder, "hidden_size", "n_embd", "d_model"),
        vocabulary=_number(config, folder, "vocab_size"),
        context=_context(config, folder),
        bytes=sum(file.stat().st_size for file in weight_files(folder)),
        pulled=pulled,
    )


def _architecture(config: Mapping[str, Any], folder: Path) -> str:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if isinstance(name, str) and name.endswith(CAUSAL):
        return name
    raise BaseModelError(
        f"The base in {folder} is not a causal language model: its config.json names "
        f"{name or 'no architecture'}.",
        "Use a model that transformers loads with AutoModelForCausalLM, such as a Llama, "
        "Qwen or GPT-2.",
    )


def _context(config: Mapping[str, Any], folder: Path) -> int:
    for key in _CONTEXT:
        if isinstance(config.get(key), int):
            return int(config[key])
    stated = tokenizer_config(folder).get("model_max_length")
    if isinstance(stated, int) and stated < 1 << 31:
        return stated
    return _UNSTATED_CONTEXT


def _number(config: Mapping[str, Any], folder: Path, *keys: str) -> int:
    for key in keys:
        if isinstance(config.get(key), int):
            return int(config[key])
    raise BaseModelError(
        f"The config.json of the base in {folder} has no {keys[0]}.",
        "Copy the folder again, or use a model with a single text decoder.",
    )

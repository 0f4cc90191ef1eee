"""What can be said about a base without loading it.

Owns: :class:`BaseInfo`, and the check that a folder is a base at all.
Must not know: torch, transformers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.bases.identity import cached_digest, tokenizer_config
from trunkline.bases.sources import MANIFEST, FolderSource, WheelSource, located, resolve
from trunkline.bases.weights import json_object, stored_tensors, weight_files
from trunkline.errors import BaseModelError

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CAUSAL = ("ForCausalLM", "LMHeadModel")
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_UNSTATED_CONTEXT = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseInfo:
    """A base that is on this machine.

    Attributes:
        name: what it is asked for by; of a folder the absolute path.
        source: a phrase that says where its files come from.
        folder: the converted weights, as plain transformers loads them.
        digest: identity, 64 hex digits.
        architecture: class name of transformers, ``LlamaForCausalLM``.
        parameters: numbers stored; a tied output layer is not counted twice.
        dtype: as stored (``float32``), of most of the numbers.
        layers, hidden_size, vocabulary: of the network.
        context: the longest input, in tokens.
        bytes: of the weight files.
        pulled: it was fetched by ``pull`` (wheel or hub); a user's own folder was not.
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
    """Look at a base's files, and identify it; imports no torch.

    The first look at new files reads them whole (about a second for 500 MB); afterwards the
    digest is remembered by the files' sizes and times.

    Raises:
        NotFoundError: no base is called so.
        BaseModelError: it was not pulled yet, or its files are damaged or of another kind.
    """
    from trunkline.workspace import cache_folder

    source = resolve(name)
    folder, origin = located(source)
    pulled = not isinstance(source, FolderSource)
    info = read_info(source.name, origin, folder, cache_folder() / "digests", pulled=pulled)
    manifest = folder / MANIFEST
    if isinstance(source, WheelSource):
        recorded = json_object(manifest).get("digest")
        if recorded != info.digest:
            raise BaseModelError(
                f"The base {name!r} in {folder} is not what was pulled: its digest is "
                f"{info.digest[:12]}, not {str(recorded)[:12]}.",
                f"Fetch it again: `trunkline base pull {name}`.",
            )
    return info


def read_info(name: str, origin: str, folder: Path, digests: Path, *, pulled: bool) -> BaseInfo:
    """:func:`describe` for files that were found already.

    Args:
        name, origin, pulled: to put into the result.
        folder: of the base.
        digests: the folder of remembered digests.
    """
    if not (folder / "config.json").is_file():
        raise BaseModelError(
            f"The folder {folder} is no base: it has no config.json.",
            "Give a folder as transformers' save_pretrained writes it, "
            "or fetch a base again: `trunkline base pull`.",
        )
    config = json_object(folder / "config.json")
    architecture = _architecture(config, folder)
    tensors = stored_tensors(folder)
    if not tensors:
        raise BaseModelError(f"The base in {folder} holds no tensor.", "Copy the folder anew.")
    numbers: Counter[str] = Counter()
    for tensor in tensors:
        numbers[tensor.dtype] += tensor.size
    most = numbers.most_common(1)[0][0]
    return BaseInfo(
        name=name,
        source=origin,
        folder=folder,
        digest=cached_digest(folder, digests),
        architecture=architecture,
        parameters=numbers.total(),
        dtype=_DTYPES.get(most, most.lower()),
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
    if isinstance(name, str) and name.endswith(_CAUSAL):
        return name
    raise BaseModelError(
        f"The base in {folder} is no causal language model: its config.json names "
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
        f"The config.json of the base in {folder} does not say {keys[0]}.",
        "Copy the folder anew, or use a model of one text decoder.",
    )

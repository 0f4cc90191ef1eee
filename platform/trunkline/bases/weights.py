"""The weights of a base as they lie on disk.

Owns: which safetensors files hold them, and what each header says; a torn file is found here.
Must not know: torch, transformers, what the tensors mean.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.errors import BaseModelError

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_MOST_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors file; its bytes are ``file[start:stop]``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def stored_tensors(folder: Path) -> tuple[StoredTensor, ...]:
    """Every tensor of the weights in ``folder``, sorted by name; reads only the headers.

    Raises:
        BaseModelError: no safetensors, a pickle instead, or a file that is torn.
    """
    tensors = [tensor for file in weight_files(folder) for tensor in _header(file)]
    tensors.sort(key=lambda tensor: tensor.name)
    for one, other in itertools.pairwise(tensors):
        if one.name == other.name:
            raise damaged(one.file, f"holds the tensor {one.name!r} twice")
    return tuple(tensors)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that hold the weights: one, or the shards that the index names.

    Raises:
        BaseModelError: there are none, or the index names a file that is missing.
    """
    single = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    if not index.is_file():
        pickled = sorted(
            file.name
            for ending in ("bin", "pt", "pth", "ckpt")
            for file in folder.glob(f"*.{ending}")
        )
        if pickled:
            raise BaseModelError(
                f"The base in {folder} keeps its weights as a pickle ({pickled[0]}), which can run "
                "code when it is read.",
                "Use a version of the model that is stored as safetensors.",
            )
        raise BaseModelError(
            f"The folder {folder} holds no model.safetensors.",
            "A base is a folder as transformers' save_pretrained writes it.",
        )
    names = json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise damaged(index, "names no file")
    files = []
    for name in sorted({str(value) for value in names.values()}):
        file = folder / name
        if Path(name).name != name or not name.endswith(".safetensors") or not file.is_file():
            raise damaged(index, f"names {name!r}, which is not there")
        files.append(file)
    return tuple(files)


def json_object(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``.

    Raises:
        BaseModelError: it can't be read, or is something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(file, "can't be read as JSON") from error
    if not isinstance(value, dict):
        raise damaged(file, "holds no JSON object")
    return value


def _header(file: Path) -> Iterable[StoredTensor]:
    """The format: 8 bytes of header length (little endian), JSON, then the tensors' bytes."""
    whole = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if whole < 8 or length > min(whole - 8, _MOST_HEADER):
            raise damaged(file, "is cut off or is no safetensors file")
        raw = stream.read(length)
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        tensors = [
            StoredTensor(
                name,
                entry["dtype"],
                tuple(int(side) for side in entry["shape"]),
                file,
                8 + length + int(entry["data_offsets"][0]),
                8 + length + int(entry["data_offsets"][1]),
            )
            for name, entry in entries.items()
        ]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise damaged(file, "has a header that can't be read") from error
    end = 8 + length
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop)):
        bits = _BITS.get(tensor.dtype)
        fits = bits is not None and tensor.size * bits == 8 * (tensor.stop - tensor.start)
        if tensor.start != end or not fits:
            raise damaged(file, f"has a header that contradicts itself at {tensor.name!r}")
        end = tensor.stop
    if end != whole:
        raise damaged(file, f"has {whole} bytes where its header says {end}")
    return tensors


def damaged(file: Path, how: str) -> BaseModelError:
    """The error for a file of a base that is not whole; ``how`` ends the sentence."""
    return BaseModelError(
        f"The base is damaged: {file} {how}.",
        "Fetch it again: `trunkline base pull`, or copy the folder anew.",
    )

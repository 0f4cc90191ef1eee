"""The weights of a base as they lie on disk.

Owns: which safetensors files hold them, and what each header says; a torn file is found here.
Must not know: torch, transformers, what the tensors mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.errors import BaseModelError, IntegrityError, one_line
from trunkline.files import MAX_HEADER_BYTES, read_json_object, read_safetensors_header

_FETCH_AGAIN = "Fetch it again: `trunkline base pull`, or copy the folder anew."


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
    tensors = [tensor for file in weight_files(folder) for tensor in _stored_tensors(file)]
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
        return read_json_object(file, max_bytes=MAX_HEADER_BYTES, allow_nan=True)
    except (OSError, IntegrityError) as error:
        raise damaged_file(error) from error


def _stored_tensors(file: Path) -> Iterator[StoredTensor]:
    try:
        header = read_safetensors_header(file)
    except (OSError, IntegrityError) as error:
        raise damaged_file(error) from error
    for name, tensor in header.items():
        yield StoredTensor(name, tensor.dtype, tensor.shape, file, tensor.start, tensor.stop)


def damaged(file: Path, problem: str) -> BaseModelError:
    """Build the error for a damaged file of a base; ``problem`` ends the sentence."""
    return BaseModelError(f"The base is damaged: {file} {problem}.", _FETCH_AGAIN)


def damaged_file(error: OSError | IntegrityError) -> BaseModelError:
    """Build the error for a file of a base that a reader refused."""
    return BaseModelError(f"The base is damaged: {one_line(error)}.", _FETCH_AGAIN)

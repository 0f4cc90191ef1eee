"""The identity of a base: a sha256 over its stored tensors, tokenizer and chat templates.

The digest covers the tensors sorted by name (name, dtype, shape and bytes, as stored), then the
tokenizer, then the chat templates. It does not depend on the number of weight files or on the
folder. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.errors import BaseModelError, IntegrityError, one_line
from trunkline.files import (
    MAX_HEADER_BYTES,
    canonical_json,
    indented_json,
    read_json_object,
    read_safetensors_header,
    sha256_file,
    write_atomically,
)

_CHUNK = 1 << 22
_FETCH_AGAIN = "Fetch it again: `trunkline base pull`, or copy the folder again."
_SLOW_TOKENIZER = (
    "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json"
)  # fmt: skip
_NO_IDENTITY = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")
"""Keys of a config that differ between equal bases."""

_TOKENIZER_KEYS = ("do_lower_case", "legacy", "extra_special_tokens", "additional_special_tokens")


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
        BaseModelError: there are no safetensors, or a file is damaged.
    """
    tensors = [tensor for file in weight_files(folder) for tensor in _stored_tensors(file)]
    tensors.sort(key=lambda tensor: tensor.name)
    for tensor, following in itertools.pairwise(tensors):
        if tensor.name == following.name:
            raise damaged(tensor.file, f"holds the tensor {tensor.name!r} twice")
    return tuple(tensors)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that hold the weights: one, or the shards that the index names.

    Raises:
        BaseModelError: there are none, or the index names a missing file.
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
                f"The base in {folder} stores its weights as a pickle ({pickled[0]}), which can "
                "run code when it is read.",
                "Use a version of the model that is stored as safetensors.",
            )
        raise BaseModelError(
            f"The folder {folder} holds no model.safetensors.",
            "A base is a folder written by save_pretrained of transformers.",
        )
    names = json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise damaged(index, "names no file")
    files = []
    for name in sorted({str(value) for value in names.values()}):
        file = folder / name
        if Path(name).name != name or not name.endswith(".safetensors") or not file.is_file():
            raise damaged(index, f"names {name!r}, which is missing")
        files.append(file)
    return tuple(files)


def json_object(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``.

    Raises:
        BaseModelError: it can't be read, or is not an object.
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


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """The files that define the tokenizer.

    Raises:
        BaseModelError: there are none.
    """
    fast = folder / "tokenizer.json"
    if fast.is_file():
        return (fast,)
    slow = tuple(folder / name for name in _SLOW_TOKENIZER if (folder / name).is_file())
    if not slow:
        raise BaseModelError(
            f"The base in {folder} has no tokenizer (no tokenizer.json).",
            "Save the tokenizer with the weights: tokenizer.save_pretrained(folder).",
        )
    return slow


def chat_templates(folder: Path) -> dict[str, str]:
    """Name → chat template, as transformers reads them; empty for a base without one."""
    templates: dict[str, str] = {}
    inside = tokenizer_config(folder).get("chat_template")
    if isinstance(inside, str):
        templates["default"] = inside
    elif isinstance(inside, list):
        templates = {str(entry["name"]): str(entry["template"]) for entry in inside}
    files = {"default": folder / "chat_template.jinja"}
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        files[file.stem] = file
    for name, file in files.items():
        if file.is_file():
            templates[name] = file.read_text(encoding="utf-8")
    return templates


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """The content of ``tokenizer_config.json``; empty if there is no such file."""
    file = folder / "tokenizer_config.json"
    return json_object(file) if file.is_file() else {}


def base_digest(folder: Path) -> str:
    """The digest of the base in ``folder``, 64 hex digits; reads every byte of the weights.

    Raises:
        BaseModelError: a file is missing or damaged.
    """
    total = hashlib.sha256()
    _add_tensors(total, folder)
    for file in tokenizer_files(folder):
        _part(total, "tokenizer", [file.name, sha256_file(file)])
    config = tokenizer_config(folder)
    special = {
        key: value
        for key, value in config.items()
        if key.endswith("_token") or key.startswith("add_") or key in _TOKENIZER_KEYS
    }
    _part(total, "special", special)
    _part(total, "templates", chat_templates(folder))
    return total.hexdigest()


def image_digest(folder: Path) -> str:
    """The digest of the image base in ``folder``: its tensors, architecture and image processor.

    Raises:
        BaseModelError: a file is missing or damaged.
    """
    total = hashlib.sha256()
    _add_tensors(total, folder)
    config = json_object(folder / "config.json")
    _part(total, "config", {name: config[name] for name in config if name not in _NO_IDENTITY})
    processor = folder / "preprocessor_config.json"
    _part(total, "processor", json_object(processor) if processor.is_file() else {})
    return total.hexdigest()


def cached_image_digest(folder: Path, cache: Path) -> str:
    """:func:`image_digest`, cached as :func:`cached_digest` is."""
    folder = folder.resolve()
    files = (
        *weight_files(folder), folder / "config.json", folder / "preprocessor_config.json"
    )  # fmt: skip
    return _cached(folder, files, cache, image_digest)


def cached_digest(folder: Path, cache: Path) -> str:
    """:func:`base_digest`, cached until a file's size or time changes.

    Args:
        folder: of the base.
        cache: folder of the cached digests, created if possible. If it can't be written, the
            digest is computed each time.
    """
    folder = folder.resolve()
    files = (
        *weight_files(folder),
        *tokenizer_files(folder),
        *(folder / name for name in ("tokenizer_config.json", "chat_template.jinja")),
        *sorted((folder / "additional_chat_templates").glob("*.jinja")),
    )
    return _cached(folder, files, cache, base_digest)


def _cached(
    folder: Path, files: Iterable[Path], cache: Path, compute: Callable[[Path], str]
) -> str:
    """The digest in the cache, if no file has changed since; else it is computed and kept."""
    stats = [[file.name, *_stat(file)] for file in files if file.is_file()]
    entry = cache / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, AttributeError):
        cached = json.loads(entry.read_text(encoding="utf-8"))
        if cached.get("files") == stats and isinstance(cached.get("digest"), str):
            return str(cached["digest"])
    digest = compute(folder)
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        content = {"folder": str(folder), "digest": digest, "files": stats}
        write_atomically(entry, indented_json(content))
    return digest


def _add_tensors(total: Any, folder: Path) -> None:
    for tensor in stored_tensors(folder):
        _part(total, "tensor", [tensor.name, tensor.dtype, list(tensor.shape)])
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start)
            remaining = tensor.stop - tensor.start
            while remaining:
                chunk = stream.read(min(remaining, _CHUNK))
                if not chunk:
                    raise damaged(tensor.file, "ends too early")
                total.update(chunk)
                remaining -= len(chunk)


def _part(total: Any, kind: str, value: Any) -> None:
    data = canonical_json([kind, value])
    total.update(len(data).to_bytes(8, "little"))
    total.update(data)


def _stat(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns

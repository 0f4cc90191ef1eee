"""The identity of a base, from its files alone.

Owns: the sha256 over tensors, tokenizer and chat template, and remembering it.
Must not know: torch, transformers, where the files came from.

The digest runs over the tensors sorted by name (name, dtype, shape, bytes, all as stored), then
the tokenizer, then the chat templates. How the tensors are divided into files, and where the
folder lies, does not enter.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from trunkline.bases.weights import damaged, json_object, stored_tensors, weight_files
from trunkline.errors import BaseModelError
from trunkline.files import canonical_json, indented_json, sha256_file, write_atomically

_CHUNK = 1 << 22
_SLOW_TOKENIZER = (
    "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json"
)  # fmt: skip
_TOKENIZER_KEYS = ("do_lower_case", "legacy", "extra_special_tokens", "additional_special_tokens")


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """The files that decide how text becomes tokens.

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
            "Save the tokenizer beside the weights: tokenizer.save_pretrained(folder).",
        )
    return slow


def chat_templates(folder: Path) -> dict[str, str]:
    """Name → chat template, as transformers would read them; empty for a base without."""
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
    """``tokenizer_config.json``, or nothing if there is none."""
    file = folder / "tokenizer_config.json"
    return json_object(file) if file.is_file() else {}


def base_digest(folder: Path) -> str:
    """The identity of the base in ``folder``: 64 hex digits; reads every byte of the weights.

    Raises:
        BaseModelError: a file is missing or torn.
    """
    total = hashlib.sha256()
    for tensor in stored_tensors(folder):
        _part(total, "tensor", [tensor.name, tensor.dtype, list(tensor.shape)])
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start)
            left = tensor.stop - tensor.start
            while left:
                chunk = stream.read(min(left, _CHUNK))
                if not chunk:
                    raise damaged(tensor.file, "ends too early")
                total.update(chunk)
                left -= len(chunk)
    for file in tokenizer_files(folder):
        _part(total, "tokenizer", [file.name, sha256_file(file)])
    config = tokenizer_config(folder)
    kept = {
        key: value
        for key, value in config.items()
        if key.endswith("_token") or key.startswith("add_") or key in _TOKENIZER_KEYS
    }
    _part(total, "special", kept)
    _part(total, "templates", chat_templates(folder))
    return total.hexdigest()


def cached_digest(folder: Path, cache: Path) -> str:
    """:func:`base_digest`, remembered in ``cache`` until a file's size or time changes.

    Args:
        folder: of the base.
        cache: a folder; made if it can be. One that can't be written costs time, nothing else.
    """
    folder = folder.resolve()
    files = (
        *weight_files(folder),
        *tokenizer_files(folder),
        *(folder / name for name in ("tokenizer_config.json", "chat_template.jinja")),
        *sorted((folder / "additional_chat_templates").glob("*.jinja")),
    )
    seen = [[file.name, *_stat(file)] for file in files if file.is_file()]
    memory = cache / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, AttributeError):
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known.get("files") == seen and isinstance(known.get("digest"), str):
            return str(known["digest"])
    digest = base_digest(folder)
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        remembered = {"folder": str(folder), "digest": digest, "files": seen}
        write_atomically(memory, indented_json(remembered))
    return digest


def _part(total: Any, kind: str, value: Any) -> None:
    data = canonical_json([kind, value])
    total.update(len(data).to_bytes(8, "little"))
    total.update(data)


def _stat(file: Path) -> tuple[int, int, int]:
    facts = file.stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns

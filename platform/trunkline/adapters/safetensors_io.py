"""Bytes from outside → JSON values and safetensors headers, read strictly.

Owns: what counts as well-formed. Must not know: artifacts, LoRA. Nothing here imports torch, and
no size that a file claims is believed before it is compared with the file's own.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trunkline.errors import IntegrityError

MAX_JSON_BYTES = 4 << 20
MAX_HEADER_BYTES = 32 << 20
REPAIR = "Train it again, or restore the file from a copy."
"""The hint for a file that is not what it was."""

_BYTES_PER_NUMBER = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of a safetensors header; its numbers begin at byte ``start`` of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int


class Readable(Protocol):
    """An open file, or what stands for one."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, fewer at the end."""


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; it has a canonical form.

    Raises:
        IntegrityError: too large, no JSON, no object, a key twice, NaN or infinity.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise IntegrityError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB.", REPAIR)
    return _object(path.read_bytes(), f"{path}")


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The header of a safetensors file, checked against the file's size.

    Every number of the file belongs to exactly one tensor, as the format demands.

    Raises:
        IntegrityError: the header's length, its JSON, or a tensor's dtype, shape or range is off.
    """
    with path.open("rb") as file:
        return header_in(file, path.stat().st_size, path)


def header_in(file: Readable, size: int, path: Path) -> dict[str, TensorInfo]:
    """As :func:`read_header`, of ``size`` bytes that stand elsewhere; ``path`` is what they are."""
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise IntegrityError(f"{path} is not a whole safetensors file.", REPAIR)
    header = _object(file.read(length), f"The header of {path}")
    header.pop("__metadata__", None)
    ranges: list[tuple[int, int]] = []
    tensors: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        tensors[name], end = _entry(name, entry, path, 8 + length)
        ranges.append((tensors[name].start, end))
    position = 8 + length
    for begin, end in sorted(ranges):
        if begin != position:
            raise IntegrityError(f"{path} has tensors that overlap or leave gaps.", REPAIR)
        position = end
    if position != size:
        raise IntegrityError(f"{path} is cut off or has bytes too many.", REPAIR)
    return tensors


def short(value: Any) -> str:
    """``repr``, cut to a sentence's measure."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _entry(name: str, entry: Any, path: Path, start: int) -> tuple[TensorInfo, int]:
    """A tensor and where it ends, of a file whose first one begins at ``start``."""
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    dtype: Any = fields.get("dtype")
    shape: Any = fields.get("shape")
    offsets: Any = fields.get("data_offsets")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise IntegrityError(f"{path} has an unreadable header at {short(name)}.", REPAIR)
    width = _BYTES_PER_NUMBER.get(dtype) if isinstance(dtype, str) else None
    if width is None:
        raise IntegrityError(
            f"{path}: {short(name)} has the dtype {short(dtype)}.",
            f"One of {', '.join(_BYTES_PER_NUMBER)} is loaded.",
        )
    begin, end = offsets
    if end - begin != width * math.prod(shape):
        raise IntegrityError(
            f"{path}: {short(name)} has the shape {short(shape)}, which its bytes don't hold.",
            REPAIR,
        )
    return TensorInfo(str(dtype), tuple(shape), start + begin), start + end


def _counts(value: Any) -> bool:
    """Whether ``value`` is a list of whole numbers, none below zero."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data, object_pairs_hook=_once)
        if not isinstance(value, dict):
            raise IntegrityError(f"{what} holds no JSON object.", REPAIR)
        canonical_json(value)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise IntegrityError(f"{what} is no readable JSON: {reason}.", REPAIR) from error
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands there twice")
    return value

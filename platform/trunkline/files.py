"""Strict reading of JSON files and safetensors headers, canonical JSON, hashes, atomic writes.

Nothing here imports torch. A size that a file claims is compared with the file's own size before
it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from trunkline.errors import IntegrityError, TrunklineError, UsageError, one_line, reason_of

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_JSON_BYTES = 4 << 20
MAX_HEADER_BYTES = 32 << 20
REPAIR = "Train it again, or restore the file from a copy."
"""The hint for a damaged file of an artifact."""

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of a safetensors header; the tensor's bytes are ``file[start:stop]``."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class ByteStream(Protocol):
    """An open binary file or a memory map."""

    def read(self, size: int, /) -> bytes:
        """Return the next ``size`` bytes, fewer at the end."""


def canonical_json(value: Any) -> bytes:
    """Encode a JSON value with sorted keys, no spaces, in UTF-8.

    Equal values give equal bytes, so digests are taken over this form.

    Raises:
        ValueError: the value contains NaN, infinity or a lone surrogate.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def indented_json(value: Any) -> bytes:
    """Encode a JSON value for people: two spaces of indentation, sorted keys, a final newline."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    return f"{text}\n".encode()


def parse_json_object(data: bytes, label: str, *, allow_nan: bool = False) -> dict[str, Any]:
    """Parse a JSON object and refuse what JSON readers disagree about.

    Args:
        label: names the source in an error, as the start of a sentence.
        allow_nan: accept NaN and infinity, which some model configurations contain.

    Raises:
        IntegrityError: the bytes are not a JSON object, a key occurs twice, or a value has no
            canonical form.
    """
    try:
        value = json.loads(data, object_pairs_hook=_unique_keys)
        if not isinstance(value, dict):
            raise IntegrityError(f"{label} is not a JSON object.", REPAIR)
        json.dumps(value, ensure_ascii=False, allow_nan=allow_nan).encode()
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{label} is not valid JSON: {one_line(error)}.", REPAIR) from error
    return value


def read_json_object(
    path: Path, *, max_bytes: int = MAX_JSON_BYTES, allow_nan: bool = False
) -> dict[str, Any]:
    """Read a JSON file with :func:`parse_json_object`.

    Raises:
        IntegrityError: the file has more than ``max_bytes``, or the parser refuses it.
        OSError: the file can't be read.
    """
    if path.stat().st_size > max_bytes:
        raise IntegrityError(f"{path} is larger than {max_bytes >> 20} MiB.", REPAIR)
    return parse_json_object(path.read_bytes(), f"{path}", allow_nan=allow_nan)


def read_safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """Read the header of a safetensors file and check it against the file's size.

    Raises:
        IntegrityError: the header is damaged, or its tensors overlap, leave gaps or do not fill
            the file.
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        return parse_safetensors_header(file, path.stat().st_size, f"{path}")


def parse_safetensors_header(stream: ByteStream, size: int, label: str) -> dict[str, TensorInfo]:
    """Read a safetensors header from the start of ``size`` bytes.

    The format: 8 bytes of header length (little endian), a JSON header, then the tensors' bytes.
    See :func:`read_safetensors_header` for the checks.

    Args:
        label: names the file in an error.
    """
    prefix = stream.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise IntegrityError(f"{label} is cut off or is not a safetensors file.", REPAIR)
    header = parse_json_object(stream.read(length), f"The header of {label}")
    metadata: Any = header.pop("__metadata__", None)
    texts = metadata.values() if isinstance(metadata, dict) else (metadata,)
    if metadata is not None and not all(isinstance(text, str) for text in texts):
        raise IntegrityError(
            f"The header of {label} has metadata that are not texts: {brief_repr(metadata)}.",
            REPAIR,
        )
    tensors = {name: _tensor(name, entry, label, 8 + length) for name, entry in header.items()}
    position = 8 + length
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.stop)):
        if tensor.start != position:
            raise IntegrityError(f"{label} has tensors that overlap or leave gaps.", REPAIR)
        position = tensor.stop
    if position != size:
        raise IntegrityError(
            f"{label} has {size} bytes, but its header describes {position}.", REPAIR
        )
    return tensors


def sha256_file(path: Path) -> str:
    """Hash a file's bytes with sha256; returns 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: str | bytes) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never a part."""
    with _replacing(path, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def output_file(path: Path, *, overwrite: bool = True, binary: bool = False) -> Iterator[IO[Any]]:
    """Open a file that a user named, for UTF-8 text or bytes; it appears complete or not at all.

    A device or a pipe, such as ``/dev/stdout``, is written directly.

    Args:
        binary: open it for bytes.

    Raises:
        UsageError: the file exists, and ``overwrite`` is off.
        TrunklineError: it can't be written.
    """
    if not overwrite and os.path.lexists(path):
        raise UsageError(f"{str(path)!r} exists already.", "Name another file.")
    mode, encoding = ("wb", None) if binary else ("w", "utf-8")
    try:
        if path.exists() and not path.is_file():
            with path.open(mode, encoding=encoding) as device:
                yield device
            return
        with _replacing(path.resolve(), mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise TrunklineError(
            f"{str(path)!r} can't be written: {reason_of(error)}.",
            "Name a file in a folder that you may write to, on a disk with free space.",
        ) from error


@contextmanager
def _replacing(path: Path, mode: str, encoding: str | None = None) -> Iterator[IO[Any]]:
    """Open a file beside ``path`` that replaces it at the end; after an exception it is removed.

    It has the permissions of the file that it replaces, or those that the umask leaves.
    """
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(handle, mode, encoding=encoding) as file:
            with suppress(FileNotFoundError):
                os.fchmod(handle, stat.S_IMODE(path.stat().st_mode))
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def fsync_path(path: Path) -> None:
    """Force a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def brief_repr(value: Any) -> str:
    """``repr(value)``, cut to 80 characters for an error message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def validation_problem(error: ValidationError) -> str:
    """Describe pydantic's first error as one clause with the field and its value."""
    problem = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    field = ascii(field)[1:-1][:80] or "the object"
    if problem["type"] == "missing":
        return f"{field} is missing"
    if problem["type"] == "extra_forbidden":
        return f"{field} is not a field of the format"
    reason = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error" and isinstance(problem["input"], Mapping):
        return f"{field}: {reason}" if problem["loc"] else reason
    value = ascii(problem["input"])
    value = value if len(value) <= 60 else f"{value[:57]}..."
    return f"{field} is {value}: {reason[:1].lower()}{reason[1:]}"


def _tensor(name: str, entry: Any, label: str, data_start: int) -> TensorInfo:
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    dtype: Any = fields.get("dtype")
    shape: Any = fields.get("shape")
    offsets: Any = fields.get("data_offsets")
    if not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2:
        raise IntegrityError(f"{label} has a damaged header at {brief_repr(name)}.", REPAIR)
    bits = _BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise IntegrityError(
            f"{label}: {brief_repr(name)} has the unknown dtype {brief_repr(dtype)}.",
            f"The known dtypes are {', '.join(_BITS)}.",
        )
    begin, end = offsets
    if 8 * (end - begin) != bits * math.prod(shape):
        raise IntegrityError(
            f"{label}: {brief_repr(name)} has {end - begin} bytes, which do not fit the shape "
            f"{brief_repr(shape)} of {dtype}.",
            REPAIR,
        )
    return TensorInfo(str(dtype), tuple(shape), data_start + begin, data_start + end)


def _is_counts(value: Any) -> bool:
    """Whether ``value`` is a list of integers, none negative."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys: set[str] = set()
    for key, _ in pairs:
        if key in keys:
            raise ValueError(f"the key {brief_repr(key)} occurs twice")
        keys.add(key)
    return dict(pairs)

"""A version as one file: a plain tar archive, written evenly and read without trusting it.

Owns: what an archive may hold, how much of it, and the order of checks. Must not know: what the
files mean, the registry, the store.

An archive is uncompressed, so nothing grows when it is unpacked; it holds regular files of known
names and nothing else. Every header is checked before the first byte is written. Python's
``tarfile`` is not asked to read: it follows extensions (pax, GNU long names, sparse files) that
have no place here.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trunkline.adapters.artifact import KNOWN, WEIGHTS
from trunkline.errors import (
    IntegrityError,
    NotFoundError,
    RegistryError,
    TrunklineError,
    UsageError,
)
from trunkline.files import MAX_JSON_BYTES
from trunkline.refs import shown

MAX_BYTES = 8 << 30
"""Of an archive; the weights are almost all of it. Every other file has the cap of a JSON file."""

_BLOCK = 512
_MAX_PADDING = 1 << 20
_MAGIC = (b"ustar\x0000", b"ustar  \x00")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7-Zip",
}
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a named pipe",
    b"S": "a sparse file",
    b"x": "an extended header",
    b"g": "an extended header",
    b"L": "a long name",
    b"K": "a long link",
}
_MAKE_IT = "Make the archive with `trunkline adapters export REF FILE`; nothing was unpacked."


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive: where its bytes stand."""

    name: str
    offset: int
    size: int


def pack(
    folder: Path,
    target: Path,
    *,
    overwrite: bool = False,
    before: Callable[[Path], None] | None = None,
) -> int:
    """Write the known files of a folder into an archive; gives its size in bytes.

    The same files give the same archive, byte for byte. It appears whole under its name or not
    at all; ``before`` is given the whole file just before that, and may refuse by raising.

    Raises:
        UsageError: ``target`` exists, or can't be written to.
        RegistryError: the disk is full, or the like; nothing is left behind.
    """
    if os.path.lexists(target) and not (overwrite and target.is_file()):
        raise UsageError(
            f"There is something at {str(target)!r} already.",
            "Name another file, or write over it with --overwrite.",
        )
    work = target.with_name(f".{target.name[:64]}.part")
    try:
        work.unlink(missing_ok=True)
        with work.open("xb") as file:
            _write(folder, file)
            file.flush()
            os.fsync(file.fileno())
        work.chmod(0o644)
        if before is not None:
            before(work)
        os.replace(work, target)
    except TrunklineError:
        with suppress(OSError):
            work.unlink()
        raise
    except (OSError, ValueError) as error:
        with suppress(OSError):
            work.unlink()
        reason = getattr(error, "strerror", None) or error
        raise RegistryError(
            f"The archive {str(target)!r} can't be written: {reason}.",
            "Make room or give write permission, or name a file elsewhere.",
        ) from error
    return target.stat().st_size


def unpack(path: Path, folder: Path, *, max_bytes: int = MAX_BYTES) -> tuple[Member, ...]:
    """Write an archive's files into an empty folder, once all of its headers are checked.

    Args:
        path: of the archive.
        folder: that is there and empty.
        max_bytes: of the archive, and so of what is written.

    Raises:
        NotFoundError: there is no such file.
        IntegrityError: it is no archive as :func:`pack` writes it; nothing was unpacked.
        OSError: the folder can't be written.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"There is no file {str(path)!r}.", "Name an archive made by `adapters export`."
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise _refused(path, "is not a plain file")
    if found.st_size > max_bytes:
        raise _refused(path, f"has {found.st_size:,} bytes; {max_bytes:,} are read at most")
    try:
        file = path.open("rb")
    except OSError as error:
        raise _refused(path, f"can't be read: {error.strerror or error}") from error
    with file:
        members = tuple(_members(file, found.st_size, path))
        for member in members:
            _copy(file, member, folder / member.name, path)
    return members


def _write(folder: Path, file: BinaryIO) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(folder.iterdir()):
            if path.name not in KNOWN:
                continue
            entry = tarfile.TarInfo(path.name)
            entry.size = path.stat().st_size
            with path.open("rb") as source:
                archive.addfile(entry, source)


def _members(file: BinaryIO, size: int, path: Path) -> Iterator[Member]:
    """The members by their headers, read in order; the file's end is checked too."""
    _check_uncompressed(file.read(8), path)
    seen: set[str] = set()
    position = 0
    while True:
        file.seek(position)
        header = file.read(_BLOCK)
        if len(header) < _BLOCK:
            raise _refused(path, "is cut off")
        if not any(header):
            break
        member = _member(header, position + _BLOCK, path)
        if member.name in seen:
            raise _refused(path, f"holds {member.name!r} twice")
        seen.add(member.name)
        position = member.offset + -(-member.size // _BLOCK) * _BLOCK
        if position > size:
            raise _refused(
                path, f"claims {member.size:,} bytes for {member.name!r}, more than it has"
            )
        yield member
    rest = size - position
    file.seek(position)
    if rest < 2 * _BLOCK or rest > _MAX_PADDING or any(file.read(rest)):
        raise _refused(path, "does not end as an archive does")


def _check_uncompressed(begin: bytes, path: Path) -> None:
    for magic, how in _COMPRESSED.items():
        if begin.startswith(magic):
            raise _refused(path, f"is compressed ({how}); only plain tar is read")


def _member(header: bytes, offset: int, path: Path) -> Member:
    total = _octal(header[148:156])
    if total is None or total != sum(header[:148]) + 8 * 0x20 + sum(header[156:]):
        raise _refused(path, "is no tar archive, or is damaged")
    if header[257:265] not in _MAGIC:
        raise _refused(path, "is a tar archive of an old form")
    name = header[:100].rstrip(b"\0").decode("utf-8", "backslashreplace")
    kind = header[156:157]
    if kind not in (b"0", b"\0"):
        what = _KINDS.get(kind, "no regular file")
        raise _refused(path, f"holds {shown(name)}, which is {what}")
    if name not in KNOWN or any(header[157:257]) or any(header[345:]):
        raise _refused(path, f"holds {shown(name)}, which an artifact may not hold")
    size = _octal(header[124:136])
    if size is None:
        raise _refused(path, f"has no readable size for {name!r}")
    if name != WEIGHTS and size > MAX_JSON_BYTES:
        raise _refused(path, f"holds {name!r} with {size:,} bytes; {MAX_JSON_BYTES:,} are read")
    return Member(name, offset, size)


def _octal(field: bytes) -> int | None:
    """A number as ustar writes it; the base-256 form of larger ones is not read."""
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    if not digits or any(digit not in b"01234567" for digit in digits):
        return None
    return int(digits, 8)


def _copy(file: BinaryIO, member: Member, target: Path, path: Path) -> None:
    file.seek(member.offset)
    left = member.size
    with target.open("xb") as out:
        while left:
            piece = file.read(min(left, 1 << 20))
            if not piece:
                raise _refused(path, "was cut off while it was read")
            out.write(piece)
            left -= len(piece)


def _refused(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(f"The archive {str(path)!r} {reason}.", _MAKE_IT)

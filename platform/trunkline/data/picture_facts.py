"""Facts about a decoded picture: size, color mode, brightness, perceptual hash."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from trunkline.contracts import Row
from trunkline.data.pictures import decode_file, pillow
from trunkline.errors import DataError, TooLargeError, TrunklineError, UsageError

HASH_EDGE = 16
"""Edge of the perceptual hash, which has its square as bits."""

MAX_KEPT = 100_000
"""Pictures whose facts are kept in memory, about 300 bytes each."""


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """A decoded picture without its pixels.

    Attributes:
        width, height: in pixels, after the rotation in EXIF.
        mode: the color mode of the file, as Pillow names it.
        rotated: whether EXIF rotated it.
        transparent: whether it has transparency.
        brightness, contrast: mean and deviation of the gray values, from 0 to 255.
        hash: the perceptual hash, 32 bytes; similar pictures have similar bits.
    """

    width: int
    height: int
    mode: str
    rotated: bool
    transparent: bool
    brightness: float
    contrast: float
    hash: bytes


_kept: OrderedDict[str, PictureFacts] = OrderedDict()


def facts_of(row: Row) -> PictureFacts:
    """The facts of a row's picture; those of the last :data:`MAX_KEPT` pictures are kept.

    Raises:
        DataError: it can't be read or decoded; names the row.
        UsageError: a package of the extra ``trunkline[images]`` is missing.
    """
    try:
        data = b"" if row.picture.sha256 in _kept else row.picture.read()
        digest = row.picture.sha256 or hashlib.sha256(data).hexdigest()
        facts = _kept.get(digest) or _facts(data, row.picture.name)
    except (DataError, TooLargeError) as error:
        raise in_row(row, error) from error
    _kept[digest] = facts
    while len(_kept) > MAX_KEPT:
        _kept.popitem(last=False)
    return facts


def in_row(row: Row, error: TrunklineError) -> DataError:
    """The error of a picture with the row that has it, unless it names the row already."""
    named = error.message.startswith("Row ")
    return DataError(error.message if named else f"Row {row.id!r}: {error.message}", error.hint)


def _facts(data: bytes, name: str) -> PictureFacts:
    import numpy as np

    image_module, _ = pillow()
    try:
        import imagehash
    except ImportError:
        raise UsageError(
            "Comparing pictures needs the package imagehash.",
            "Run: pip install 'trunkline[images]'",
        ) from None
    decoded = decode_file(data, name)
    gray = image_module.fromarray(decoded.pixels).convert("L")
    values = np.asarray(gray)
    bits = imagehash.phash(gray, hash_size=HASH_EDGE).hash
    return PictureFacts(
        width=gray.width,
        height=gray.height,
        mode=decoded.mode,
        rotated=decoded.rotated,
        transparent=decoded.transparent,
        brightness=float(values.mean()),
        contrast=float(values.std()),
        hash=np.packbits(bits).tobytes(),
    )

"""Check that the data of a PNG are complete; Pillow reads missing rows as black pixels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Color type → values of a pixel."""

_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
           (0, 1, 1, 2))  # fmt: skip
"""First column and row, and steps, of the passes of Adam7."""

_PART = 1 << 20


def is_short(data: bytes) -> bool:
    """Whether the pixels of a PNG end before its last row; other files are not short.

    Args:
        data: a file that a decoder accepts, so its chunks and their checksums are right.
    """
    if not data.startswith(SIGNATURE):
        return False
    width, height, depth, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * _CHANNELS[color]

    def size(columns: int, rows: int) -> int:
        return rows * (1 + (columns * bits + 7) // 8) if columns else 0

    wanted = size(width, height)
    if interlaced:
        wanted = sum(
            size(-((left - width) // across), -((top - height) // down))
            for left, top, across, down in _PASSES
        )
    decompress = zlib.decompressobj()
    for part in _image_data(data):
        while part and wanted > 0:
            wanted -= len(decompress.decompress(part, _PART))
            part = decompress.unconsumed_tail
    return wanted > 0


def _image_data(data: bytes) -> Iterator[bytes]:
    """The contents of the chunks IDAT."""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            yield data[at + 8 : at + 8 + length]
        at += 12 + length

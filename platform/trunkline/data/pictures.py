"""Decode pictures strictly and within bounds, and prepare them for an image base.

Only the pixels of one picture leave this module, as 8-bit red, green and blue: EXIF, color
profiles, comments and anything appended to the file are dropped. The extra ``trunkline[images]``
has the package that decodes; it is imported when a picture is read.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trunkline.data.png import is_short
from trunkline.errors import DataError, TooLargeError, UsageError, one_line
from trunkline.images import MAX_BYTES, ImageSource
from trunkline.preprocessing import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    import torch

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""The formats that are decoded, as Pillow names them."""

MAX_EDGE = 20_000
MAX_PIXELS = 50_000_000
"""The largest picture that is decoded; checked in its header, before memory is taken for pixels."""

_WITH_ALPHA = ("LA", "PA", "RGBA", "La", "RGBa")
"""Color modes with transparency, as Pillow names them."""

_PLAIN = ("1", "L", "P", "RGB", "YCbCr", "CMYK", "RGBX")
_COPY = "Copy or save it again."
_SCALED = ("L;2", "L;4", "I;16B", "RGB;16B")
"""Raw modes of PNG whose values Pillow scales, but not the color that is transparent."""

_GRAY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
GRAY = ("1", "L", "LA", "La", *_GRAY_16, "MONOCHROME1", "MONOCHROME2")
"""Color modes without colors."""

_ORIENTATION = 0x0112
_SEVERAL = ("MPO",)
"""Formats of cameras that hold further views after the picture itself."""

_LONGEST = 8
"""The largest ratio of the edges that is resized completely."""

_HINT = "Save it as PNG or JPEG with 8 bits per color."


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded picture, and how its file stored it.

    Attributes:
        pixels: ``[height, width, 3]`` uint8.
        mode: the color mode of the file, as Pillow or DICOM name it.
        rotated: whether the rotation in EXIF was applied.
        transparent: whether it has transparency, which was put on white.
    """

    pixels: np.ndarray
    mode: str
    rotated: bool
    transparent: bool = False


def decode(data: bytes, name: str = "The picture") -> np.ndarray:
    """The pixels of one picture, ``[height, width, 3]`` uint8; see :func:`decode_file`."""
    return decode_file(data, name).pixels


def decode_file(data: bytes, name: str = "The picture") -> Decoded:
    """Decode one picture.

    A picture with transparency is put on white, CMYK is converted without a color profile, 16-bit
    gray is scaled from 0…65,535 to 0…255, and the rotation in EXIF is applied. DICOM is decoded by
    :func:`~trunkline.data.dicom.decode_dicom`.

    Args:
        data: the encoded file.
        name: of the picture, as the start of a sentence.

    Raises:
        TooLargeError: the file or the picture is larger than the limits.
        DataError: it is damaged, truncated, animated, or of an unknown format or color mode.
        UsageError: Pillow is not installed, or pydicom for DICOM.
    """
    image_module, ops = pillow()
    if len(data) > MAX_BYTES:
        raise TooLargeError(f"{name} has more than {MAX_BYTES >> 20} MiB.", "Save it smaller.")
    if data[128:132] == b"DICM":
        from trunkline.data.dicom import decode_dicom

        return decode_dicom(data, name)
    stream = io.BytesIO(data)
    with _strict(name, image_module), image_module.open(stream, formats=FORMATS) as picture:
        check_size(picture.size, name)
        frames = int(getattr(picture, "n_frames", 1))
        if frames > 1 and picture.format not in _SEVERAL:
            raise several_frames(name, frames)
        _check_transparent_color(picture, name)
        picture.load()
        if is_short(data):
            raise DataError(f"{name} is damaged or truncated: its last rows are missing.", _COPY)
        rotated = picture.getexif().get(_ORIENTATION, 1) in range(2, 9)
        pixels = _to_rgb(ops.exif_transpose(picture), name, image_module)
        return Decoded(pixels, picture.mode, rotated, _is_transparent(picture))


def prepare(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Resize and crop a decoded picture.

    Args:
        pixels: ``[height, width, 3]`` uint8, from :func:`decode`.

    Returns:
        ``[preprocessing.height, preprocessing.width, 3]`` uint8.
    """
    import numpy as np

    image_module, _ = pillow()
    picture = image_module.fromarray(_without_far_ends(pixels))
    size = _resized(picture.size, preprocessing)
    if picture.size != size:
        resample = image_module.Resampling[preprocessing.resample.upper()]
        picture = picture.resize(size, resample)
    left = (picture.width - preprocessing.width) // 2
    top = (picture.height - preprocessing.height) // 2
    box = (left, top, left + preprocessing.width, top + preprocessing.height)
    return np.asarray(picture.crop(box))


def region(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """The part of a picture that :func:`prepare` keeps: left, top, right and bottom, in pixels.

    Args:
        size: width and height of the picture.
    """
    longest = _LONGEST * min(size)
    resized = _resized((min(size[0], longest), min(size[1], longest)), preprocessing)
    kept = (preprocessing.width, preprocessing.height)
    edges: list[tuple[int, int]] = []
    for full_edge, new_edge, crop in zip(size, resized, kept, strict=True):
        used = min(full_edge, longest)
        scale = used / new_edge
        start = max(0, full_edge - longest) // 2 + (new_edge - crop) // 2 * scale
        first = min(full_edge - 1, round(start))
        edges.append((first, max(first + 1, min(full_edge, round(start + crop * scale)))))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def read_pixels(source: ImageSource, preprocessing: Preprocessing) -> np.ndarray:
    """Read, decode, resize and crop a picture: ``[height, width, 3]`` uint8.

    Raises:
        DataError, TooLargeError, UsageError: as :func:`decode_file`.
    """
    return prepare(decode(source.read(), source.name), preprocessing)


def to_tensor(pixels: np.ndarray, preprocessing: Preprocessing) -> torch.Tensor:
    """Normalize: ``[…, height, width, 3]`` uint8 → ``[…, 3, height, width]`` float32."""
    import torch

    values = torch.from_numpy(pixels.copy()).float().div_(255)
    values -= torch.tensor(preprocessing.image_mean)
    values /= torch.tensor(preprocessing.image_std)
    return values.movedim(-1, -3)


def several_frames(name: str, frames: int) -> DataError:
    """The error for a file of several pictures."""
    return DataError(
        f"{name} holds {frames:,} frames or pages.",
        "Save the one that counts as a picture of its own.",
    )


@contextmanager
def _strict(name: str, image_module: Any) -> Iterator[None]:
    """Turn what a decoder raises for a bad file into :class:`DataError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the sizes that are checked, and of bad metadata
            yield
    except (DataError, TooLargeError):
        raise
    except image_module.DecompressionBombError as error:
        raise TooLargeError(
            f"{name} is larger than {MAX_PIXELS:,} pixels.", "Save it smaller."
        ) from error
    except image_module.UnidentifiedImageError as error:
        raise DataError(
            f"{name} is not a picture that can be decoded.",
            f"Save it as one of: {', '.join(FORMATS)}.",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OS, value, syntax, index and struct errors
        raise DataError(f"{name} is damaged or truncated: {one_line(error)}.", _COPY) from error


def check_size(size: tuple[int, int], name: str) -> None:
    """Raise :class:`TooLargeError` if a picture of this width and height is not decoded."""
    width, height = size
    if max(width, height) > MAX_EDGE or width * height > MAX_PIXELS:
        raise TooLargeError(
            f"{name} has {width:,} × {height:,} pixels; at most {MAX_PIXELS:,} are decoded, and "
            f"{MAX_EDGE:,} along an edge.",
            "Save it smaller.",
        )


def _check_transparent_color(picture: Any, name: str) -> None:
    """Refuse a transparent color that is not of 8 bits: Pillow compares it with other values."""
    if picture.format != "PNG" or "transparency" not in picture.info:
        return
    if any(tile.args in _SCALED for tile in picture.tile):
        raise DataError(f"{name} marks a color of more or less than 8 bits as transparent.", _HINT)


def _is_transparent(picture: Any) -> bool:
    return picture.mode in _WITH_ALPHA or (
        picture.mode in _PLAIN and "transparency" in picture.info
    )


def _to_rgb(picture: Any, name: str, image_module: Any) -> np.ndarray:
    """``[height, width, 3]`` uint8 of a loaded picture of any known mode."""
    import numpy as np

    mode = picture.mode
    if mode in _GRAY_16:
        gray = np.asarray(picture).astype(np.uint32)
        return np.repeat(((gray + 128) // 257).astype(np.uint8)[..., None], 3, axis=-1)
    if _is_transparent(picture):
        picture = picture.convert("RGBA")
        white = image_module.new("RGBA", picture.size, "white")
        picture = image_module.alpha_composite(white, picture)
    elif mode not in _PLAIN:
        raise DataError(f"{name} has the color mode {mode}, whose range is not known.", _HINT)
    return np.asarray(picture.convert("RGB"))


def _resized(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Width and height after resizing; torchvision and transformers round in the same way."""
    if preprocessing.resize is not None:
        return preprocessing.resize[1], preprocessing.resize[0]
    width, height = size
    edge = preprocessing.shortest_edge
    assert edge is not None
    if width <= height:
        return edge, max(edge, int(edge * height / width))
    return max(edge, int(edge * width / height)), edge


def _without_far_ends(pixels: np.ndarray) -> np.ndarray:
    """The middle of a very long picture.

    The rest is never in the crop, and resizing it by its shorter edge would take unbounded memory.
    """
    height, width = pixels.shape[:2]
    longest = _LONGEST * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return pixels[top : top + longest, left : left + longest]


def pillow() -> tuple[Any, Any]:
    """Pillow's modules ``Image`` and ``ImageOps``.

    Raises:
        UsageError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise UsageError(
            "Pictures need the package pillow.", "Run: pip install 'trunkline[images]'"
        ) from None
    logger = logging.getLogger("PIL")  # what it reports is an error of ours
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return Image, ImageOps

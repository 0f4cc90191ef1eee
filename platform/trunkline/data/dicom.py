"""Decode pictures in DICOM files; only pixels leave this module, never a tag of the file.

The extra ``trunkline[dicom]`` has pydicom, which is imported when a DICOM file is read.
"""

from __future__ import annotations

import io
import logging
import warnings
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from trunkline.data.pictures import Decoded, check_size, pillow, several_frames
from trunkline.errors import DataError, TooLargeError, UsageError

if TYPE_CHECKING:
    import numpy as np

_HEADER = 132
"""Bytes before the first tag: 128 of any kind, then ``DICM``."""

_TRANSFER_SYNTAX = 0x00020010
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_RLE = "1.2.840.10008.1.2.5"
_JPEG = (
    "1.2.840.10008.1.2.4.50",  # baseline
    "1.2.840.10008.1.2.4.90",  # JPEG 2000, lossless
    "1.2.840.10008.1.2.4.91",
)
_MOST_SEGMENTS, _PADDING = 15, 128
"""Segments of an RLE frame, and bytes that a segment may have beside its pixels."""

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_HINT = "Save it uncompressed, or as PNG."


def decode_dicom(data: bytes, name: str) -> Decoded:
    """Decode a DICOM file with one frame.

    Gray values become those of the header: slope and intercept are applied, then the first window
    or the VOI lookup table; without one, the least value becomes black and the largest white.
    MONOCHROME1 is inverted, so that large values of the result are bright.

    Args:
        data: the encoded file.
        name: of the picture, as the start of a sentence.

    Raises:
        TooLargeError: the picture is larger than the limits; no memory was taken for it.
        DataError: it is damaged, has several frames, or a compression or colors that are not read.
            The message has no value of the file.
        UsageError: pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError:
        raise UsageError(
            f"{name} is a DICOM file, which needs the package pydicom.",
            "Run: pip install 'trunkline[dicom]'",
        ) from None
    # Warnings and errors of pydicom may quote tags, such as the name of a patient
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            syntax = _transfer_syntax(data)
            if syntax not in (*_UNCOMPRESSED, _RLE, *_JPEG):
                raise DataError(
                    f"{name} is a DICOM file whose compression is not read ({_named(syntax)}).",
                    _HINT,
                )
            dataset = pydicom.dcmread(io.BytesIO(data))
            mode = _check(dataset, name)
            if syntax in _JPEG:
                _check_frame(dataset, name)
            elif syntax == _RLE:
                _check_runs(dataset, name)
            return Decoded(_pixels(dataset, mode), mode, rotated=False)
    except (DataError, TooLargeError, UsageError, MemoryError):
        raise
    except Exception:
        raise DataError(
            f"{name} is a damaged or truncated DICOM file.", "Copy or export it again."
        ) from None


def _transfer_syntax(data: bytes) -> str:
    """How the file is encoded, by its first group; read before anything is decompressed."""
    from pydicom.filereader import data_element_generator

    stream = io.BytesIO(data)
    stream.seek(_HEADER)
    group = data_element_generator(
        stream,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag.group != 2,
    )
    for element in group:
        if element.tag == _TRANSFER_SYNTAX and isinstance(element.value, bytes):
            return element.value.decode("ascii").strip("\0 ")
    return ""


def _named(syntax: str) -> str:
    from pydicom.uid import UID_dictionary

    return str(UID_dictionary[syntax][0]) if syntax in UID_dictionary else "unknown"


def _check(dataset: Any, name: str) -> str:
    """The photometric interpretation of a file with one frame that is not too large."""
    if "PixelData" not in dataset:
        raise DataError(f"{name} is a DICOM file without a picture.", "Give one with a picture.")
    check_size((int(dataset.Columns), int(dataset.Rows)), name)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise several_frames(name, frames)
    mode = str(dataset.PhotometricInterpretation)
    samples = {**dict.fromkeys(_GRAY, 1), **dict.fromkeys(_COLORS, 3)}
    if samples.get(mode) != int(dataset.SamplesPerPixel) or int(dataset.BitsAllocated) > 32:
        raise DataError(f"{name} is a DICOM file whose colors are not read.", _HINT)
    return mode


def _check_frame(dataset: Any, name: str) -> None:
    """Refuse a compressed frame that is larger than the header states."""
    from pydicom.encaps import get_frame

    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    image_module, _ = pillow()
    with image_module.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as picture:
        if picture.size != (int(dataset.Columns), int(dataset.Rows)):
            raise _other_size(name)


def _check_runs(dataset: Any, name: str) -> None:
    """Refuse an RLE frame that decompresses to more than the header states.

    A run of two bytes may stand for 128, and a decoder expands a segment before it counts it.
    """
    from pydicom.encaps import get_frame

    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    count = min(int.from_bytes(frame[:4], "little"), _MOST_SEGMENTS)
    starts = [int.from_bytes(frame[4 * n : 4 * n + 4], "little") for n in range(1, count + 1)]
    most = int(dataset.Rows) * int(dataset.Columns) + _PADDING
    for start, end in pairwise([*starts, len(frame)]):
        size, at = 0, start
        while at < end and size <= most:
            control = frame[at]
            literal = control < 128
            size += control + 1 if literal else (257 - control) % 129
            at += control + 2 if literal else 1 + (control > 128)
        if size > most:
            raise _other_size(name)


def _other_size(name: str) -> DataError:
    return DataError(
        f"{name} is a DICOM file whose picture has another size than its header states.",
        "Export it again.",
    )


def _pixels(dataset: Any, mode: str) -> np.ndarray:
    """``[height, width, 3]`` uint8."""
    import numpy as np
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array

    values = pixel_array(dataset, raw=False)
    if mode in _COLORS:
        return (values >> max(0, int(dataset.BitsStored) - 8)).astype(np.uint8)
    values = apply_modality_lut(values, dataset)
    windowed = "VOILUTSequence" in dataset or (
        dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None
    )
    if windowed:
        least, most = _range(dataset)
        values = apply_voi_lut(values, dataset)
    else:
        least, most = float(values.min()), float(values.max())
    scaled = (values.astype(np.float64) - least) / ((most - least) or 1.0)
    gray = (np.clip(scaled, 0.0, 1.0) * 255).round().astype(np.uint8)
    if mode == "MONOCHROME1":
        gray = 255 - gray
    return np.repeat(gray[..., None], 3, axis=-1)


def _range(dataset: Any) -> tuple[float, float]:
    """What the window or the lookup table makes of the least and the largest possible value."""
    import numpy as np
    from pydicom.pixels import apply_voi_lut

    if "VOILUTSequence" in dataset:
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return 0.0, float((1 << bits) - 1)
    ends = apply_voi_lut(np.array([-1e12, 1e12]), dataset)
    return float(ends.min()), float(ends.max())

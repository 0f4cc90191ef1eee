"""Read Fashion-MNIST: pictures of garments of an online shop, in the IDX files of its authors.

The files are no package of Python. Debian has them as ``dataset-fashion-mnist``;
:data:`VARIABLE` names another folder.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trunkline.contracts import DatasetSpec, ImageSource, Row
from trunkline.errors import DataError, MissingDataError

if TYPE_CHECKING:
    import numpy as np

VARIABLE = "TRUNKLINE_FASHION_MNIST"
"""The environment variable with the folder of the IDX files, packed with gzip or not."""

FOLDER = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package puts them."""

LABELS = (
    "t-shirt or top", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip
"""The labels by their number."""

PARTS = {"train": "train", "test": "t10k"}
"""Part of the official split → the beginning of its files' names."""

MARGIN = 2
"""Black pixels around each picture of 28 × 28, because most bases crop an eighth of a picture."""

_IMAGES, _LABELS = 3, 1
_HINT = f"Install Debian's package dataset-fashion-mnist, or set {VARIABLE} to the folder with it."


def load_garment() -> Iterator[Row]:
    """The rows of ``retail/garment``: the official training part, then the official test part.

    Raises:
        MissingDataError: the files are not on this machine.
        DataError: a file is damaged.
    """
    folder = Path(os.environ.get(VARIABLE) or FOLDER)
    for part, prefix in PARTS.items():
        pictures = read_idx(folder, f"{prefix}-images-idx3-ubyte", _IMAGES)
        labels = read_idx(folder, f"{prefix}-labels-idx1-ubyte", _LABELS)
        if len(pictures) != len(labels) or (len(labels) and labels.max() >= len(LABELS)):
            raise DataError(
                f"The labels of {prefix} in {folder} are not those of its {len(pictures):,} "
                "pictures.",
                _HINT,
            )
        for number, (picture, label) in enumerate(zip(pictures, labels.tolist(), strict=True)):
            id = f"{part}-{number:05}"
            yield Row(
                id=id,
                image=ImageSource(partial(encode, picture), id),
                target=LABELS[label],
                group=id,
                split=part,
            )


def read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """The numbers of an IDX file: uint8 of ``dimensions`` dimensions.

    Raises:
        MissingDataError: neither the file nor it packed with gzip is there.
        DataError: it is not such a file.
    """
    import numpy as np

    path = folder / f"{name}.gz"
    try:
        if path.is_file():
            data = gzip.decompress(path.read_bytes())
        else:
            path = folder / name
            data = path.read_bytes()
    except FileNotFoundError:
        raise MissingDataError(
            f"Fashion-MNIST is not on this machine: {folder} has no {name}.gz.", _HINT
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"The file {path} can't be read ({type(error).__name__}).", _HINT
        ) from error
    header = 4 * (1 + dimensions)
    if len(data) < header:
        raise DataError(f"The file {path} is not complete, or not in the format IDX.", _HINT)
    shape = np.frombuffer(data[4:header], dtype=">u4").tolist()
    size = int(np.prod(shape, dtype=np.uint64))
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(data) != header + size:
        raise DataError(f"The file {path} is not complete, or not in the format IDX.", _HINT)
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def encode(pixels: np.ndarray) -> bytes:
    """A picture ``[height, width]`` of uint8 with a black margin, as BMP, which is not compressed.

    Raises:
        DataError: Pillow is not installed.
    """
    import numpy as np

    try:
        from PIL import Image
    except ImportError:
        raise DataError(
            "The pictures of garments need the package pillow.",
            "Run: pip install 'trunkline[images]'.",
        ) from None
    stream = io.BytesIO()
    Image.fromarray(np.pad(pixels, MARGIN)).save(stream, "BMP")
    return stream.getvalue()


GARMENT = DatasetSpec(
    name="retail/garment",
    description="small gray pictures of garments, and their kinds",
    task="classification",
    load=load_garment,
    license="MIT",
    source="Fashion-MNIST (Xiao et al. 2017), IDX files as in Debian's dataset-fashion-mnist",
    grouping="a picture: the files do not say which garments belong together",
    labels=LABELS,
    validation_share=0.05,
    modality="image",
)

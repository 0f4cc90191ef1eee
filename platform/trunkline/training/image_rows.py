"""Encode rows of pictures as examples: each is decoded once to check it, and kept if it fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trunkline.contracts import Row
from trunkline.data.pictures import read_pixels, to_tensor
from trunkline.data.prepare import Prepared
from trunkline.errors import DataError, TooLargeError
from trunkline.preprocessing import Preprocessing
from trunkline.tasks import AnyTask, ImageTask
from trunkline.tasks.batches import PATCH, PIXELS
from trunkline.training.job import EncodedParts, EncodedRows

if TYPE_CHECKING:
    import numpy as np
    import torch

    from trunkline.images import ImageSource

CACHE_BYTES = 1 << 30
"""Memory for prepared pictures of one training; others are decoded whenever they are used."""


class PictureCache:
    """Prepared pictures in memory, up to a number of bytes."""

    def __init__(self, preprocessing: Preprocessing, most: int = CACHE_BYTES) -> None:
        self.preprocessing = preprocessing
        self._left = most
        self._pixels: dict[str, np.ndarray] = {}

    def read(self, picture: ImageSource) -> np.ndarray:
        """``[height, width, 3]`` uint8 of a picture whose sha256 is known."""
        pixels = self._pixels.get(picture.sha256)
        if pixels is None:
            pixels = read_pixels(picture, self.preprocessing)
            if pixels.nbytes <= self._left:
                self._left -= pixels.nbytes
                self._pixels[picture.sha256] = pixels
        return pixels


class PictureReader:
    """Returns the normalized picture of one example, ``[3, height, width]`` float32.

    Attributes:
        row: the id of its row.
    """

    __slots__ = ("_cache", "_picture", "row")

    def __init__(self, row: str, picture: ImageSource, cache: PictureCache) -> None:
        self.row, self._picture, self._cache = row, picture, cache

    def __call__(
        self, change: Callable[[np.ndarray, str], np.ndarray] | None = None
    ) -> torch.Tensor:
        """Read it, and change the pixels before they are normalized.

        Args:
            change: called with ``[height, width, 3]`` uint8 and the row's id.
        """
        pixels = self._cache.read(self._picture)
        if change is not None:
            pixels = change(pixels, self.row)
        return to_tensor(pixels, self._cache.preprocessing)


def encode_image_parts(
    prepared: Prepared, task: AnyTask, preprocessing: Preprocessing
) -> EncodedParts:
    """Encode every picture that a job trains, validates or evaluates on.

    Raises:
        DataError: a picture can't be decoded; names its row.
    """
    assert isinstance(task, ImageTask)
    cache = PictureCache(preprocessing)
    split = prepared.split
    train, validation, test = (
        _encode(rows, task, cache)
        for rows in ((*split.train, *prepared.augmented), split.validation, split.test)
    )
    size = (preprocessing.height, preprocessing.width)
    return EncodedParts(train, validation, test, None, None, size)


def _encode(rows: Sequence[Row], task: ImageTask, cache: PictureCache) -> EncodedRows:
    examples: list[dict[str, Any]] = []
    for row in rows:
        try:
            cache.read(row.picture)
        except (DataError, TooLargeError) as error:
            raise DataError(f"Row {row.id!r}: {error.message}", error.hint) from error
        examples.append(
            {
                PIXELS: PictureReader(row.id, row.picture, cache),
                "sha256": row.picture.sha256,
                "size": max(1, -(-cache.preprocessing.pixels // PATCH)),
                "target": task.encode_target(row),
            }
        )
    return EncodedRows(examples, [], 0)

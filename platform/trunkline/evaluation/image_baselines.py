"""The core's baselines for pictures that need no base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from trunkline.contracts import BaselineContext, BaselinePredictions, BaselineSpec, Row
from trunkline.data.pictures import read_pixels
from trunkline.data.split import evenly
from trunkline.errors import UsageError
from trunkline.evaluation.baselines import Features, classified, regressed
from trunkline.preprocessing import Preprocessing

EDGE = 64
"""The pictures are resized to this height and width, in pixels."""

MAX_ROWS = 10_000
"""Training rows, and validation rows, that are used at most; they are taken evenly."""


def hog(context: BaselineContext) -> BaselinePredictions:
    """Histograms of oriented gradients (Dalal & Triggs 2005) + logistic or ridge regression.

    Gray pictures of 64 × 64 pixels, 9 orientations, cells of 8 × 8 pixels, blocks of 2 × 2 cells;
    C or alpha is the one that is best on validation. It knows edges, and nothing of any base.

    Raises:
        UsageError: scikit-image is not installed.
    """
    used = replace(
        context,
        train=tuple(evenly(context.train, MAX_ROWS)),
        validation=tuple(evenly(context.validation, MAX_ROWS)),
    )

    def features() -> Iterator[Features]:
        train, validation, test = map(_gradients, (used.train, used.validation, used.test))
        yield "HOG", train, validation, test

    fitted = regressed if context.recipe.task == "regression" else classified
    predicted = fitted(used, features())
    if len(used.train) == len(context.train):
        return predicted
    rows = f"{len(used.train):,} of {len(context.train):,} rows"
    return replace(predicted, detail=f"{predicted.detail}, {rows}")


def _gradients(rows: Sequence[Row]) -> Any:
    """Features of pictures, ``[rows, features]`` float32.

    Raises:
        DataError: a picture can't be read.
    """
    import numpy as np

    try:
        from skimage.feature import hog as histograms
    except ImportError:
        raise UsageError(
            "The baseline hog needs the package scikit-image.",
            "Run: pip install 'trunkline[images]'",
        ) from None
    size = Preprocessing(height=EDGE, width=EDGE)
    parts = []
    for row in rows:
        gray = read_pixels(row.picture, size).mean(axis=-1)
        parts.append(histograms(gray, cells_per_block=(2, 2)).astype(np.float32))
    return np.stack(parts)


PICTURED: tuple[BaselineSpec, ...] = (
    BaselineSpec(
        name="hog",
        description="histograms of oriented gradients + logistic or ridge regression",
        tasks=("classification", "regression"),
        predict=hog,
        modalities=("image",),
    ),
)
"""Registered by the plugin ``core``."""

"""Transforms that change the pictures of training rows, anew in each epoch.

They work on the prepared picture, at the size that the base reads. Crops are those of Szegedy et
al. 2015, mixup is that of Zhang et al. 2018.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from trunkline.contracts import TransformSpec
from trunkline.data.pictures import pillow

if TYPE_CHECKING:
    import numpy as np
    import torch

AREA = (0.7, 1.0)
"""Share of the picture that a crop keeps."""

DEGREES = 15.0
FACTORS = (0.8, 1.25)
"""Least and largest factor of brightness and of contrast."""

NOISE = 12.0
"""Largest deviation of noise, on the scale from 0 to 255."""

ALPHA = 0.2
"""Both parameters of the beta distribution from which mixup draws the share."""


def _horizontal_flip(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def _vertical_flip(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    return pixels[::-1] if rng.random() < 0.5 else pixels


def _random_crop(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """A part with 70 to 100 % of the area and a slightly other ratio, resized to the picture."""
    import numpy as np

    image_module, _ = pillow()
    height, width = pixels.shape[:2]
    area = rng.uniform(*AREA) * height * width
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3))) * width / height
    across = min(float(width), math.sqrt(area * ratio))
    down = min(float(height), math.sqrt(area / ratio))
    left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
    picture = image_module.fromarray(pixels)
    box = (left, top, left + across, top + down)
    return np.asarray(picture.resize((width, height), image_module.Resampling.BILINEAR, box=box))


def _random_rotation(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """Up to 15 degrees to either side; the corners get the mean color."""
    import numpy as np

    image_module, _ = pillow()
    mean = tuple(int(value) for value in pixels.mean(axis=(0, 1)))
    turned = image_module.fromarray(pixels).rotate(
        rng.uniform(-DEGREES, DEGREES), image_module.Resampling.BILINEAR, fillcolor=mean
    )
    return np.asarray(turned)


def _random_brightness(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """Brightness and contrast, each by a factor of 0.8 to 1.25."""
    import numpy as np

    low, high = map(math.log, FACTORS)
    brightness, contrast = (math.exp(rng.uniform(low, high)) for _ in range(2))
    values = pixels.astype(np.float32) * brightness
    mean = values.mean()
    return np.clip((values - mean) * contrast + mean, 0, 255).round().astype(np.uint8)


def _gaussian_noise(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """Noise of a deviation of 0 to 12, of the same kind in all colors."""
    import numpy as np

    deviation = rng.uniform(0, NOISE)
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0, deviation, pixels.shape)
    return np.clip(pixels + noise, 0, 255).round().astype(np.uint8)


def _mixup(
    pixels: torch.Tensor, others: torch.Tensor, rng: random.Random
) -> tuple[torch.Tensor, float]:
    share = rng.betavariate(ALPHA, ALPHA)
    return share * pixels + (1 - share) * others, share


def _spec(
    name: str, description: str, apply: Callable[[np.ndarray, random.Random], np.ndarray]
) -> TransformSpec:
    return TransformSpec(name=name, description=description, stage="pixels", apply=apply)


TRANSFORMS: tuple[TransformSpec, ...] = (
    _spec("horizontal-flip", "mirror half of the pictures, left and right", _horizontal_flip),
    _spec("vertical-flip", "mirror half of the pictures, top and bottom", _vertical_flip),
    _spec(
        "random-crop",
        "crop to 70 to 100 % of the area, and resize (Szegedy et al. 2015)",
        _random_crop,
    ),
    _spec("random-rotation", "rotate by up to 15 degrees to either side", _random_rotation),
    _spec(
        "random-brightness",
        "change brightness and contrast by factors of 0.8 to 1.25",
        _random_brightness,
    ),
    _spec("gaussian-noise", "add noise with a deviation of up to 12 of 255", _gaussian_noise),
    TransformSpec(
        name="mixup",
        description="mix the pictures and the losses of two rows (Zhang et al. 2018)",
        stage="mix",
        apply=_mixup,
    ),
)
"""Registered by the plugin ``core``."""

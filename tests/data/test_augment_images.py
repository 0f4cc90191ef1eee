"""The core's transforms of pictures: same shape, as random as the generator, and no more."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tiny_images import picture
from trunkline.contracts import DatasetSpec, Row, TransformSpec
from trunkline.data.augment_images import TRANSFORMS
from trunkline.data.prepare import default_recipe, prepare
from trunkline.errors import UsageError
from trunkline.plugins import load_plugins

CHANGES = [step for step in TRANSFORMS if step.stage == "pixels"]
PIXELS = np.asarray(picture(3, 40, 48))


def named(name: str) -> TransformSpec:
    return next(step for step in TRANSFORMS if step.name == name)


def changed(step: TransformSpec, seed: int, pixels: np.ndarray = PIXELS) -> np.ndarray:
    return np.asarray(step.apply(pixels, random.Random(seed)))


def test_they_are_registered_by_the_core() -> None:
    catalog = load_plugins(no_plugins=True)
    assert {step.name for step in TRANSFORMS} <= {step.name for step in catalog.transforms()}
    assert catalog.transform("core/horizontal-flip").changes_pictures


@pytest.mark.parametrize("step", CHANGES, ids=lambda step: step.name)
def test_shape_stays_and_the_seed_decides(step: TransformSpec) -> None:
    before = PIXELS.copy()
    results = [changed(step, seed) for seed in range(12)]
    assert all(result.shape == PIXELS.shape and result.dtype == np.uint8 for result in results)
    assert all(np.array_equal(result, changed(step, seed)) for seed, result in enumerate(results))
    assert len({result.tobytes() for result in results}) > 1
    assert np.array_equal(PIXELS, before)


@pytest.mark.parametrize("step", CHANGES, ids=lambda step: step.name)
@pytest.mark.parametrize("value", [0, 255])
def test_extreme_values_do_not_wrap_around(step: TransformSpec, value: int) -> None:
    pixels = np.full((8, 8, 3), value, dtype=np.uint8)
    for seed in range(8):
        assert abs(changed(step, seed, pixels).astype(int) - value).max() < 80


def test_flips_mirror_exactly() -> None:
    sides = {changed(named("horizontal-flip"), seed).tobytes() for seed in range(20)}
    assert sides == {PIXELS.tobytes(), PIXELS[:, ::-1].tobytes()}
    ends = {changed(named("vertical-flip"), seed).tobytes() for seed in range(20)}
    assert ends == {PIXELS.tobytes(), PIXELS[::-1].tobytes()}


def test_crop_keeps_most_of_the_picture() -> None:
    # Each pixel holds its place, so a crop shows which part it kept
    grid = np.zeros((64, 64, 3), dtype=np.uint8)
    grid[..., 0], grid[..., 1] = np.arange(64)[None], np.arange(64)[:, None]
    for seed in range(30):
        result = changed(named("random-crop"), seed, grid).astype(int)
        width, height = np.ptp(result[..., 0]) + 1, np.ptp(result[..., 1]) + 1
        assert 0.6 * 64 * 64 < width * height <= 64 * 64


def test_mixup_mixes_by_its_share() -> None:
    pixels, others = torch.ones(3, 3, 4, 4), torch.zeros(3, 3, 4, 4)
    shares = []
    for seed in range(20):
        result, share = named("mixup").apply(pixels, others, random.Random(seed))
        assert torch.allclose(result, torch.full_like(pixels, share))
        shares.append(share)
    assert min(shares) < 0.2
    assert max(shares) > 0.8


def test_transforms_of_pictures_are_refused_for_texts() -> None:
    rows = [Row(id=str(n), text=f"a {n}", target="ab"[n % 2], group=str(n)) for n in range(12)]
    spec = DatasetSpec(
        name="own/claims", description="", task="classification", load=lambda: rows, license="",
        source="", grouping="",
    )  # fmt: skip
    with pytest.raises(UsageError, match="horizontal-flip changes pictures, and own/claims holds"):
        prepare(spec, default_recipe(spec), [named("horizontal-flip")])

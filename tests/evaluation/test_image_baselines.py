"""The baseline on edges: it learns shapes, needs no base, and its cost is bounded."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from made_rows import make_recipe, make_split
from tiny_images import encoded
from trunkline.contracts import Row, Task
from trunkline.data.split import Split
from trunkline.errors import UsageError
from trunkline.evaluation import image_baselines
from trunkline.evaluation.baselines import Baseline, fit_baselines
from trunkline.evaluation.image_baselines import PICTURED
from trunkline.plugins import load_plugins


def striped(number: int) -> Row:
    """Stripes across or down, in colors that say nothing."""
    rng = np.random.default_rng(number)
    across = number % 2 == 0
    line = np.repeat(rng.integers(0, 2, 12) * 160 + 40, 4)
    gray = np.tile(line, (48, 1)) + rng.normal(0, 5, (48, 48))
    pixels = np.clip((gray if across else gray.T)[..., None] * rng.uniform(0.5, 1, 3), 0, 255)
    image = encoded(Image.fromarray(pixels.astype(np.uint8)))
    return Row(
        id=str(number), target="down" if across else "across", group=str(number), image=image
    )


def stripes() -> Split:
    rows = [striped(number) for number in range(60)]
    random.Random(0).shuffle(rows)
    return make_split(rows[:36], rows[36:46], rows[46:])


def fitted(split: Split, task: Task = "classification") -> Baseline:
    (baseline,) = fit_baselines(PICTURED, make_recipe(task=task), split, None)
    return baseline


def test_it_learns_what_edges_say() -> None:
    split = stripes()
    baseline = fitted(split)
    assert baseline.predictions == [row.target for row in split.test]
    assert baseline.detail.startswith("HOG, C=")


def test_it_does_not_see_the_targets_of_the_test_rows() -> None:
    split = stripes()
    hidden = replace(split, test=tuple(replace(row, target="down") for row in split.test))
    assert fitted(hidden).predictions == fitted(split).predictions


def test_it_predicts_numbers() -> None:
    split = stripes()

    def numbers(rows: Any) -> list[Row]:
        return [replace(row, target=float(row.target == "down")) for row in rows]

    split = make_split(*(numbers(part) for part in (split.train, split.validation, split.test)))
    baseline = fitted(split, "regression")
    wrong = [
        abs(float(a) - float(row.target))
        for a, row in zip(baseline.predictions, split.test, strict=True)
    ]  # type: ignore[arg-type]
    assert max(wrong) < 0.5
    assert baseline.detail.startswith("HOG, alpha=")


def test_training_rows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_baselines, "MAX_ROWS", 8)
    split = stripes()
    baseline = fitted(split)
    assert len(baseline.predictions) == len(split.test)
    assert baseline.detail.endswith(", 8 of 36 rows")


def test_every_recipe_for_pictures_has_it() -> None:
    catalog = load_plugins(no_plugins=True)
    for task in ("classification", "regression"):
        names = [one.name for one in catalog.baselines_for(make_recipe(task=task), "image")]
        assert names[-2:] == ["frozen-features", "hog"]
        assert "hog" not in [one.name for one in catalog.baselines_for(make_recipe(task=task))]


def test_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    with pytest.raises(UsageError, match="needs the package scikit-image") as caught:
        fitted(stripes())
    assert "trunkline[images]" in str(caught.value.hint)

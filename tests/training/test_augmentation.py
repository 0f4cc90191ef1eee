"""Pictures are augmented anew in each epoch, and in the same way after an interruption."""

from __future__ import annotations

import random
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from image_workbench import opened_images, shapes, shapes_recipe, tiny_resnet
from tiny_images import encoded, picture
from trunkline.contracts import Row, TransformSpec
from trunkline.data.augment_images import TRANSFORMS
from trunkline.errors import Interrupted, PluginCallError
from trunkline.images import ImageSource
from trunkline.preprocessing import Preprocessing
from trunkline.tasks.batches import PIXELS
from trunkline.tasks.classification import ClassificationTask
from trunkline.training.augmentation import (
    OTHERS,
    SHARE,
    PictureAugmentation,
    is_repeatable,
    mixed_loss,
    take_mixed,
)
from trunkline.training.config import RecipeConfig
from trunkline.training.image_rows import PictureCache, PictureReader

__all__ = ["shapes", "tiny_resnet"]

ALL = [step.name for step in TRANSFORMS]


def named(*names: str) -> list[TransformSpec]:
    return [step for step in TRANSFORMS if step.name in names]


def rows(count: int = 6) -> list[Row]:
    return [
        Row(
            id=str(n),
            target="ab"[n % 2],
            group=str(n),
            image=ImageSource(encoded(picture(n))).identified(),
        )
        for n in range(count)
    ]


def batch_of(
    steps: list[TransformSpec], epoch: int, order: tuple[int, ...] = (0, 1, 2), seed: int = 1
) -> dict[str, torch.Tensor]:
    """A batch of three rows as it is in an epoch."""
    cache = PictureCache(Preprocessing(height=32, width=32))
    drawn = rows()
    examples = [
        {PIXELS: PictureReader(drawn[n].id, drawn[n].picture, cache), "target": n % 2}
        for n in order
    ]
    task = ClassificationTask(("a", "b"))
    collate = partial(task.collate, pad_id=0)
    partners = [examples[-1], *examples[:-1]] if len(examples) > 1 else []
    augmentation = PictureAugmentation(steps, seed)
    return augmentation.batch(examples, partners, collate, epoch)  # type: ignore[arg-type]


def test_epoch_seed_and_row_decide_and_the_order_does_not() -> None:
    steps = named("random-crop", "gaussian-noise")
    pixels = batch_of(steps, 0)["pixel_values"]
    assert torch.equal(pixels, batch_of(steps, 0)["pixel_values"])
    assert torch.equal(pixels.flip(0), batch_of(steps, 0, order=(2, 1, 0))["pixel_values"])
    for other in (batch_of(steps, 1), batch_of(steps, 0, seed=2), batch_of([], 0)):
        assert all(
            not torch.equal(a, b) for a, b in zip(pixels, other["pixel_values"], strict=True)
        )


def test_no_step_changes_nothing() -> None:
    assert not PictureAugmentation([], 0)
    assert set(batch_of([], 0)) == {"pixel_values", "targets"}


def test_mixed_batch_has_both_targets_and_their_share() -> None:
    plain, mixed = batch_of([], 0), batch_of(named("mixup"), 0)
    share = float(mixed[SHARE])
    others = plain["pixel_values"].roll(1, dims=0)
    expected = share * plain["pixel_values"] + (1 - share) * others
    assert torch.allclose(mixed["pixel_values"], expected)
    assert mixed[OTHERS].tolist() == plain["targets"].roll(1).tolist()

    outputs = torch.randn(3, 2)
    loss = torch.nn.functional.cross_entropy
    value = mixed_loss(loss, outputs, mixed["targets"], take_mixed(mixed))
    both = [loss(outputs, targets) for targets in (plain["targets"], plain["targets"].roll(1))]
    assert torch.allclose(value, share * both[0] + (1 - share) * both[1])
    assert set(mixed) == {"pixel_values", "targets"}


def test_single_row_is_not_mixed() -> None:
    assert SHARE not in batch_of(named("mixup"), 0, order=(1,))


def step(apply: Any, stage: Any = "pixels") -> TransformSpec:
    return TransformSpec(name="toy/step", description="d", stage=stage, apply=apply)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (step(lambda pixels, rng: pixels[:5]), r"toy/step gave \[5, 32, 3\] uint8 for row '0'"),
        (step(lambda pixels, rng: pixels / 2), "float64 for row '0', not"),
        (step(lambda pixels, rng: None), "gave NoneType for row '0'"),
        (step(lambda pixels, rng: 1 / 0), "toy/step on row '0' failed: ZeroDivisionError"),
        (step(lambda pixels, others, rng: (pixels, 2.0), "mix"), "and 2.0, not"),
        (step(lambda pixels, others, rng: pixels, "mix"), "toy/step failed"),
    ],
    ids=["shape", "dtype", "none", "raises", "share", "no share"],
)
def test_step_that_breaks_its_contract_is_named(bad: TransformSpec, problem: str) -> None:
    with pytest.raises(PluginCallError, match=problem):
        batch_of([bad], 0)


def test_step_with_random_numbers_of_its_own_is_not_repeatable() -> None:
    def own(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
        return np.roll(pixels, random.randrange(1, 30), axis=0)

    assert is_repeatable(TRANSFORMS, rows()[:2])
    assert not all(is_repeatable([step(own)], rows()[:2]) for _ in range(5))


# ------------------------------------------------------------------------------------ trainings


def recipe(folder: Path, *transforms: str, **settings: Any) -> RecipeConfig:
    config = shapes_recipe(folder, **settings)
    return config.model_copy(update={"transforms": list(transforms)})


def test_resumed_training_sees_the_same_pictures(
    tmp_path: Path, tiny_resnet: Path, shapes: Path
) -> None:
    settings = {"max_steps": 6, "per_device_train_batch_size": 12, "evals_per_epoch": 3}
    config = recipe(shapes, *ALL, **settings)
    digests = {}
    for platform in opened_images(tmp_path / "complete", tiny_resnet):
        digests["complete"] = platform.train(config).version.digest
        digests["plain"] = platform.train(recipe(shapes, **settings)).version.digest
    for stop in (6, 8):  # in the middle of an epoch, and at its end
        stops = chain(repeat(False, stop), repeat(True))
        for platform in opened_images(tmp_path / f"stopped-{stop}", tiny_resnet):
            with pytest.raises(Interrupted):
                platform.train(config, should_stop=partial(next, stops))
            resumed = platform.train(config, resume=1)
            digests[f"stopped-{stop}"] = resumed.version.digest
    assert len({digests[name] for name in digests if name != "plain"}) == 1
    assert digests["plain"] != digests["complete"]


def test_pictures_are_mixed_although_each_is_a_pass_of_its_own(
    tmp_path: Path, tiny_resnet: Path, shapes: Path
) -> None:
    """A pass on a CPU holds one picture of 640 px."""
    settings = {"max_steps": 1, "per_device_train_batch_size": 2, "image_size": 640}
    for platform in opened_images(tmp_path / "workspace", tiny_resnet):
        mixed = platform.train(recipe(shapes, "mixup", **settings)).version.digest
        plain = platform.train(recipe(shapes, **settings)).version.digest
        assert mixed != plain


def test_run_records_the_transforms(tmp_path: Path, tiny_resnet: Path, shapes: Path) -> None:
    for platform in opened_images(tmp_path / "workspace", tiny_resnet):
        platform.train(recipe(shapes, "horizontal-flip", "mixup", max_steps=1))
        recorded = platform.registry.runs.get(1).specification
        assert recorded is not None
        named_steps = [(one["name"], one["stage"]) for one in recorded["transforms"]]
        assert named_steps == [("horizontal-flip", "pixels"), ("mixup", "mix")]


def test_mixup_of_numbers(tmp_path: Path, tiny_resnet: Path, shapes: Path) -> None:
    from trunkline.cli.file_options import make_own_recipe

    table = tmp_path / "areas.csv"
    lines = [f"{shapes / 'circle' / f'{index}.png'},{index + 1}" for index in range(18)]
    table.write_text("\n".join(["photo,area", *lines]))
    config = make_own_recipe("own/areas", table, {"image": "photo", "target": "area"})
    config = config.model_copy(update={"transforms": ["mixup"]})
    for platform in opened_images(tmp_path / "numbers", tiny_resnet):
        assert platform.train(config, max_steps=1, r=4).version.number == 1

"""Augment the pictures of a training: each row anew in each epoch, and the same after a resume.

What a row gets depends on the seed, the epoch, the row's id and the name of the step, and on
nothing that was drawn before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from trunkline.contracts import LossFunction, Row, TransformSpec
from trunkline.errors import PluginCallError, plugin_call
from trunkline.preprocessing import Preprocessing
from trunkline.tasks.batches import PIXELS

if TYPE_CHECKING:
    import numpy as np
    import torch

Batch = dict[str, "torch.Tensor"]
Collate = Callable[[Sequence[Mapping[str, Any]]], Batch]

OTHERS, SHARE = "other_targets", "share"
"""The keys of a mixed batch: the targets of the pictures that were mixed in, and what the rows' own
targets count, from 0 to 1."""

_TRIED = 64
"""Edge of the pictures on which a plugin's steps are tried."""

_HINT = "See the TransformSpec contract in docs/hooks.md."


class PictureAugmentation:
    """The steps of a recipe that change pictures while they are trained on.

    It is false if the recipe has none.

    Args:
        transforms: of the recipe; those of other stages are skipped.
        seed: of the recipe.
    """

    def __init__(self, transforms: Sequence[TransformSpec], seed: int) -> None:
        self._changes = [step for step in transforms if step.stage == "pixels"]
        self._mixes = [step for step in transforms if step.stage == "mix"]
        self._seed = seed

    def __bool__(self) -> bool:
        return bool(self._changes or self._mixes)

    def batch(
        self,
        examples: Sequence[Mapping[str, Any]],
        partners: Sequence[Mapping[str, Any]],
        collate: Collate,
        epoch: int,
    ) -> Batch:
        """Collate the examples of a part of a step, augmented.

        Args:
            examples: of pictures, from :mod:`~trunkline.training.image_rows`.
            partners: the example that each is mixed with; empty: none is mixed.
            collate: of the task.
            epoch: counted from 0.

        Raises:
            PluginCallError: a step raised, or gave something else than pixels of the same shape.
        """

        def changed(pixels: np.ndarray, row: str) -> np.ndarray:
            return self.changed(pixels, row, epoch)

        def collated(rows: Sequence[Mapping[str, Any]]) -> Batch:
            return collate([{**one, PIXELS: partial(one[PIXELS], changed)} for one in rows])

        batch = collated(examples)
        if partners and self._mixes:
            others = collated(partners)
            for step in self._mixes:
                batch = self._mixed(step, batch, others, epoch, examples[0][PIXELS].row)
        return batch

    def changed(self, pixels: np.ndarray, row: str, epoch: int) -> np.ndarray:
        """The picture of a row as it is in an epoch; both ``[height, width, 3]`` uint8.

        Raises:
            PluginCallError: as :meth:`batch`.
        """
        for step in self._changes:
            with plugin_call(f"The transform {step.name} on row {row!r}", _HINT):
                result = step.apply(pixels, self._rng(step, epoch, row))
            if (kind := _kind(result)) != (wanted := _kind(pixels)):
                raise PluginCallError(
                    f"The transform {step.name} gave {kind} for row {row!r}, not {wanted}.", _HINT
                )
            pixels = result
        return pixels

    def _mixed(
        self, step: TransformSpec, batch: Batch, others: Batch, epoch: int, row: str
    ) -> Batch:
        """The batch with each picture mixed with its partner."""
        pixels, partners = batch["pixel_values"], others["pixel_values"]
        with plugin_call(f"The transform {step.name}", _HINT):
            result, share = step.apply(pixels, partners, self._rng(step, epoch, row))
        if _kind(result) != _kind(pixels) or not isinstance(share, float) or not 0 <= share <= 1:
            raise PluginCallError(
                f"The transform {step.name} gave {_kind(result)} and {share!r:.20}, not "
                f"{_kind(pixels)} and a share from 0 to 1.",
                _HINT,
            )
        return {
            **batch,
            "pixel_values": result,
            OTHERS: others["targets"],
            SHARE: pixels.new_tensor(share),
        }

    def _rng(self, step: TransformSpec, epoch: int, row: str) -> random.Random:
        return random.Random(f"{self._seed}/{epoch}/{step.name}/{row}")


def is_repeatable(transforms: Sequence[TransformSpec], rows: Sequence[Row]) -> bool:
    """Whether the steps give the same pictures the second time, tried on a few rows.

    Raises:
        PluginCallError: as :meth:`PictureAugmentation.batch`.
        DataError: a picture can't be decoded.
    """
    import torch

    from trunkline.training.image_rows import PictureCache, PictureReader

    def collate(examples: Sequence[Mapping[str, Any]]) -> Batch:
        pixels = torch.stack([example[PIXELS]() for example in examples])
        return {"pixel_values": pixels, "targets": torch.zeros(len(examples))}

    cache = PictureCache(Preprocessing(height=_TRIED, width=_TRIED))
    examples = [{PIXELS: PictureReader(row.id, row.picture, cache)} for row in rows]
    augmentation = PictureAugmentation(transforms, 0)
    partners = examples[1:] + examples[:1]
    one, other = (
        augmentation.batch(examples, partners, collate, 0)["pixel_values"] for _ in range(2)
    )
    return torch.equal(one, other)


def without_pixels(example: Mapping[str, Any]) -> Mapping[str, Any]:
    """The example as a data loader batches it: a picture is read when its part is computed."""
    import torch

    return {**example, PIXELS: lambda: torch.empty(0)} if PIXELS in example else example


def mixed_loss(
    loss: LossFunction, outputs: torch.Tensor, targets: torch.Tensor, mixed: Batch
) -> torch.Tensor:
    """The loss of a batch; of a mixed one that of both targets, weighted by their shares.

    Args:
        mixed: what :func:`take_mixed` took out of the batch.
    """
    value = loss(outputs, targets)
    if mixed:
        share = mixed[SHARE]
        value = share * value + (1 - share) * loss(outputs, mixed[OTHERS])
    return value


def take_mixed(batch: Batch) -> Batch:
    """Remove from a batch what only the loss reads; empty if the batch was not mixed."""
    return {name: batch.pop(name) for name in (OTHERS, SHARE) if name in batch}


def _kind(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        return type(value).__name__
    return f"{list(shape)} {str(dtype).removeprefix('torch.')}"

"""Batches of examples: padded token ids, grouped by length, or pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


PIXELS = "pixels"
"""The key of an example of a picture: a function that returns ``[3, height, width]`` float32."""

PATCH = 32 * 32
"""Pixels of a picture that count as one token."""


def inputs_of(examples: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """What the model reads of examples: padded token ids, or ``pixel_values`` of pictures.

    ``pixel_values`` is ``[batch, 3, height, width]`` float32.
    """
    if PIXELS not in examples[0]:
        return pad([example["input_ids"] for example in examples], pad_id)
    import torch

    return {"pixel_values": torch.stack([example[PIXELS]() for example in examples])}


def model_inputs(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a batch that the model takes."""
    return {name: tensor for name, tensor in batch.items() if name != "targets"}


def size_of(example: Mapping[str, Any]) -> int:
    """Tokens of an example; of a picture one for each :data:`PATCH` pixels."""
    return example["size"] if PIXELS in example else len(example["input_ids"])


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, *, left: bool = False
) -> dict[str, torch.Tensor]:
    """Pad sequences to the length of the longest.

    Args:
        sequences: token ids.
        pad_id: of the padding.
        left: pad before the tokens instead of after them.

    Returns:
        ``input_ids`` and ``attention_mask``, both ``[batch, tokens]`` int64; with ``left`` also
        ``position_ids``, counted from the first token that is not padding.
    """
    import torch

    longest = max(len(ids) for ids in sequences)
    input_ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), longest), dtype=torch.long)
    for row, ids in enumerate(sequences):
        span = slice(longest - len(ids), longest) if left else slice(0, len(ids))
        input_ids[row, span] = torch.tensor(ids, dtype=torch.long)
        mask[row, span] = 1
    batch = {"input_ids": input_ids, "attention_mask": mask}
    if left:
        batch["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return batch


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield indices in batches of similar length, the longest first to fail early on memory."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def within_tokens(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Yield indices in batches of similar length, each of at most ``limit`` tokens with padding.

    A sequence that is longer than ``limit`` is a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > limit:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch

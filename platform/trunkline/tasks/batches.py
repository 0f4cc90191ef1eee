"""Padded batches of token ids, grouped by length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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

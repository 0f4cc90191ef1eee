"""Token ids → padded tensors. Owns padding; must not know targets or models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, *, left: bool = False
) -> dict[str, torch.Tensor]:
    """Pad to the longest.

    Returns:
        ``input_ids`` and ``attention_mask``, both ``[batch, tokens]`` int64; with ``left`` also
        ``position_ids``, counted from the first real token.
    """
    import torch

    longest = max(len(ids) for ids in sequences)
    input_ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), longest), dtype=torch.long)
    for row, ids in enumerate(sequences):
        where = slice(longest - len(ids), longest) if left else slice(0, len(ids))
        input_ids[row, where] = torch.tensor(ids, dtype=torch.long)
        mask[row, where] = 1
    batch = {"input_ids": input_ids, "attention_mask": mask}
    if left:
        batch["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return batch


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, the longest first (so memory runs out early)."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]

"""Outputs of a fused linear layer, for tests that compare them."""

from __future__ import annotations

import torch

from trunkline.bases.linear import FusedLinear


def compute_all(fused: FusedLinear, x: torch.Tensor) -> torch.Tensor:
    """The outputs of all members side by side, ``[rows, sum of outputs]``."""
    return torch.cat([fused.part(index, x) for index in range(len(fused.names))], -1)

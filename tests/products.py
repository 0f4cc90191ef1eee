"""What a product of the trunk gives, for tests that compare it.

Owns: putting its layers side by side. Must not know: how they are computed.
"""

from __future__ import annotations

import torch

from trunkline.bases.linear import FusedLinear


def whole(fused: FusedLinear, x: torch.Tensor) -> torch.Tensor:
    """All layers of a product, ``[rows, sum of outputs]``."""
    return torch.cat([fused.part(index, x) for index in range(len(fused.names))], -1)

"""The loss ``retail/huber``: Huber loss, for prices with a long tail of outliers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trunkline.contracts import LossContext, LossFunction, LossSpec

if TYPE_CHECKING:
    import torch

DELTA = 0.5
"""In standard deviations of the target on the recipe's scale.

On the logarithm of the unit prices (standard deviation about 0.75) the loss is quadratic up to a
factor of about 1.45 in price, and linear beyond.
"""


def build_huber(context: LossContext) -> LossFunction:
    """Huber loss with threshold :data:`DELTA`, averaged over the batch.

    With the error ``e = output - target``: ``e² / 2`` where ``|e| <= delta``, else
    ``delta * (|e| - delta / 2)``. No row's gradient exceeds ``delta`` (Huber 1964,
    "Robust Estimation of a Location Parameter", section 4). Outputs and targets are ``[batch]``.
    """
    from torch.nn.functional import huber_loss

    def huber(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return huber_loss(outputs, targets, delta=DELTA)

    return huber


HUBER = LossSpec(
    name="retail/huber",
    description=f"Huber loss: quadratic up to {DELTA} standard deviations, linear beyond",
    task="regression",
    build=build_huber,
    is_mean=True,
)

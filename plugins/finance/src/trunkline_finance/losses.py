"""The loss ``finance/cost-sensitive``: cross entropy plus the expected misclassification cost.

The costs come from :mod:`trunkline_finance.costs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trunkline.contracts import LossContext, LossFunction, LossSpec
from trunkline.errors import UsageError
from trunkline_finance.costs import costs_of

if TYPE_CHECKING:
    import torch

COST_WEIGHT = 1.0


def build_cost_sensitive(context: LossContext) -> LossFunction:
    """Cross-entropy plus the expected cost of an answer drawn from the softmax.

    For logits ``z`` and true label ``i`` of each row, ``p = softmax(z)``::

        loss = mean( -log p_i  +  COST_WEIGHT * sum_j p_j C(i, j) )

    The second term is the cost of Elkan, "The Foundations of Cost-Sensitive Learning"
    (IJCAI 2001, section 1), in expectation over the model's own answers. It is zero exactly
    where the first term is zero, so it ranks mistakes and does not move the optimum of
    separable data.

    Returns:
        ``loss(logits, targets)``: ``[batch, labels]`` float and ``[batch]`` int64 → scalar.

    Raises:
        UsageError: the context names no labels.
        NotFoundError: a label has no cost.
    """
    if not context.labels:
        raise UsageError(
            "The loss finance/cost-sensitive was built without labels.",
            "Use it in a classification recipe.",
        )
    import torch
    from torch.nn.functional import cross_entropy

    costs = torch.tensor(costs_of(context.labels).matrix, dtype=torch.float32)

    def cost_sensitive(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        of_row = costs.to(logits.device)[targets]
        expected = (logits.softmax(dim=-1) * of_row).sum(dim=-1).mean()
        return cross_entropy(logits, targets) + COST_WEIGHT * expected

    return cost_sensitive


COST_SENSITIVE = LossSpec(
    name="finance/cost-sensitive",
    description="cross-entropy plus the expected misclassification cost (Elkan 2001)",
    task="classification",
    build=build_cost_sensitive,
    is_mean=True,
)

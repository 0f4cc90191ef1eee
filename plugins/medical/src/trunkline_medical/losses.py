"""The loss ``medical/hierarchical``: cross entropy that also rewards the right family of chapters.

The families come from :mod:`trunkline_medical.chapters`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trunkline.contracts import LossContext, LossFunction, LossSpec
from trunkline.errors import UsageError
from trunkline_medical.chapters import distances

if TYPE_CHECKING:
    import torch

WEIGHT = 0.25
"""The distance term is at most 0.5 per row, so the cross-entropy dominates and the distance ranks
the mistakes. Both terms are minimal when the true chapter has all the probability."""


def build_hierarchical(context: LossContext) -> LossFunction:
    """Cross-entropy plus ``WEIGHT`` times the expected tree distance.

    For logits z of a row with the true chapter y, and p = softmax(z)::

        loss = -log p[y] + WEIGHT * sum_j p[j] * d(y, j)        d = 0, 1 or 2

    averaged over the batch.

    Returns:
        ``loss(logits [batch, labels], targets [batch]) -> scalar``, in float32.

    Raises:
        UsageError: the context has no labels.
        NotFoundError: a label is not the title of a chapter.
    """
    if not context.labels:
        raise UsageError(
            "The loss medical/hierarchical was built without labels.",
            "Use it in a classification recipe.",
        )
    table = distances(context.labels)

    import torch
    from torch.nn.functional import cross_entropy

    tree = torch.tensor(table, dtype=torch.float32)

    def hierarchical(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        apart = tree.to(logits.device)[targets]
        expected = (logits.softmax(dim=-1) * apart).sum(dim=-1).mean()
        return cross_entropy(logits, targets) + WEIGHT * expected

    return hierarchical


HIERARCHICAL = LossSpec(
    name="medical/hierarchical",
    description=f"cross-entropy + {WEIGHT:g} x expected distance in the tree of chapters",
    task="classification",
    build=build_hierarchical,
    is_mean=True,
)

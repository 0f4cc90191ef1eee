"""The metric ``finance/expected_cost``: the mean misclassification cost of the predictions.

The costs come from :mod:`trunkline_finance.costs`.
"""

from __future__ import annotations

from trunkline.contracts import MetricSpec, Scored
from trunkline_finance.costs import costs_of


def expected_cost(scored: Scored) -> float:
    """Mean of ``C(target, prediction)`` over the rows: 0 is the best value, 2 the worst.

    Raises:
        NotFoundError: a target or a prediction has no cost.
    """
    import numpy as np

    labels = scored.labels
    position = costs_of(labels).position()
    if not position.keys() >= (seen := {*scored.targets, *scored.predictions}):
        labels = tuple(sorted(seen.union(labels)))
        position = costs_of(labels).position()
    true = np.fromiter((position[label] for label in scored.targets), dtype=np.intp)
    answered = np.fromiter((position[label] for label in scored.predictions), dtype=np.intp)
    return float(costs_of(labels).matrix[true, answered].mean())


EXPECTED_COST = MetricSpec(
    name="finance/expected_cost",
    description="mean misclassification cost by the plugin's cost table (Elkan 2001)",
    task="classification",
    compute=expected_cost,
    higher_is_better=False,
)

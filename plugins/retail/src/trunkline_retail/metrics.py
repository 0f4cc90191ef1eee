"""The metric ``retail/within_25_percent``: the share of predictions within 25 % of the price."""

from __future__ import annotations

from trunkline.contracts import MetricSpec, Scored

TOLERANCE = 0.25


def within_25_percent(scored: Scored) -> float:
    """Share of rows with ``|prediction - target| <= 0.25 * |target|``, from 0 to 1."""
    import numpy as np

    targets = np.asarray(scored.targets, dtype=np.float64)
    errors = np.abs(np.asarray(scored.predictions, dtype=np.float64) - targets)
    return float(np.mean(errors <= TOLERANCE * np.abs(targets)))


WITHIN_25_PERCENT = MetricSpec(
    name="retail/within_25_percent",
    description="share of predictions within 25 % of the true price",
    task="regression",
    compute=within_25_percent,
    higher_is_better=True,
)

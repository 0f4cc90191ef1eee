"""The metric ``manufacturing/defect_recall``: the share of defective cells that are found."""

from __future__ import annotations

from trunkline.contracts import MetricSpec, Scored
from trunkline_manufacturing.datasets import DEFECTIVE


def defect_recall(scored: Scored) -> float:
    """Share of the defective rows that are predicted as defective; 1 if none is defective."""
    pairs = zip(scored.targets, scored.predictions, strict=True)
    hits = [prediction == DEFECTIVE for target, prediction in pairs if target == DEFECTIVE]
    return sum(hits) / len(hits) if hits else 1.0


DEFECT_RECALL = MetricSpec(
    name="manufacturing/defect_recall",
    description="share of the defective cells that are found",
    task="classification",
    compute=defect_recall,
)

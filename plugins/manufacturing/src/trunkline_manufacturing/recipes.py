"""The LoRA adapters that the domain can train."""

from __future__ import annotations

from trunkline.contracts import Gate, RecipeSpec
from trunkline_manufacturing.datasets import DATASETS
from trunkline_manufacturing.metrics import DEFECT_RECALL

_DEFECT, _PROBABILITY = (dataset.name for dataset in DATASETS)

RECIPES: tuple[RecipeSpec, ...] = (
    RecipeSpec(
        name=_DEFECT,
        description="whether a solar cell is defective",
        dataset=_DEFECT,
        task="classification",
        metrics=("accuracy", "macro_f1", DEFECT_RECALL.name),
        gate=Gate(metric="accuracy"),
    ),
    RecipeSpec(
        name=_PROBABILITY,
        description="how probable it is that a solar cell is defective",
        dataset=_PROBABILITY,
        task="regression",
        metrics=("mae", "r_squared"),
        gate=Gate(metric="mae"),
    ),
)

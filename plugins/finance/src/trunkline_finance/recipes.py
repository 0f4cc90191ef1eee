"""The LoRA adapters that this domain can train."""

from __future__ import annotations

from trunkline.contracts import Gate, RecipeSpec, Settings, Template

METRICS = ("accuracy", "macro_f1", "finance/expected_cost")

RECIPES = (
    RecipeSpec(
        name="finance/naics-sector",
        description="sector of a business from a description of its activity",
        dataset="finance/naics-sector",
        task="classification",
        template=Template(prompt="Business: {text}", clean=("strip", "squeeze")),
        settings=Settings(num_train_epochs=4),
        loss="finance/cost-sensitive",
        metrics=METRICS,
        gate=Gate(metric="accuracy"),
    ),
    RecipeSpec(
        name="finance/transactions",
        description="spending category of a bank-statement line",
        dataset="finance/transactions",
        task="classification",
        template=Template(
            prompt="Bank statement line: {text}", clean=("strip", "squeeze", "lowercase")
        ),
        settings=Settings(num_train_epochs=3),
        loss="finance/cost-sensitive",
        metrics=METRICS,
        gate=Gate(metric="accuracy"),
    ),
)

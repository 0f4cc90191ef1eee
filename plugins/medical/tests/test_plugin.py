"""The specs that the plugin yields; listing them imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import trunkline_medical

HOOKS = (
    trunkline_medical.trunkline_datasets,
    trunkline_medical.trunkline_recipes,
    trunkline_medical.trunkline_losses,
    trunkline_medical.trunkline_metrics,
    trunkline_medical.trunkline_transforms,
)
CORE_METRICS = {"accuracy", "macro_f1", "exact_match"}


def specs(hook: Any) -> dict[str, Any]:
    return {spec.name: spec for spec in hook()}


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_every_name_is_qualified_by_the_domain(hook: Any) -> None:
    assert all(name.startswith("medical/") for name in specs(hook))


def test_recipes_name_only_what_exists() -> None:
    datasets = specs(trunkline_medical.trunkline_datasets)
    losses = specs(trunkline_medical.trunkline_losses)
    metrics = specs(trunkline_medical.trunkline_metrics)
    transforms = specs(trunkline_medical.trunkline_transforms)
    for recipe in trunkline_medical.trunkline_recipes():
        assert datasets[recipe.dataset].task == recipe.task
        assert recipe.loss in {"default", *losses}
        assert {*recipe.metrics, recipe.gate.metric} <= {*CORE_METRICS, *metrics}
        assert set(recipe.transforms) <= set(transforms)


def test_the_recipes_use_every_loss_metric_and_transform() -> None:
    recipes = list(trunkline_medical.trunkline_recipes())
    used = {recipe.loss for recipe in recipes}
    used |= {name for recipe in recipes for name in (*recipe.metrics, *recipe.transforms)}
    for hook in HOOKS[2:]:
        assert set(specs(hook)) <= used


def test_listing_everything_imports_nothing_heavy() -> None:
    program = (
        "import sys, trunkline_medical as plugin\n"
        "for name in dir(plugin):\n"
        "    if name.startswith('trunkline_'): list(getattr(plugin, name)())\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'simple_icd_10_cm'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr

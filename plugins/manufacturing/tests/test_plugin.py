"""The specs that the plugin yields; listing them imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import pytest

import trunkline_manufacturing
from trunkline.contracts import Scored
from trunkline_manufacturing.metrics import defect_recall

HOOKS = (
    trunkline_manufacturing.trunkline_datasets,
    trunkline_manufacturing.trunkline_recipes,
    trunkline_manufacturing.trunkline_metrics,
)
CORE_METRICS = {"accuracy", "macro_f1", "mae", "r_squared"}


def specs(hook: Any) -> dict[str, Any]:
    return {spec.name: spec for spec in hook()}


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_every_name_is_qualified_by_the_domain(hook: Any) -> None:
    assert all(name.startswith("manufacturing/") for name in specs(hook))


def test_recipes_name_only_what_exists() -> None:
    datasets = specs(trunkline_manufacturing.trunkline_datasets)
    metrics = specs(trunkline_manufacturing.trunkline_metrics)
    for recipe in trunkline_manufacturing.trunkline_recipes():
        assert datasets[recipe.dataset].task == recipe.task
        assert datasets[recipe.dataset].modality == "image"
        assert {*recipe.metrics, recipe.gate.metric} <= {*CORE_METRICS, *metrics}


def test_the_entry_point_loads_the_module() -> None:
    (contributed,) = entry_points(group="trunkline", name="manufacturing")
    assert contributed.load() is trunkline_manufacturing


def test_listing_everything_imports_nothing_heavy() -> None:
    program = (
        "import sys, trunkline_manufacturing as plugin\n"
        "for name in dir(plugin):\n"
        "    if name.startswith('trunkline_'): list(getattr(plugin, name)())\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'PIL', 'elpv_dataset'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("targets", "predictions", "recall"),
    [
        (["defective", "defective", "functional"], ["defective", "functional", "functional"], 0.5),
        (["functional"], ["defective"], 1.0),
        (["defective"], ["functional"], 0.0),
    ],
)
def test_recall_is_the_share_of_defects_that_are_predicted(
    targets: list[str], predictions: list[str], recall: float
) -> None:
    assert defect_recall(Scored(targets=targets, predictions=predictions)) == recall

"""The specs that the plugin yields; listing them imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pluggy
import pytest

import trunkline_retail
from trunkline import hookspecs


@pytest.fixture
def hooks() -> pluggy.HookRelay:
    manager = pluggy.PluginManager("trunkline")
    manager.add_hookspecs(hookspecs)
    manager.register(trunkline_retail)
    manager.check_pending()
    return manager.hook


def names(results: list[object]) -> list[str]:
    return [spec.name for specs in results for spec in specs]  # type: ignore[attr-defined]


def test_importing_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, trunkline_retail as t;"
        "list(t.trunkline_datasets()); list(t.trunkline_recipes());"
        "list(t.trunkline_losses()); list(t.trunkline_metrics());"
        "print(sorted({'torch', 'pyarrow', 'numpy', 'pandas', 'PIL'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_entry_point_loads_the_module() -> None:
    (contributed,) = entry_points(group="trunkline", name="retail")
    assert contributed.load() is trunkline_retail


def test_every_name_is_qualified_by_the_domain(hooks: pluggy.HookRelay) -> None:
    contributed = names(
        hooks.trunkline_datasets()
        + hooks.trunkline_recipes()
        + hooks.trunkline_losses()
        + hooks.trunkline_metrics()
    )
    assert len(contributed) == 10
    assert {name.split("/")[0] for name in contributed} == {"retail"}


def test_recipes_name_datasets_of_their_own_task(hooks: pluggy.HookRelay) -> None:
    tasks = {spec.name: spec.task for specs in hooks.trunkline_datasets() for spec in specs}
    recipes = [spec for specs in hooks.trunkline_recipes() for spec in specs]
    assert [tasks[recipe.dataset] for recipe in recipes] == [recipe.task for recipe in recipes]


def test_the_loss_and_the_metric_are_used_by_a_recipe(hooks: pluggy.HookRelay) -> None:
    recipes = [spec for specs in hooks.trunkline_recipes() for spec in specs]
    used = {name for recipe in recipes for name in (recipe.loss, *recipe.metrics)}
    assert used >= set(names(hooks.trunkline_losses() + hooks.trunkline_metrics()))


def test_prices_are_a_regression_in_dollars_on_a_log_scale() -> None:
    (dataset,) = (d for d in trunkline_retail.trunkline_datasets() if d.task == "regression")
    (recipe,) = (r for r in trunkline_retail.trunkline_recipes() if r.task == "regression")
    assert (dataset.unit, recipe.scale) == ("USD", "log")

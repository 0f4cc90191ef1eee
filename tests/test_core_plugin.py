"""The built-ins: what the plugin ``core`` contributes, and its transforms."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from made_rows import make_recipe, make_row
from trunkline.contracts import Row
from trunkline.data.transforms import augment_rows
from trunkline.evaluation.baselines import BASELINES
from trunkline.evaluation.image_baselines import PICTURED
from trunkline.evaluation.metrics import METRICS
from trunkline.evaluation.structured_baselines import STRUCTURED
from trunkline.plugins import Catalog, load_plugins


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_plugins(no_plugins=True)


def augmented(catalog: Catalog, name: str, rows: list[Row]) -> tuple[Row, ...]:
    return augment_rows(rows, [catalog.transform(name)], random.Random(0))


def test_every_metric_and_baseline_of_the_core_is_registered(catalog: Catalog) -> None:
    assert catalog.metrics() == tuple(METRICS.values())
    assert catalog.baselines() == (*BASELINES, *PICTURED, *STRUCTURED)


@pytest.mark.parametrize("task", ["classification", "regression", "generation"])
def test_every_task_has_a_loss_and_baselines_of_its_kind(task: str, catalog: Catalog) -> None:
    recipe = make_recipe(task)  # type: ignore[arg-type]
    assert catalog.loss_for(recipe).task == task
    assert all(task in spec.tasks for spec in catalog.baselines_for(recipe))


def test_loading_the_core_imports_neither_torch_nor_scikit_learn() -> None:
    code = (
        "import sys; from trunkline.plugins import load_plugins; load_plugins(no_plugins=True); "
        "print(*{'torch', 'transformers', 'sklearn', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n")


def test_lowercase_copy_adds_only_rows_with_capitals(catalog: Catalog) -> None:
    rows = [make_row(1, text="Sharp PAIN"), make_row(2, text="dull pain")]
    (added,) = augmented(catalog, "lowercase-copy", rows)
    assert (added.text, added.target, added.group) == ("sharp pain", "odd", "g1")
    assert added.id != "r1"


def test_random_deletion_keeps_the_order_and_at_least_one_word(catalog: Catalog) -> None:
    rows = [make_row(n, text=" ".join(f"w{i}" for i in range(n + 1))) for n in range(40)]
    sources = {row.group: row.text.split() for row in rows}
    for added in augmented(catalog, "random-deletion", rows):
        tokens = added.text.split()
        assert tokens
        assert tokens == [one for one in sources[added.group] if one in tokens]
        assert len(tokens) < len(sources[added.group])

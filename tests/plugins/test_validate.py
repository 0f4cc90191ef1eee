"""The rules between specs of one plugin, each told with the offending value."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline.contracts import (
    DatasetSpec,
    Gate,
    LossSpec,
    MetricSpec,
    RecipeSpec,
    TransformSpec,
)
from trunkline.plugins import Contribution
from trunkline.plugins.validate import domain_violation, violations


def dataset(name: str = "farm/crops", **other: Any) -> DatasetSpec:
    given: dict[str, Any] = {
        "name": name,
        "description": "d",
        "task": "classification",
        "load": list,
        "license": "CC0-1.0",
        "source": "s",
        "grouping": "g",
    }
    return DatasetSpec(**(given | other))


def recipe(**other: Any) -> RecipeSpec:
    given: dict[str, Any] = {
        "name": "farm/crops",
        "description": "d",
        "dataset": "farm/crops",
        "task": "classification",
        "gate": Gate(metric="accuracy"),
    }
    return RecipeSpec(**(given | other))


LOSS = LossSpec(name="farm/l_1", description="d", task="regression", build=lambda context: max)
METRIC = MetricSpec(
    name="farm/yield_error", description="d", task="classification", compute=lambda scored: 0.0
)
TRANSFORM = TransformSpec(
    name="farm/no-dirt", description="d", stage="clean", apply=lambda row, rng: [row]
)


def told(core_metrics: tuple[str, ...] | None = ("accuracy",), **parts: Any) -> str:
    given: dict[str, Any] = {
        "datasets": (dataset(),),
        "losses": (LOSS,),
        "metrics": (METRIC,),
        "transforms": (TRANSFORM,),
    }
    return "; ".join(violations("farm", Contribution(**(given | parts)), core_metrics))


def test_sound_plugin_breaks_no_rule() -> None:
    sound = recipe(metrics=("accuracy", "farm/yield_error"), transforms=("farm/no-dirt",))
    assert told(recipes=(sound,)) == ""


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"dataset": "farm/crop"}, "dataset 'farm/crop', which isn't there; did you mean"),
        ({"dataset": "medical/other"}, "dataset 'medical/other', which isn't there"),
        ({"loss": "huber"}, "the loss 'huber', which isn't there"),
        ({"loss": "farm/l_1"}, "loss 'farm/l_1' is for regression"),
        ({"metrics": ("acuracy",)}, "metric 'acuracy', which isn't there; did you mean 'accuracy'"),
        ({"gate": Gate(metric="farm/none")}, "metric 'farm/none', which isn't there"),
        ({"transforms": ("farm/dirt",)}, "transform 'farm/dirt', which isn't there"),
        ({"task": "regression"}, "is a regression task but its dataset 'farm/crops' is for"),
        ({"task": "guessing"}, "is 'guessing', not one of"),
        ({"scale": "root"}, "scale of 'farm/crops' is 'root'"),
    ],
)
def test_recipe_that_breaks_a_rule(other: dict[str, Any], sentence: str) -> None:
    assert sentence in told(recipes=(recipe(**other),))


def test_core_metrics_are_taken_on_trust_when_they_are_not_known() -> None:
    assert told(None, recipes=(recipe(metrics=("anything",)),)) == ""


@pytest.mark.parametrize(
    "name",
    [
        "farm",
        "farm/",
        "farm/Crops",
        "farm/1st",
        "farm/a_b",
        "farm/a/b",
        "farm/../x",
        "farm/crops\n",
        "farm/" + "a" * 65,
        7,
    ],
)
def test_name_outside_the_grammar(name: Any) -> None:
    assert repr(name) in told(datasets=(dataset(name),))


def test_longest_name_is_allowed() -> None:
    assert told(datasets=(dataset("farm/" + "a" * 64),)) == ""


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"load": None}, "load of 'farm/crops' can't be called"),
        ({"test_share": 1.5}, "test_share of 'farm/crops' is 1.5"),
        ({"test_share": 0.5, "validation_share": 0.5}, "leave nothing to train on"),
    ],
)
def test_dataset_with_an_impossible_value(other: dict[str, Any], sentence: str) -> None:
    assert sentence in told(datasets=(dataset(**other),))


@pytest.mark.parametrize("domain", ["base", "Farm", "1farm", "farm_x", "", "a" * 41, "farm\n"])
def test_refused_domain(domain: str) -> None:
    assert domain_violation(domain)


@pytest.mark.parametrize("domain", ["farm", "a", "a-1", "a" * 40])
def test_accepted_domain(domain: str) -> None:
    assert domain_violation(domain) is None

"""The rules that a plugin's specs must keep; each violation names the offending value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trunkline.contracts import (
    BaselinePredictions,
    BaselineSpec,
    DatasetSpec,
    Gate,
    LossSpec,
    MetricSpec,
    RecipeSpec,
    TaskSpec,
    TransformSpec,
)
from trunkline.plugins import Contribution
from trunkline.plugins.catalog import domain_violation, resolve_recipes, violations
from trunkline.plugins.host import load_core


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


BASELINE = BaselineSpec(
    name="farm/almanac",
    description="d",
    tasks=("classification",),
    predict=lambda context: BaselinePredictions(values=()),
)
TASK = TaskSpec(
    name="farm/ordinal",
    description="d",
    kind="classification",
    loss="core/cross_entropy",
    baselines=("farm/almanac",),
)


def violations_of(**parts: Any) -> str:
    given: dict[str, Any] = {
        "datasets": (dataset(),),
        "losses": (LOSS,),
        "metrics": (METRIC,),
        "transforms": (TRANSFORM,),
        "baselines": (BASELINE,),
        "tasks": (TASK,),
    }
    _, core = load_core()
    return "; ".join(violations("farm", Contribution(**(given | parts)), core))


def test_sound_plugin_breaks_no_rule() -> None:
    sound = recipe(metrics=("accuracy", "farm/yield_error"), transforms=("farm/no-dirt",))
    assert violations_of(recipes=(sound,)) == ""


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"dataset": "farm/crop"}, "dataset 'farm/crop', which doesn't exist; did you mean"),
        ({"dataset": "medical/other"}, "dataset 'medical/other', which doesn't exist"),
        ({"loss": "huber"}, "the loss 'huber', which doesn't exist"),
        ({"loss": "farm/l_1"}, "loss 'farm/l_1' is for regression"),
        (
            {"metrics": ("acuracy",)},
            "metric 'acuracy', which doesn't exist; did you mean 'accuracy'",
        ),
        ({"gate": Gate(metric="farm/none")}, "metric 'farm/none', which doesn't exist"),
        ({"metrics": ("core/acuracy",)}, "did you mean 'accuracy'"),
        ({"loss": "cros_entropy"}, "which doesn't exist; did you mean 'cross_entropy'"),
        ({"loss": "mse"}, "loss 'mse' is for regression"),
        ({"transforms": ("farm/dirt",)}, "transform 'farm/dirt', which doesn't exist"),
        ({"transforms": ("lowercasecopy",)}, "did you mean 'lowercase-copy'"),
        ({"baselines": ("nearst",)}, "which doesn't exist; did you mean 'nearest'"),
        ({"baselines": ("few-shot",)}, "baseline 'few-shot' is for generation"),
        ({"task": "regression"}, "is a regression task but its dataset 'farm/crops' is for"),
        ({"task": "clasification"}, "which doesn't exist; did you mean 'classification'"),
        ({"scale": "root"}, "scale of 'farm/crops' is 'root'"),
    ],
)
def test_recipe_that_breaks_a_rule(other: dict[str, Any], sentence: str) -> None:
    assert sentence in violations_of(recipes=(recipe(**other),))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"kind": "guessing"}, "kind of 'farm/ordinal' is 'guessing', not one of"),
        ({"loss": "farm/l_1"}, "the task 'farm/ordinal' is a classification task but its loss"),
        ({"baselines": ("majorty",)}, "did you mean 'majority'"),
    ],
)
def test_task_that_breaks_a_rule(other: dict[str, Any], sentence: str) -> None:
    assert sentence in violations_of(tasks=(replace(TASK, **other),))


def test_baseline_for_an_unknown_task_breaks_a_rule() -> None:
    baseline = replace(BASELINE, tasks=("guessing",))
    assert "'guessing', not one of" in violations_of(baselines=(baseline,))


def test_recipe_may_name_builtins_with_or_without_their_domain() -> None:
    for prefix in ("", "core/"):
        named = recipe(
            task=f"{prefix}classification",
            loss=f"{prefix}cross_entropy",
            metrics=(f"{prefix}macro_f1",),
            transforms=(f"{prefix}random-deletion",),
            baselines=(f"{prefix}nearest",),
            gate=Gate(metric=f"{prefix}accuracy"),
        )
        assert violations_of(recipes=(named,)) == ""
        (resolved,) = resolve_recipes(Contribution(recipes=(named,))).recipes
        assert (resolved.task, resolved.loss) == ("classification", "cross_entropy")
        assert (resolved.metrics, resolved.gate.metric) == (("macro_f1",), "accuracy")
        assert (resolved.transforms, resolved.baselines) == (("random-deletion",), ("nearest",))


def test_recipe_of_a_plugins_task_gets_its_kind_loss_and_baselines() -> None:
    contribution = Contribution(recipes=(recipe(task="farm/ordinal"),), tasks=(TASK,))
    (resolved,) = resolve_recipes(contribution).recipes
    assert resolved.task == "classification"
    assert (resolved.loss, resolved.baselines) == ("cross_entropy", ("farm/almanac",))


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
    assert repr(name) in violations_of(datasets=(dataset(name),))


def test_longest_name_is_allowed() -> None:
    assert violations_of(datasets=(dataset("farm/" + "a" * 64),)) == ""


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"load": None}, "load of 'farm/crops' can't be called"),
        ({"test_share": 1.5}, "test_share of 'farm/crops' is 1.5"),
        ({"test_share": 0.5, "validation_share": 0.5}, "leave nothing to train on"),
    ],
)
def test_dataset_with_an_impossible_value(other: dict[str, Any], sentence: str) -> None:
    assert sentence in violations_of(datasets=(dataset(**other),))


@pytest.mark.parametrize(
    "domain", ["base", "core", "Farm", "1farm", "farm_x", "", "a" * 41, "farm\n"]
)
def test_refused_domain(domain: str) -> None:
    assert domain_violation(domain)


@pytest.mark.parametrize("domain", ["farm", "a", "a-1", "a" * 40])
def test_accepted_domain(domain: str) -> None:
    assert domain_violation(domain) is None

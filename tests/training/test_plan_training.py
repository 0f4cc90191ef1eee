"""Cost estimates of a training."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline.api import Platform
from trunkline.errors import DataError, NotFoundError, UsageError
from workbench import RECIPES, TrainedAdapter


def test_plan_gives_steps_tokens_and_size(platform: Platform) -> None:
    plan = platform.plan("toy/animals", num_train_epochs=2, r=4)
    assert plan.steps == 6  # 39 rows in batches of 16, twice
    assert plan.data["parts"]["train"] == 39
    assert plan.longest < 96
    assert plan.training_flops > 0
    assert plan.adapter_bytes == 4 * plan.trainable_parameters


def test_planned_tokens_equal_the_trained_tokens(platform: Platform) -> None:
    planned = platform.plan("toy/animals", num_train_epochs=1).tokens
    assert planned == platform.train("toy/animals", num_train_epochs=1).report["tokens_trained"]


def test_adapter_size_is_about_that_of_the_artifact(
    platform: Platform, trained: dict[str, TrainedAdapter]
) -> None:
    planned = platform.plan("toy/animals").adapter_bytes
    written = (trained["toy/animals"].folder / "adapter_model.safetensors").stat().st_size
    assert planned < written < planned + 10_000


@pytest.mark.parametrize("recipe", RECIPES)
def test_time_is_estimated_by_one_step_before_a_run(platform: Platform, recipe: str) -> None:
    plan = platform.plan(recipe)
    assert plan.measured == "step"
    assert 0 < plan.seconds < 600


def test_time_is_estimated_after_a_run(
    trained_platform: Platform, trained: dict[str, TrainedAdapter]
) -> None:
    plan = trained_platform.plan("toy/animals", max_steps=6)
    assert plan.measured == "run"
    assert 0 < plan.seconds < 10 * trained["toy/animals"].report["train_seconds"] + 1


def test_planning_records_nothing(platform: Platform) -> None:
    platform.plan("toy/animals")
    assert platform.registry.runs.list() == []
    assert not platform.workspace.runs.exists()
    assert not platform.workspace.adapters.exists()


def test_plan_is_plain_values(platform: Platform) -> None:
    import json

    assert json.loads(json.dumps(platform.plan("toy/prices").to_json()))["base"]


@pytest.mark.parametrize(
    ("recipe", "settings", "error"),
    [
        ("toy/animals", {"layers_to_transform": "top-8"}, UsageError),
        ("toy/animals", {"target_modules": "q_prj"}, NotFoundError),
        ("toy/plurals", {"max_length": 20}, DataError),
    ],
)
def test_errors_of_training_occur_in_planning(
    platform: Platform, recipe: str, settings: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        platform.plan(recipe, **settings)


def test_size_of_pictures_is_refused_for_texts(platform: Platform) -> None:
    with pytest.raises(UsageError, match="image_size is for pictures"):
        platform.plan("toy/animals", image_size=64)

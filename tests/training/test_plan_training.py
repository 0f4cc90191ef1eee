"""What a training would take, told without training."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline.api import Platform
from trunkline.errors import DataError, NotFoundError, UsageError


def test_plan_tells_steps_tokens_and_size(platform: Platform) -> None:
    plan = platform.plan("toy/animals", num_train_epochs=2, r=4)
    assert plan.steps == 6  # 39 rows in batches of 16, twice
    assert plan.data["parts"]["train"] == 39
    assert plan.longest < 96
    assert plan.training_flops > 0
    assert plan.adapter_bytes == 4 * plan.trainable_parameters


def test_tokens_are_those_that_training_then_counts(platform: Platform) -> None:
    planned = platform.plan("toy/animals", num_train_epochs=1).tokens
    assert planned == platform.train("toy/animals", num_train_epochs=1).report["tokens_trained"]


def test_adapter_size_is_about_that_of_the_artifact(platform: Platform) -> None:
    planned = platform.plan("toy/animals").adapter_bytes
    folder = platform.workspace.adapters / platform.train("toy/animals", max_steps=2).version.path
    written = (folder / "adapter_model.safetensors").stat().st_size
    assert planned < written < planned + 10_000


def test_time_is_known_after_a_run(platform: Platform) -> None:
    assert platform.plan("toy/animals").seconds is None
    run = platform.train("toy/animals", max_steps=3)
    seconds = platform.plan("toy/animals", max_steps=6).seconds
    assert seconds is not None
    assert 0 < seconds < 10 * run.report["train_seconds"] + 1


def test_nothing_is_recorded(platform: Platform) -> None:
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
def test_what_would_fail_in_training_fails_here(
    platform: Platform, recipe: str, settings: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        platform.plan(recipe, **settings)

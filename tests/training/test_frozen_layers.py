"""Layers below the adapted ones are computed once, and the loss stays the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from own_files import own_recipe
from tiny_base import make_tiny_base
from trunkline.api import Platform, open
from trunkline.contracts import Settings
from trunkline.errors import Interrupted
from trunkline.tasks import ClassificationTask, GenerationTask
from trunkline.training.config import RecipeConfig, make_config
from trunkline.training.frozen_layers import FrozenLayers
from trunkline.training.model import lora_model

SETTINGS: dict[str, Any] = {
    "layers_to_transform": "top-1",
    "num_train_epochs": 3,
    "evals_per_epoch": 1,
    "early_stopping_patience": 0,
    "per_device_train_batch_size": 4,
    "precision": "fp32",
}


def losses(platform: Platform, recipe: str | RecipeConfig, **settings: Any) -> list[float]:
    run = platform.train(recipe, **SETTINGS, **settings)
    return [metric.value for metric in platform.registry.runs.metrics(run.number, name="loss")]


@pytest.mark.parametrize("recipe", ["toy/animals", "toy/prices", "toy/plurals"])
def test_the_losses_of_every_epoch_are_those_of_all_layers(recipe: str, platform: Platform) -> None:
    every = losses(platform, recipe, frozen_cache_mib=0)
    kept = losses(platform, recipe)
    assert len(every) > 3
    assert kept == pytest.approx(every, abs=1e-4)


def test_rows_beyond_the_memory_are_computed_each_time(platform: Platform) -> None:
    every = losses(platform, "toy/animals", frozen_cache_mib=0, lora_dropout=0.1)
    few = losses(platform, "toy/animals", frozen_cache_mib=1, lora_dropout=0.1)
    assert few == pytest.approx(every, abs=1e-4)


@pytest.mark.parametrize("goods", [(3, 3), (2, 4)], ids=["equal numbers", "other numbers"])
def test_the_losses_of_a_ranking_are_those_of_all_layers(
    goods: tuple[int, int], tmp_path: Path, platform: Platform
) -> None:
    file = tmp_path / "baskets.jsonl"
    with file.open("w") as lines:
        for number in range(30):
            shelf = ["milk", "bread and butter", "tea", "soap"][: goods[number % 2]]
            row = {"text": "x" * number, "next": shelf[number % len(shelf)], "shelf": shelf}
            lines.write(json.dumps(row) + "\n")
    data = {"file": str(file), "relevant": "next", "candidates": "shelf"}
    recipe = make_config({"name": "shop/next", "data": data}, "made")
    every = losses(platform, recipe, frozen_cache_mib=0)
    assert losses(platform, recipe) == pytest.approx(every, abs=1e-4)


def test_a_resumed_training_keeps_the_same_states(
    tiny: Path, tmp_path: Path, platform: Platform
) -> None:
    settings = {**SETTINGS, "per_device_train_batch_size": 16, "num_train_epochs": 6}
    recipe = own_recipe("clinic/drugs", tmp_path, **{**settings, "max_steps": 14})
    complete = platform.train(recipe).version.digest
    (tmp_path / "other").mkdir()
    other = open(tmp_path / "other", base=str(tiny))
    steps = iter(range(100))
    with pytest.raises(Interrupted):
        other.train(recipe, should_stop=lambda: next(steps) == 6)
    assert other.train(recipe, resume=1).version.digest == complete
    other.registry.close()


def layer_calls(base: Path, layers: str, task: Any, passes: int) -> list[int]:
    """How often each layer computed, in several passes over one batch."""
    import torch

    settings = Settings(layers_to_transform=layers)
    model = lora_model(str(base), task, settings, "cpu")
    backbone = model.get_base_model().model
    calls = [0] * len(backbone.layers)

    def counter(index: int) -> Any:
        def count(*_: Any) -> None:
            calls[index] += 1

        return count

    for index, layer in enumerate(backbone.layers):
        layer.register_forward_hook(counter(index))
    frozen = FrozenLayers.of(model, [2] if layers == "top-1" else [1, 2], 1 << 20)
    assert frozen is not None
    batch = task.collate(
        [{"input_ids": [5, 6, 7], "target": 0}, {"input_ids": [8, 9], "target": 1}], 0
    )
    expected = task.outputs(model, batch)[0]
    calls[:] = [0] * len(calls)
    for _ in range(passes):
        with frozen.skipped([0, 1], batch), torch.no_grad():
            outputs = task.outputs(model, batch)[0]
        assert torch.allclose(outputs, expected, atol=1e-6)
    return calls


@pytest.mark.parametrize(("layers", "calls"), [("top-1", [1, 1, 4]), ("top-2", [1, 4, 4])])
def test_a_frozen_layer_computes_each_row_once(layers: str, calls: list[int], tiny: Path) -> None:
    task = ClassificationTask(("a", "b"))
    assert layer_calls(tiny, layers, task, passes=4) == calls


def test_a_base_without_such_layers_trains_as_before(tmp_path: Path, platform: Platform) -> None:
    from trunkline.bases import release

    base = make_tiny_base(tmp_path / "gpt2", "gpt2")
    release()
    (tmp_path / "other").mkdir()
    other = open(tmp_path / "other", base=str(base))
    every = losses(other, "toy/animals", frozen_cache_mib=0)
    assert losses(other, "toy/animals") == pytest.approx(every, abs=1e-6)
    other.registry.close()
    release()


def test_nothing_is_skipped_where_all_layers_are_adapted(tiny: Path) -> None:
    model = lora_model(str(tiny), GenerationTask(4), Settings(), "cpu")
    assert FrozenLayers.of(model, None, 1 << 20) is None
    assert FrozenLayers.of(model, [0, 1], 1 << 20) is None
    assert FrozenLayers.of(model, [2], 0) is None
    assert FrozenLayers.of(model, [2], 1 << 20) is not None

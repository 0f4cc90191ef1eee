"""Several adapters trained at once on one copy of the base: each learns as it does alone."""

from __future__ import annotations

import functools
import json
import random
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from cli_runner import invoke
from tiny_base import Family, make_tiny_base
from trunkline.api import Platform
from trunkline.contracts import NoProgress
from trunkline.data.prepare import prepare
from trunkline.errors import Interrupted, RefusedError, TrainingError, UsageError
from trunkline.training.packed import PackedBackbone, Part, backbone_of, share_frozen
from trunkline.training.together import Place, train_together
from trunkline.training.trainer import TrainerOutput, train_adapter
from workbench import RECIPES

EXACT: dict[str, Any] = {"lora_dropout": 0.0, "precision": "fp32", "max_steps": 6}

PLAIN: dict[str, dict[str, Any]] = {name: {} for name in RECIPES}


class Watch:
    """The losses of the steps; raises at the first validation if ``fails``."""

    def __init__(self, *, fails: bool = False) -> None:
        self.losses: list[float] = []
        self.fails = fails

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.losses += [value for name, value in values.items() if "loss" in name]

    def validated(self, *_: Any) -> None:
        if self.fails:
            raise TrainingError("This one fails.")


def train(
    platform: Platform,
    folder: Path,
    recipes: Mapping[str, Mapping[str, Any]],
    watches: Sequence[Watch] = (),
) -> list[TrainerOutput | Exception]:
    """Train recipes with their settings together, outside of any run."""

    def training(name: str, watch: Watch) -> Any:
        job = platform.training_job(name, {**EXACT, **recipes[name]})
        return lambda place: train_adapter(
            job,
            prepare(job.dataset, job.recipe, job.transforms),
            platform.engine,
            folder / name,
            listener=NoProgress(),
            log=watch.log,
            should_stop=lambda: False,
            on_validation=watch.validated,
            place=place,
        )

    watches = watches or [Watch() for _ in recipes]
    named = list(recipes)
    return train_together(named, [training(*one) for one in zip(named, watches, strict=True)])


def losses(
    platform: Platform, folder: Path, recipes: Mapping[str, Mapping[str, Any]]
) -> list[list[float]]:
    """The losses of recipes that are trained together."""
    watches = [Watch() for _ in recipes]
    for one in train(platform, folder, recipes, watches):
        assert isinstance(one, TrainerOutput), one
    return [watch.losses for watch in watches]


def digest(output: TrainerOutput | Exception) -> str:
    assert isinstance(output, TrainerOutput)
    assert output.artifact is not None
    return output.artifact.digest


def test_each_has_the_losses_that_it_has_alone(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[int] = []
    hidden = PackedBackbone.hidden

    def counted(backbone: PackedBackbone, parts: Sequence[Part]) -> Any:
        packed.append(len(parts))
        return hidden(backbone, parts)

    monkeypatch.setattr(PackedBackbone, "hidden", counted)
    together = losses(platform, tmp_path / "all", PLAIN)
    assert packed.count(3) >= EXACT["max_steps"]
    for name, values in zip(RECIPES, together, strict=True):
        (alone,) = losses(platform, tmp_path / "alone", {name: {}})
        assert values == pytest.approx(alone, abs=1e-4)
        assert len(values) > 2


def test_adapters_of_other_shapes_and_schedules_share_the_base(
    platform: Platform, tmp_path: Path
) -> None:
    """accelerate keeps one state a process of whether a batch ends a step."""
    recipes: dict[str, dict[str, Any]] = {
        "toy/animals": {
            "gradient_accumulation_steps": 3,
            "per_device_train_batch_size": 2,
            "target_modules": "q_proj,v_proj",
        },
        "toy/prices": {"r": 4, "layers_to_transform": "top-2", "max_steps": 9},
    }
    together = losses(platform, tmp_path / "all", recipes)
    for (name, changed), values in zip(recipes.items(), together, strict=True):
        (alone,) = losses(platform, tmp_path / "alone", {name: changed})
        assert values == pytest.approx(alone, abs=1e-4)


def test_the_outcome_can_be_repeated(platform: Platform, tmp_path: Path) -> None:
    recipes = {name: {"lora_dropout": 0.1} for name in RECIPES}
    first = train(platform, tmp_path / "one", recipes)
    random.random()
    torch.rand(1)
    again = train(platform, tmp_path / "two", recipes)
    assert [digest(one) for one in first] == [digest(one) for one in again]
    assert len({digest(one) for one in first}) == len(RECIPES)


def test_one_that_fails_between_steps_does_not_end_the_others(
    platform: Platform, tmp_path: Path
) -> None:
    watches = [Watch(fails=True), Watch(), Watch()]
    done = train(platform, tmp_path, PLAIN, watches)
    assert isinstance(done[0], TrainingError)
    assert [isinstance(one, TrainerOutput) for one in done[1:]] == [True, True]
    (alone,) = losses(platform, tmp_path / "alone", {RECIPES[1]: {}})
    assert watches[1].losses == pytest.approx(alone, abs=1e-4)


def test_an_interrupt_ends_all_threads() -> None:
    before = threading.active_count()

    class Stopping:
        """Of an engine, what is called when all trainings are ready."""

        def base_released(self) -> Any:
            raise KeyboardInterrupt

    def training(place: Place) -> None:
        with place.base_released(Stopping()):  # type: ignore[arg-type]
            raise AssertionError

    with pytest.raises(KeyboardInterrupt):
        train_together(["a", "b"], [training, training])
    assert threading.active_count() == before


# ------------------------------------------------------------------------------- packed passes

TARGETS = (["q_proj", "down_proj"], ["q_proj", "v_proj", "up_proj"], ["o_proj"])
GPT2_TARGETS = (["c_attn", "c_fc"], ["c_attn"], ["c_proj"])


def make_models(family: Family) -> dict[int, Any]:
    """PEFT models on one base, with adapters of different shapes that are not zero."""
    base = make_tiny_base(Path(mkdtemp()), family)
    models: dict[int, Any] = {}
    for index, targets in enumerate(GPT2_TARGETS if family == "gpt2" else TARGETS):
        plain = AutoModelForCausalLM.from_pretrained(base)
        config = LoraConfig(
            r=2 + index,
            target_modules=targets,
            init_lora_weights=False,
            fan_in_fan_out=family == "gpt2",
        )
        models[index] = get_peft_model(plain, config).eval()
        if index:
            share_frozen(models[index], models[0])
    return models


@functools.cache
def llama() -> dict[int, Any]:
    return make_models("llama")


@pytest.mark.parametrize("family", get_args(Family))
def test_packed_rows_are_those_of_each_model(family: Family) -> None:
    models = make_models(family)
    assert PackedBackbone(models).is_exact()
    owned = {parameter.data_ptr() for parameter in models[0].parameters()}
    for model in models.values():
        frozen = [one for one in model.parameters() if not one.requires_grad]
        assert len(frozen) > 20
        assert all(one.data_ptr() in owned for one in frozen)


@st.composite
def parts_of(draw: st.DrawFn) -> list[Part]:
    """Rows of some models, padded on either side."""
    parts = []
    for model in draw(st.lists(st.integers(0, 2), min_size=2, max_size=3, unique=True)):
        lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
        left = draw(st.booleans())
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        longest = max(lengths)
        mask = torch.stack([(torch.arange(longest) < length).long() for length in lengths])
        mask = mask.flip(1) if left else mask
        ids = torch.randint(3, 380, mask.shape, generator=generator)
        parts.append(Part(model, ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)))
    return parts


@given(parts=parts_of())
@settings(max_examples=30, deadline=None)
def test_hidden_states_and_gradients_are_those_of_each_model(parts: list[Part]) -> None:
    models = llama()
    packed = PackedBackbone(models)
    single, expected = step(models, parts, [packed.alone(part) for part in parts])
    together, gradients = step(models, parts, packed.hidden(parts))
    torch.testing.assert_close(together, single, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradients, expected, atol=1e-4, rtol=1e-3)


def step(
    models: Mapping[int, Any], parts: Sequence[Part], hidden: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The states of tokens that are no padding, and the adapters' gradients of their squares."""
    for model in models.values():
        model.zero_grad()
    seen = [one[part.attention_mask.bool()] for one, part in zip(hidden, parts, strict=True)]
    torch.autograd.backward([one.square().mean() for one in seen])
    gradients = {
        f"{index} {name}": parameter.grad.clone()
        for index, model in models.items()
        for name, parameter in backbone_of(model).named_parameters()
        if parameter.grad is not None
    }
    return [one.detach() for one in seen], gradients


# ---------------------------------------------------------------------------------------- runs


class Stages:
    """Keeps what was reported."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.last = (0, 0)

    def stage(self, text: str) -> None:
        self.names.append(text)

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        self.last = (done, total)


def test_runs_are_published_each_with_its_evaluation(platform: Platform) -> None:
    listener = Stages()
    done = platform.train_together(RECIPES, listener=listener, max_steps=3)
    for name, one in zip(RECIPES, done, strict=True):
        assert not isinstance(one, Exception), one
        assert one.version.ref.adapter == name
        run = platform.registry.runs.get(one.number)
        assert run.status == "finished"
        assert run.environment["together"] == [other for other in RECIPES if other != name]
        assert platform.evaluation_report(one.version) is not None
        assert f"{name}: publishing" in listener.names
    assert "training" in listener.names
    assert listener.last == (9, 9)


def test_one_that_fails_is_recorded_and_the_others_are_published(platform: Platform) -> None:
    done = platform.train_together(RECIPES, max_steps=2, max_length=8)  # too short for answers
    failed = [isinstance(one, Exception) for one in done]
    assert failed == [False, False, True]
    runs = {run.recipe: run.status for run in platform.registry.runs.list(limit=5)}
    assert [runs[name] for name in RECIPES] == ["finished", "finished", "failed"]
    assert list(platform.workspace.runs.iterdir()) == []


def test_stopped_runs_are_not_resumed_with_other_numbers(platform: Platform) -> None:
    calls = iter(range(10_000))
    done = platform.train_together(
        RECIPES[:2], should_stop=lambda: next(calls) > 16, max_steps=40, evals_per_epoch=2
    )
    for one in done:
        assert isinstance(one, Interrupted)
        assert "Train it again" in (one.hint or "")
    runs = platform.registry.runs.list(limit=5)
    assert [run.status for run in runs] == ["interrupted", "interrupted"]
    assert list(platform.workspace.runs.iterdir()) == []
    for run in runs:
        with pytest.raises(RefusedError, match="together with toy/"):
            platform.train(run.recipe, resume=run.number)


@pytest.mark.parametrize("changed", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_what_computes_with_other_weights_is_trained_alone(
    platform: Platform, changed: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=next(iter(changed))):
        platform.train_together(RECIPES[:2], **changed)
    assert list(platform.registry.runs.list(limit=5)) == []


def test_the_command_trains_several_recipes(platform: Platform) -> None:
    root = ["--workspace", str(platform.workspace.root), "--base", str(platform.base_name)]
    command = [*root, "train", "toy/animals", "toy/plurals"]
    for option in (["--dry-run"], ["--resume", "3"], ["--data", "x.csv"]):
        refused = invoke(*command, *option)
        assert refused.exit_code == 2
        assert f"{option[0]} is for one training" in refused.stderr
    done = invoke(*command, "--set", "max_steps=2", "--json")
    assert done.exit_code == 0, done.stderr
    assert [one["adapter"] for one in json.loads(done.stdout)] == ["toy/animals@1", "toy/plurals@1"]
    assert "toy/plurals: publishing" in done.stderr
    half = invoke(*command, "--set", "max_steps=2", "--set", "max_length=8")
    assert half.exit_code == 2
    assert "published toy/animals@2" in half.stdout
    assert "max_length = 8 leaves no room" in half.stderr
    twice = invoke(*root, "train", "toy/animals", "toy/animals")
    assert twice.exit_code == 2
    assert "named 2 times" in twice.stderr

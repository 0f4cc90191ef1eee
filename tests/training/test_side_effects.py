"""What a plugin's functions change in the process does not change the training that calls them."""

from __future__ import annotations

import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import toy_plugin
from trunkline.api import Platform
from trunkline.contracts import NoProgress, Scored
from trunkline.data.prepare import prepare
from trunkline.errors import Interrupted, PluginCallError
from trunkline.training.job import TrainingJob
from trunkline.training.trainer import TrainerOutput, train_adapter
from workbench import SETTINGS, TrainedAdapter

EFFECTS: dict[str, Callable[[], object]] = {
    "no gradients": lambda: torch.set_grad_enabled(False),
    "another type of numbers": lambda: torch.set_default_dtype(torch.float64),
    "another folder": lambda: os.chdir("/"),
    "errors of numpy": lambda: numpy.seterr(all="raise"),
    "warnings as errors": lambda: warnings.simplefilter("error"),
    "seeds": lambda: (random.seed(1), numpy.random.seed(1), torch.manual_seed(1)),
}


def train(
    platform: Platform, folder: Path, change: Callable[[TrainingJob], TrainingJob]
) -> TrainerOutput:
    job = change(platform.training_job("toy/animals", SETTINGS))
    return train_adapter(
        job,
        prepare(job.dataset, job.recipe, job.transforms),
        platform.engine,
        folder,
        listener=NoProgress(),
        log=lambda step, values: None,
        should_stop=lambda: False,
    )


CASES = [(function, effect) for function in ("load", "metric", "loss") for effect in EFFECTS]
OWN = [("loss", "no gradients"), ("loss", "seeds")]
"""What a loss does to itself, or may want: its noise follows the seed."""


@pytest.mark.parametrize(("function", "effect"), [one for one in CASES if one not in OWN])
def test_training_is_the_same_whatever_a_function_changes_in_the_process(
    effect: str,
    function: str,
    platform: Platform,
    trained: dict[str, TrainedAdapter],
    tmp_path: Path,
) -> None:
    cause, folder = EFFECTS[effect], os.getcwd()

    def load() -> Any:
        cause()
        return toy_plugin.read_animals()

    def compute(scored: Scored) -> float:
        cause()
        return toy_plugin.hit_rate(scored)

    def build(context: Any) -> Any:
        loss = toy_plugin.soft_loss(context)
        return lambda outputs, targets: (cause(), loss(outputs, targets))[1]

    def change(job: TrainingJob) -> TrainingJob:
        metric = replace(job.deciding_metric, compute=compute)
        changes = {
            "load": {"dataset": replace(job.dataset, load=load)},
            "metric": {"metrics": (metric, *job.metrics[1:])},
            "loss": {"loss": replace(job.loss, build=build)},
        }
        return replace(job, **changes[function])

    done = train(platform, tmp_path / "run", change)
    assert done.artifact is not None
    assert done.artifact.digest == trained["toy/animals"].digest
    assert os.getcwd() == folder


def test_loss_that_changes_the_outputs_does_not_change_the_predictions(
    platform: Platform, tmp_path: Path
) -> None:
    predictions: dict[bool, Any] = {}

    def scored_with(in_place: bool) -> Callable[[TrainingJob], TrainingJob]:
        def compute(scored: Scored) -> float:
            predictions[in_place] = list(scored.predictions)
            return toy_plugin.hit_rate(scored)

        def build(context: Any) -> Any:
            loss = toy_plugin.soft_loss(context)

            def change_and_measure(outputs: Any, targets: Any) -> Any:
                value = loss(outputs.clone(), targets)
                if in_place and not torch.is_grad_enabled():
                    outputs.neg_()
                return value

            return change_and_measure

        def change(job: TrainingJob) -> TrainingJob:
            metric = replace(job.deciding_metric, compute=compute)
            return replace(job, metrics=(metric,), loss=replace(job.loss, build=build))

        return change

    for in_place in (False, True):
        train(platform, tmp_path / str(in_place), scored_with(in_place))
    assert predictions[True] == predictions[False]


def interrupted_loss(interrupt: Callable[[], object], *, backward: bool) -> Any:
    """A loss that interrupts its first call, or its first gradient."""
    calls: list[int] = []

    class Interrupting(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, outputs: torch.Tensor) -> torch.Tensor:
            return outputs.clone()

        @staticmethod
        def backward(context: Any, *gradients: torch.Tensor) -> Any:
            calls.append(1)
            if len(calls) == 1:
                interrupt()
            return gradients[0]

    def build(context: Any) -> Any:
        def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            if not backward:
                calls.append(1)
                if len(calls) == 1:
                    interrupt()
            passed: Any = Interrupting.apply(outputs) if backward else outputs
            return torch.nn.functional.cross_entropy(passed, targets)

        return loss

    return build


def with_loss(monkeypatch: pytest.MonkeyPatch, build: Any) -> None:
    training_job = Platform.training_job

    def changed(self: Platform, recipe: str, settings: Any) -> TrainingJob:
        job = training_job(self, recipe, settings)
        return replace(job, loss=replace(job.loss, build=build))

    monkeypatch.setattr(Platform, "training_job", changed)


def raise_interrupt() -> None:
    raise KeyboardInterrupt


ENDS: dict[str, Callable[[], object]] = {
    "KeyboardInterrupt": raise_interrupt,
    "sys.exit": lambda: sys.exit(0),
    "os._exit": lambda: os._exit(0),
}


@pytest.mark.parametrize("backward", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize("end", ENDS)
def test_interrupt_that_a_loss_raises_itself_is_its_error(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, end: str, backward: bool
) -> None:
    with_loss(monkeypatch, interrupted_loss(ENDS[end], backward=backward))
    with pytest.raises(PluginCallError, match=f"(?i)the (gradient of the )?loss.*{end}"):
        platform.train("toy/animals", **SETTINGS)
    assert platform.registry.runs.get(1).status == "failed"


@pytest.mark.parametrize("backward", [False, True], ids=["loss", "gradient"])
def test_ctrl_c_while_a_loss_computes_interrupts_the_run(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, backward: bool
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupt = interrupted_loss(lambda: signal.raise_signal(signal.SIGINT), backward=backward)
        with_loss(monkeypatch, interrupt)
        with pytest.raises(Interrupted):
            platform.train("toy/animals", **SETTINGS)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert platform.registry.runs.get(1).status == "interrupted"

"""A run is always recorded, and publishes only an adapter that passed the proof."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

import toy_plugin
from trunkline.api import Platform
from trunkline.data.prepare import prepare
from trunkline.errors import (
    DataError,
    Interrupted,
    PluginError,
    RefusedError,
    RegistryError,
    TrainingError,
    TrunklineError,
    UsageError,
)
from workbench import SETTINGS, TrainedAdapter


class Recorder:
    """A progress listener that records its calls, and can raise at a stage or a step."""

    def __init__(self, at_stage: str = "", at_step: int = 0, raising: Any = None) -> None:
        self.stages: list[str] = []
        self.steps: list[int] = []
        self._at_stage, self._at_step, self._raising = at_stage, at_step, raising

    def stage(self, text: str) -> None:
        self.stages.append(text)
        if self._at_stage and text.startswith(self._at_stage):
            raise self._raising

    def progress(self, done: int, total: int, values: Any) -> None:
        self.steps.append(done)
        if done == self._at_step:
            raise self._raising


Trained = dict[str, TrainedAdapter]


def assert_nothing_published(platform: Platform) -> None:
    assert platform.adapters() == []
    assert not [path for path in platform.workspace.adapters.rglob("*") if path.is_file()]


def status(platform: Platform, run: int = 1) -> str:
    return platform.registry.runs.get(run).status


# ------------------------------------------------------------------------------------ finished


def test_finished_run_is_recorded_with_what_it_made(trained: Trained) -> None:
    record = trained["toy/animals"].platform.registry.runs.get(1)
    assert record.status == "finished"
    assert record.versions == ("toy/animals@1",)
    assert record.seed == 2
    assert record.settings["max_steps"] == 7
    assert record.plugin == "trunkline-toy 1.0"


def test_report_counts_rows_and_tokens(trained: Trained) -> None:
    report = trained["toy/animals"].report
    data = report["data"]
    assert (data["read"], data["kept"], data["duplicated"]) == (65, 63, 1)
    assert data["dropped"] == {"empty text": 1}
    assert sum(data["parts"].values()) == 63
    assert report["truncated"] == 0
    assert report["tokens_trained"] > 0
    assert report["proof"]["to_base"] > 0


def test_metrics_over_time_are_recorded(trained: Trained) -> None:
    names = {metric.name for metric in trained["toy/animals"].platform.registry.runs.metrics(1)}
    assert {"loss", "validation.accuracy"} <= names


def test_every_test_row_has_its_prediction(platform: Platform, trained: Trained) -> None:
    animals = trained["toy/animals"]
    job = platform.training_job("toy/animals", {})
    rows = prepare(job.dataset, job.recipe).split.test
    evaluations = animals.platform.registry.evaluations
    record = evaluations.list(version=animals.version.ref)[0]
    predictions = evaluations.predictions(record.id)
    assert {prediction.row_id for prediction in predictions} == {row.id for row in rows}
    assert all(prediction.baseline_prediction for prediction in predictions)


def test_stages_are_reported_in_order_and_the_report_is_recorded(platform: Platform) -> None:
    recorder = Recorder()
    result = platform.train("toy/prices", listener=recorder, max_steps=2)
    assert platform.registry.runs.get(1).report == json.loads(json.dumps(result.report))
    wanted = ["reading data", "encoding", "training", "proving the artifact", "evaluating"]
    assert list(dict.fromkeys(stage for stage in recorder.stages if stage in wanted)) == wanted
    assert recorder.stages[-1] == "publishing"
    assert recorder.steps == [1, 2]


def test_folder_of_a_finished_run_is_removed(trained: Trained) -> None:
    assert list(trained["toy/animals"].platform.workspace.runs.iterdir()) == []


def test_provenance_names_the_run_and_its_environment(trained: Trained) -> None:
    run = trained["toy/animals"]
    provenance = json.loads((run.folder / "provenance.json").read_text())
    assert provenance["run"]["number"] == run.version.run
    assert provenance["run"]["environment"]["packages"]["torch"]
    assert provenance["run"]["report"]["tokens_trained"] == run.report["tokens_trained"]


def test_adapter_is_published_whatever_the_verdict(trained: Trained) -> None:
    run = trained["toy/animals"]
    assert run.evaluation_report.verdict != "beats"
    assert run.version.number == 1


# -------------------------------------------------------------------------------------- failed


def test_adapter_without_effect_is_not_published(platform: Platform) -> None:
    with pytest.raises(TrainingError, match="has no effect"):
        platform.train("toy/animals", max_steps=2, learning_rate=0.0)
    assert status(platform) == "failed"
    assert "has no effect" in (platform.registry.runs.get(1).error or "")
    assert_nothing_published(platform)
    assert not platform.workspace.run_path(1).exists()


def test_head_that_is_damaged_on_disk_is_not_published(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file, save_file

    save = PeftModel.save_pretrained

    def forgetful(self: Any, folder: Any, **named: Any) -> None:
        save(self, folder, **named)
        if Path(folder).name != "artifact":  # a checkpoint
            return
        path = Path(folder) / "adapter_model.safetensors"
        tensors = load_file(path)
        tensors["base_model.model.score.weight"].normal_()
        save_file(tensors, path, metadata={"format": "pt"})

    monkeypatch.setattr(PeftModel, "save_pretrained", forgetful)
    with pytest.raises(TrainingError, match="head were not saved"):
        platform.train("toy/animals", max_steps=2)
    assert status(platform) == "failed"
    assert_nothing_published(platform)


def test_head_that_was_not_saved_is_not_published(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file, save_file

    save = PeftModel.save_pretrained

    def forgetful(self: Any, folder: Any, **named: Any) -> None:
        save(self, folder, **named)
        if Path(folder).name != "artifact":  # a checkpoint
            return
        path = Path(folder) / "adapter_model.safetensors"
        tensors = load_file(path)
        tensors.pop("base_model.model.score.weight")
        save_file(tensors, path, metadata={"format": "pt"})

    monkeypatch.setattr(PeftModel, "save_pretrained", forgetful)
    with pytest.raises(TrainingError, match="0 heads"):
        platform.train("toy/animals", max_steps=2)
    assert_nothing_published(platform)


def test_failing_plugin_fails_the_run_with_one_sentence(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(context: Any) -> Callable[..., Any]:
        return lambda outputs, targets: {}["no such key"]

    monkeypatch.setattr(toy_plugin, "soft_loss", build)
    with pytest.raises(PluginError, match="toy/soft failed: KeyError"):
        platform.train("toy/animals", max_steps=2)
    assert status(platform) == "failed"
    assert_nothing_published(platform)
    assert not platform.workspace.run_path(1).exists()


def test_unexpected_error_is_reported_in_one_line(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("something inside.\nwith a second line")

    monkeypatch.setattr(Trainer, "train", fail)
    with pytest.raises(TrainingError) as caught:
        platform.train("toy/animals", max_steps=2)
    assert caught.value.message == "Run 1 failed: RuntimeError: something inside."
    assert "--debug" in (caught.value.hint or "")
    assert status(platform) == "failed"


@pytest.mark.parametrize(
    "settings",
    [
        {"layers_to_transform": 9},
        {"layers_to_transform": "top-9"},
        {"target_modules": "nose"},
        {"r": 0},
        {"rr": 4},
        {"seed": "x"},
    ],
)
def test_invalid_setting_starts_no_run(platform: Platform, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        platform.train("toy/animals", **settings)
    assert platform.registry.runs.list() == []
    assert not platform.workspace.runs.exists()


def test_empty_dataset_starts_no_run(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_plugin, "read_animals", lambda: iter(()))
    with pytest.raises(TrunklineError, match="no rows"):
        platform.train("toy/animals", max_steps=2)
    assert platform.registry.runs.list() == []


def test_run_folder_that_can_not_be_created_fails_the_run(platform: Platform) -> None:
    (platform.workspace.root / ".trunkline").write_text("not a folder")
    with pytest.raises(TrainingError, match="can't be written"):
        platform.train("toy/animals", max_steps=2)
    assert status(platform) == "failed"


# --------------------------------------------------------------------------------- interrupted


class StopAfter:
    """A ``should_stop`` that returns true after a number of calls."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(
    ("recipe", "steps"),
    [("toy/animals", 1), ("toy/animals", 3), ("toy/prices", 4), ("toy/plurals", 5)],
)
def test_interrupted_run_is_resumed_to_the_same_digest(
    platform: Platform, trained: Trained, recipe: str, steps: int
) -> None:
    with pytest.raises(Interrupted, match=f"stopped at step {steps} of 7") as caught:
        platform.train(recipe, should_stop=StopAfter(steps - 1), **SETTINGS)
    assert caught.value.hint == f"Resume it with `trunkline train {recipe} --resume 1`."
    assert status(platform) == "interrupted"
    assert_nothing_published(platform)
    resumed = platform.train(recipe, resume=1)
    assert resumed.number == 1
    assert status(platform) == "finished"
    assert resumed.version.digest == trained[recipe].digest


def test_interrupted_run_that_accumulates_is_resumed_to_the_same_digest(
    platform: Platform,
) -> None:
    choice = {**SETTINGS, "gradient_accumulation_steps": 2}
    with pytest.raises(Interrupted, match="step 3"):
        platform.train("toy/animals", should_stop=StopAfter(2), **choice)
    resumed = platform.train("toy/animals", resume=1)
    assert resumed.version.digest == platform.train("toy/animals", **choice).version.digest


def test_resumed_run_counts_every_token_once(platform: Platform, trained: Trained) -> None:
    with pytest.raises(Interrupted):
        platform.train("toy/animals", should_stop=StopAfter(2), **SETTINGS)
    resumed = platform.train("toy/animals", resume=1)
    counted = trained["toy/animals"].report["tokens_trained"]
    assert resumed.report["tokens_trained"] == counted


def test_early_stopping_patience_survives_resuming(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = chain([0.9], repeat(0.5))
    monkeypatch.setattr(toy_plugin, "hit_rate", lambda scored: next(scores))
    training_job = Platform.training_job

    def by_hit_rate(self: Platform, recipe: str, settings: Any) -> Any:
        job = training_job(self, recipe, settings)
        last = next(metric for metric in job.metrics if metric.name == "toy/hit_rate")
        return replace(job, metrics=(last, *job.metrics))

    monkeypatch.setattr(Platform, "training_job", by_hit_rate)
    choice = {
        "max_steps": 12,
        "evals_per_epoch": 3,
        "early_stopping_patience": 3,
        "learning_rate": 0.01,
    }
    with pytest.raises(Interrupted):
        platform.train("toy/animals", should_stop=StopAfter(1), **choice)
    resumed = platform.train("toy/animals", resume=1)
    scores = chain([0.9], repeat(0.5))
    assert resumed.report["steps"] == platform.train("toy/animals", **choice).report["steps"] == 4


def test_ctrl_c_during_a_step_interrupts_the_run(platform: Platform, trained: Trained) -> None:
    recorder = Recorder(at_step=6, raising=KeyboardInterrupt())
    with pytest.raises(Interrupted, match="Run 1 was stopped") as caught:
        platform.train("toy/animals", listener=recorder, **SETTINGS)
    assert "--resume 1" in (caught.value.hint or "")
    assert status(platform) == "interrupted"
    again = Recorder()
    resumed = platform.train("toy/animals", resume=1, listener=again)
    assert again.steps[0] > 1
    assert resumed.version.digest == trained["toy/animals"].digest


def test_ctrl_c_before_the_first_checkpoint_is_resumed_from_the_start(
    platform: Platform, trained: Trained
) -> None:
    recorder = Recorder(at_step=1, raising=KeyboardInterrupt())
    with pytest.raises(Interrupted):
        platform.train("toy/animals", listener=recorder, **SETTINGS)
    assert not platform.workspace.run_path(1).exists()
    assert platform.train("toy/animals", resume=1).version.digest == trained["toy/animals"].digest


@pytest.mark.parametrize("damage", ["no state", "half a state"])
def test_incomplete_checkpoint_is_skipped(
    platform: Platform, trained: Trained, damage: str
) -> None:
    with pytest.raises(Interrupted):
        platform.train("toy/animals", should_stop=StopAfter(2), **SETTINGS)
    torn = platform.workspace.run_path(1) / "checkpoints" / "checkpoint-5"
    torn.mkdir()
    if damage == "half a state":
        (torn / "trainer_state.json").write_text('{"global_step": 5')
    assert platform.train("toy/animals", resume=1).version.digest == trained["toy/animals"].digest


@pytest.mark.parametrize("stage", ["baseline: tfidf", "predicting", "evaluating"])
def test_stop_while_evaluating_keeps_the_trained_adapter(
    platform: Platform, trained: Trained, stage: str
) -> None:
    recorder = Recorder(at_stage=stage, raising=KeyboardInterrupt())
    with pytest.raises(Interrupted):
        platform.train("toy/animals", listener=recorder, **SETTINGS)
    assert status(platform) == "interrupted"
    assert_nothing_published(platform)
    again = Recorder()
    resumed = platform.train("toy/animals", resume=1, listener=again)
    assert again.steps == []
    assert resumed.version.digest == trained["toy/animals"].digest


def test_validations_are_announced(platform: Platform) -> None:
    recorder = Recorder()
    platform.train("toy/animals", listener=recorder, max_steps=2, evals_per_epoch=3)
    start = recorder.stages.index("training")
    announced = recorder.stages[start : recorder.stages.index("proving the artifact")]
    assert announced == ["training", "validating", "training", "validating", "training"]


def test_failed_evaluation_keeps_the_finished_steps(
    platform: Platform, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [ZeroDivisionError("division by zero")]

    def broken_once(scored: Any) -> float:
        if faults:
            raise faults.pop()
        return 0.5

    monkeypatch.setattr(toy_plugin, "hit_rate", broken_once)
    with pytest.raises(PluginError, match="hit_rate failed") as caught:
        platform.train("toy/animals", **SETTINGS)
    assert "`trunkline train toy/animals --resume 1` evaluates" in (caught.value.hint or "")
    assert status(platform) == "failed"
    again = Recorder()
    resumed = platform.train("toy/animals", resume=1, listener=again)
    assert again.steps == []
    assert resumed.version.digest == trained["toy/animals"].digest


@pytest.mark.parametrize("error", [TrainingError("a fault"), DataError("a fault"), ValueError("x")])
def test_no_failure_after_the_steps_removes_them(platform: Platform, error: Exception) -> None:
    recorder = Recorder(at_stage="predicting", raising=error)
    with pytest.raises(TrunklineError) as caught:
        platform.train("toy/animals", listener=recorder, max_steps=1)
    assert "--resume 1" in (caught.value.hint or "")
    assert platform.train("toy/animals", resume=1).version.number == 1


def test_failure_between_checkpoints_says_where_to_go_on(platform: Platform) -> None:
    recorder = Recorder(at_step=6, raising=OSError(errno.EIO, "Input/output error"))
    with pytest.raises(TrainingError) as caught:
        platform.train("toy/animals", listener=recorder, **SETTINGS)
    assert "--resume 1` continues after step 4" in (caught.value.hint or "")


def test_stop_request_is_honored_while_evaluating(platform: Platform) -> None:
    recorder = Recorder()
    with pytest.raises(Interrupted, match="before the evaluation") as caught:
        platform.train(
            "toy/animals",
            listener=recorder,
            should_stop=lambda: "baseline: tfidf" in recorder.stages,
            **SETTINGS,
        )
    assert "--resume 1" in (caught.value.hint or "")
    assert status(platform) == "interrupted"


def test_failed_publication_is_resumed_without_training_again(
    platform: Platform, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("trunkline.adapters.storage.os.rename", full)
        with pytest.raises(RegistryError, match="No space left"):
            platform.train("toy/animals", **SETTINGS)
    assert status(platform) == "failed"
    assert_nothing_published(platform)
    recorder = Recorder()
    resumed = platform.train("toy/animals", resume=1, listener=recorder)
    assert recorder.steps == []
    assert resumed.version.digest == trained["toy/animals"].digest


# --------------------------------------------------------------------------- evaluating once more


def test_evaluating_again_gives_the_same_scores(trained_platform: Platform) -> None:
    version = trained_platform.resolve("toy/animals@1").version
    before = trained_platform.evaluation_report(version)
    again = trained_platform.evaluate("toy/animals@1")
    assert before is not None
    assert again.scores == before[0].scores
    assert len(trained_platform.registry.evaluations.list(version=version.ref)) == 2


def test_evaluating_again_on_other_rows_is_refused(
    trained_platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list(toy_plugin.read_animals())
    monkeypatch.setattr(toy_plugin, "read_animals", lambda: iter(rows[:-5]))
    with pytest.raises(RefusedError, match="changed since toy/animals@1 was trained"):
        trained_platform.evaluate("toy/animals@1")


def test_cross_validation_holds_out_every_row_once(
    platform: Platform,
) -> None:
    result = platform.cross_validate("toy/animals", 3, max_steps=2)
    assert result.evaluation_report.rows == sum(fold["test_rows"] for fold in result.per_fold) == 63
    predictions = platform.registry.evaluations.predictions(result.evaluation)
    assert len({prediction.row_id for prediction in predictions}) == 63
    assert_nothing_published(platform)
    assert platform.registry.runs.list() == []
    assert list(platform.workspace.runs.iterdir()) == []


def test_stopped_cross_validation_leaves_no_files(platform: Platform) -> None:
    recorder = Recorder(at_step=1, raising=KeyboardInterrupt())
    with pytest.raises(Interrupted, match="nothing was kept"):
        platform.cross_validate("toy/animals", 2, max_steps=2, listener=recorder)
    assert list(platform.workspace.runs.iterdir()) == []


@pytest.mark.parametrize("folds", [0, 1, 21])
def test_number_of_folds_out_of_range_is_an_error(platform: Platform, folds: int) -> None:
    with pytest.raises(UsageError, match=f"folds can't be {folds}"):
        platform.cross_validate("toy/animals", folds)

"""A run is written down whatever happens, and publishes only what was proved."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import toy_plugin
from trunkline.api import Platform
from trunkline.data.prepare import prepare
from trunkline.errors import (
    Interrupted,
    NotFoundError,
    PluginError,
    RefusedError,
    RegistryError,
    TrainingError,
    TrunklineError,
    UsageError,
)
from trunkline.refs import Ref
from trunkline.training.run import TrainingResult
from workbench import SETTINGS, Whole


class Heard:
    """A listener that keeps the stages, and may raise at one or at a step."""

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


def assert_nothing_published(platform: Platform) -> None:
    assert platform.adapters() == []
    assert not [path for path in platform.workspace.adapters.rglob("*") if path.is_file()]


def status(platform: Platform, run: int = 1) -> str:
    return platform.registry.runs.get(run).status


# ------------------------------------------------------------------------------------ finished


@pytest.fixture
def run(platform: Platform) -> TrainingResult:
    return platform.train("toy/animals", max_steps=2)


def test_finished_run_is_recorded_with_what_it_made(whole: Whole) -> None:
    record = whole.platform.registry.runs.get(1)
    assert record.status == "finished"
    assert record.versions == ("toy/animals@1",)
    assert record.seed == 2
    assert record.settings["max_steps"] == 7
    assert record.plugin == "trunkline-toy 1.0"


def test_report_counts_rows_and_tokens(whole: Whole) -> None:
    run = whole.runs["toy/animals"]
    data = run.report["data"]
    assert (data["read"], data["kept"], data["duplicated"]) == (65, 63, 1)
    assert data["dropped"] == {"empty text": 1}
    assert sum(data["parts"].values()) == 63
    assert run.report["truncated"] == 0
    assert run.report["tokens_trained"] > 0
    assert run.report["proof"]["to_base"] > 0


def test_report_is_kept_in_the_registry(whole: Whole) -> None:
    kept = whole.platform.registry.runs.get(1).report
    assert kept == json.loads(json.dumps(whole.runs["toy/animals"].report))


def test_metrics_over_time_are_kept(whole: Whole) -> None:
    names = {metric.name for metric in whole.platform.registry.runs.metrics(1)}
    assert {"loss", "validation.accuracy"} <= names


def test_every_test_row_has_its_prediction(whole: Whole) -> None:
    platform, version = whole.platform, whole.runs["toy/animals"].version
    training_job = platform.training_job("toy/animals", {})
    rows = prepare(training_job.dataset, training_job.recipe).split.test
    record = platform.registry.evaluations.list(version=version.ref)[0]
    kept = platform.registry.evaluations.predictions(record.id)
    assert {one.row_id for one in kept} == {row.id for row in rows}
    assert all(one.baseline_prediction for one in kept)


def test_stages_are_heard_in_their_order(platform: Platform) -> None:
    heard = Heard()
    platform.train("toy/prices", listener=heard, max_steps=2)
    wanted = ["reading data", "encoding", "training", "proving the artifact", "evaluating"]
    assert [stage for stage in heard.stages if stage in wanted] == wanted
    assert heard.stages[-1] == "publishing"
    assert heard.steps == [1, 2]


def test_folder_of_a_finished_run_is_cleared(whole: Whole) -> None:
    assert list(whole.platform.workspace.runs.iterdir()) == []


def test_artifact_tells_where_it_comes_from(whole: Whole) -> None:
    run = whole.runs["toy/animals"]
    folder = whole.platform.workspace.adapters / run.version.path
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["run"]["number"] == run.number
    assert provenance["run"]["environment"]["packages"]["torch"]
    assert provenance["run"]["report"]["tokens_trained"] == run.report["tokens_trained"]


def test_two_runs_of_one_seed_publish_one_digest(platform: Platform, whole: Whole) -> None:
    again = platform.train("toy/animals", **SETTINGS)
    assert again.version.digest == whole.digest("toy/animals")


def test_published_whatever_the_verdict(whole: Whole) -> None:
    run = whole.runs["toy/animals"]
    assert run.evaluation_report.verdict != "beats"
    assert run.version.number == 1


# -------------------------------------------------------------------------------------- failed


def test_adapter_that_does_nothing_is_not_published(platform: Platform) -> None:
    with pytest.raises(TrainingError, match="has no effect"):
        platform.train("toy/animals", max_steps=2, learning_rate=0.0)
    assert status(platform) == "failed"
    assert "has no effect" in (platform.registry.runs.get(1).error or "")
    assert_nothing_published(platform)
    assert not platform.workspace.run_path(1).exists()


def test_head_that_is_lost_on_the_way_to_the_disk_is_not_published(
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


def test_surprise_is_told_in_one_line(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_wrong_setting_begins_no_run(platform: Platform, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        platform.train("toy/animals", **settings)
    assert platform.registry.runs.list() == []
    assert not platform.workspace.runs.exists()


def test_bad_rows_begin_no_run(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_plugin, "read_animals", lambda: iter(()))
    with pytest.raises(TrunklineError, match="no rows"):
        platform.train("toy/animals", max_steps=2)
    assert platform.registry.runs.list() == []


def test_folder_that_can_not_be_made_fails_the_run(platform: Platform) -> None:
    (platform.workspace.root / ".trunkline").write_text("a file in the way")
    with pytest.raises(TrainingError, match="can't be written"):
        platform.train("toy/animals", max_steps=2)
    assert status(platform) == "failed"


# --------------------------------------------------------------------------------- interrupted


class StopAfter:
    """``should_stop`` that becomes true after so many questions."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(
    ("recipe", "steps"),
    [("toy/animals", 1), ("toy/animals", 3), ("toy/prices", 4), ("toy/plurals", 5)],
)
def test_interrupted_run_is_resumed_to_the_same_digest(
    platform: Platform, whole: Whole, recipe: str, steps: int
) -> None:
    with pytest.raises(Interrupted, match=f"stopped at step {steps} of 7") as caught:
        platform.train(recipe, should_stop=StopAfter(steps - 1), **SETTINGS)
    assert caught.value.hint == f"Resume it with `trunkline train {recipe} --resume 1`."
    assert status(platform) == "interrupted"
    assert_nothing_published(platform)
    resumed = platform.train(recipe, resume=1)
    assert resumed.number == 1
    assert status(platform) == "finished"
    assert resumed.version.digest == whole.digest(recipe)


def test_interrupted_run_that_accumulates_is_resumed_to_the_same_digest(
    platform: Platform,
) -> None:
    choice = {**SETTINGS, "gradient_accumulation_steps": 2}
    with pytest.raises(Interrupted, match="step 3"):
        platform.train("toy/animals", should_stop=StopAfter(2), **choice)
    resumed = platform.train("toy/animals", resume=1)
    assert resumed.version.digest == platform.train("toy/animals", **choice).version.digest


def test_resumed_run_counts_every_token_once(platform: Platform, whole: Whole) -> None:
    with pytest.raises(Interrupted):
        platform.train("toy/animals", should_stop=StopAfter(2), **SETTINGS)
    resumed = platform.train("toy/animals", resume=1)
    counted = whole.runs["toy/animals"].report["tokens_trained"]
    assert resumed.report["tokens_trained"] == counted


def test_patience_goes_on_after_resuming(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_plugin, "hit_rate", lambda scored: 0.5)
    training_job = Platform.training_job

    def by_hit_rate(self: Platform, recipe: str, settings: Any) -> Any:
        found = training_job(self, recipe, settings)
        last = next(metric for metric in found.metrics if metric.name == "toy/hit_rate")
        return replace(found, metrics=(last, *found.metrics))

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
    assert resumed.report["steps"] == platform.train("toy/animals", **choice).report["steps"] == 4


def test_ctrl_c_in_the_middle_of_a_step_is_an_interrupted_run(
    platform: Platform, whole: Whole
) -> None:
    heard = Heard(at_step=6, raising=KeyboardInterrupt())
    with pytest.raises(Interrupted, match="Run 1 was stopped") as caught:
        platform.train("toy/animals", listener=heard, **SETTINGS)
    assert "--resume 1" in (caught.value.hint or "")
    assert status(platform) == "interrupted"
    again = Heard()
    resumed = platform.train("toy/animals", resume=1, listener=again)
    assert again.steps[0] > 1
    assert resumed.version.digest == whole.digest("toy/animals")


def test_ctrl_c_before_the_first_checkpoint_is_resumed_from_the_start(
    platform: Platform, whole: Whole
) -> None:
    heard = Heard(at_step=1, raising=KeyboardInterrupt())
    with pytest.raises(Interrupted):
        platform.train("toy/animals", listener=heard, **SETTINGS)
    assert not platform.workspace.run_path(1).exists()
    assert platform.train("toy/animals", resume=1).version.digest == whole.digest("toy/animals")


@pytest.mark.parametrize("damage", ["no state", "half a state"])
def test_checkpoint_that_was_cut_off_is_passed_over(
    platform: Platform, whole: Whole, damage: str
) -> None:
    with pytest.raises(Interrupted):
        platform.train("toy/animals", should_stop=StopAfter(2), **SETTINGS)
    torn = platform.workspace.run_path(1) / "checkpoints" / "checkpoint-5"
    torn.mkdir()
    if damage == "half a state":
        (torn / "trainer_state.json").write_text('{"global_step": 5')
    assert platform.train("toy/animals", resume=1).version.digest == whole.digest("toy/animals")


@pytest.mark.parametrize("stage", ["baseline: tfidf", "predicting", "evaluating"])
def test_stop_while_evaluating_keeps_what_was_trained(
    platform: Platform, whole: Whole, stage: str
) -> None:
    heard = Heard(at_stage=stage, raising=KeyboardInterrupt())
    with pytest.raises(Interrupted):
        platform.train("toy/animals", listener=heard, **SETTINGS)
    assert status(platform) == "interrupted"
    assert_nothing_published(platform)
    again = Heard()
    resumed = platform.train("toy/animals", resume=1, listener=again)
    assert again.steps == []
    assert resumed.version.digest == whole.digest("toy/animals")


def test_wish_to_stop_is_heard_while_evaluating(platform: Platform) -> None:
    heard = Heard()
    with pytest.raises(Interrupted, match="before the evaluation") as caught:
        platform.train(
            "toy/animals",
            listener=heard,
            should_stop=lambda: "baseline: tfidf" in heard.stages,
            **SETTINGS,
        )
    assert "--resume 1" in (caught.value.hint or "")
    assert status(platform) == "interrupted"


def test_failed_publication_is_resumed_without_training_again(
    platform: Platform, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("trunkline.adapters.storage.os.rename", full)
        with pytest.raises(RegistryError, match="No space left"):
            platform.train("toy/animals", **SETTINGS)
    assert status(platform) == "failed"
    assert_nothing_published(platform)
    heard = Heard()
    resumed = platform.train("toy/animals", resume=1, listener=heard)
    assert heard.steps == []
    assert resumed.version.digest == whole.digest("toy/animals")


# -------------------------------------------------------------------------- resuming refused


@pytest.fixture
def stopped(platform: Platform) -> int:
    """The number of an interrupted run."""
    with pytest.raises(Interrupted):
        platform.train("toy/animals", should_stop=StopAfter(2), **SETTINGS)
    return 1


def test_changed_rows_refuse_to_go_on(
    platform: Platform, stopped: int, monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    rows = list(toy_plugin.read_animals())
    changed = [replace(rows[0], text="an ostrich in the wild"), *rows[1:]]
    monkeypatch.setattr(toy_plugin, "read_animals", lambda: iter(changed))
    from trunkline.api import open

    later = open(platform.workspace.root, base=str(tiny))
    with pytest.raises(RefusedError, match="its data changed"):
        later.train("toy/animals", resume=stopped)
    assert status(platform) == "interrupted"


def test_finished_run_has_nothing_to_resume(platform: Platform, run: TrainingResult) -> None:
    with pytest.raises(RegistryError, match="has finished"):
        platform.train("toy/animals", resume=run.number)
    assert status(platform) == "finished"


def test_unknown_run_is_told(platform: Platform) -> None:
    with pytest.raises(NotFoundError, match="no run 77"):
        platform.train("toy/animals", resume=77)


def test_run_of_another_recipe_is_told(platform: Platform, stopped: int) -> None:
    with pytest.raises(UsageError, match="Run 1 is of toy/animals"):
        platform.train("toy/prices", resume=stopped)


def test_resumed_run_keeps_its_settings(platform: Platform, stopped: int) -> None:
    with pytest.raises(UsageError, match="keeps its settings"):
        platform.train("toy/animals", resume=stopped, seed=9)


def test_run_that_another_process_works_on_is_left_alone(platform: Platform, stopped: int) -> None:
    from filelock import FileLock

    folder = platform.workspace.run_path(stopped)
    with (
        FileLock(folder / ".lock"),
        pytest.raises(RefusedError, match="in use by another process"),
    ):
        platform.train("toy/animals", resume=stopped)
    assert status(platform) == "interrupted"
    assert platform.train("toy/animals", resume=stopped).number == stopped


# --------------------------------------------------------------------------- evaluating once more


def test_evaluating_again_gives_the_same_figures(platform: Platform, run: TrainingResult) -> None:
    again = platform.evaluate("toy/animals@1")
    assert again.scores == run.evaluation_report.scores
    assert len(platform.registry.evaluations.list(version=Ref.parse("toy/animals@1"))) == 2


def test_evaluating_again_on_other_rows_is_refused(
    platform: Platform, run: TrainingResult, monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    rows = list(toy_plugin.read_animals())
    monkeypatch.setattr(toy_plugin, "read_animals", lambda: iter(rows[:-5]))
    from trunkline.api import open

    later = open(platform.workspace.root, base=str(tiny))
    with pytest.raises(RefusedError, match="changed since toy/animals@1 was trained"):
        later.evaluate("toy/animals@1")


def test_folds_hold_every_row_out_once_and_publish_nothing(platform: Platform) -> None:
    result = platform.cross_validate("toy/animals", 3, max_steps=2)
    assert result.evaluation_report.rows == sum(fold["test_rows"] for fold in result.per_fold) == 63
    kept = platform.registry.evaluations.predictions(result.evaluation)
    assert len({one.row_id for one in kept}) == 63
    assert_nothing_published(platform)
    assert platform.registry.runs.list() == []
    assert list(platform.workspace.runs.iterdir()) == []


def test_stopped_folds_leave_nothing(platform: Platform) -> None:
    heard = Heard(at_step=1, raising=KeyboardInterrupt())
    with pytest.raises(Interrupted, match="nothing was kept"):
        platform.cross_validate("toy/animals", 2, max_steps=2, listener=heard)
    assert list(platform.workspace.runs.iterdir()) == []


@pytest.mark.parametrize("folds", [0, 1, 21])
def test_impossible_number_of_folds_is_told(platform: Platform, folds: int) -> None:
    with pytest.raises(UsageError, match=f"folds can't be {folds}"):
        platform.cross_validate("toy/animals", folds)

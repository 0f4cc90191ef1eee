"""A resumed run publishes the adapter of an uninterrupted one, whatever happened to its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import toy_plugin
from trunkline.api import Platform
from trunkline.contracts import Template
from trunkline.errors import (
    Interrupted,
    NotFoundError,
    RefusedError,
    RegistryError,
    UsageError,
)
from trunkline.training import run_info
from trunkline.training.checkpoints import (
    MANIFEST,
    REQUIRED,
    find_resume_point,
    seal_checkpoint,
)
from workbench import SETTINGS, TrainedAdapter

Trained = dict[str, TrainedAdapter]


class Stages:
    """A progress listener that records stages and steps, and can stop at a stage."""

    def __init__(self, stop_at: str = "") -> None:
        self.stages: list[str] = []
        self.steps: list[int] = []
        self._stop_at = stop_at

    def stage(self, text: str) -> None:
        self.stages.append(text)
        if self._stop_at and text.startswith(self._stop_at):
            raise KeyboardInterrupt

    def progress(self, done: int, total: int, values: Any) -> None:
        self.steps.append(done)


def status(platform: Platform, run: int = 1) -> str:
    return platform.registry.runs.get(run).status


def checkpoints(platform: Platform) -> Path:
    return platform.workspace.run_path(1) / "checkpoints"


def newest(platform: Platform) -> Path:
    checkpoint = find_resume_point(checkpoints(platform)).checkpoint
    assert checkpoint is not None
    return checkpoint.folder


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, Path.unlink) for name in REQUIRED] + [("rng_state.pth", truncate)],
    ids=[*REQUIRED, "truncated rng_state.pth"],
)
def test_run_with_a_damaged_checkpoint_goes_back_to_the_one_before(
    stopped: Platform, trained: Trained, name: str, damage: Callable[[Path], object]
) -> None:
    damage(newest(stopped) / name)
    listener = Stages()
    resumed = stopped.train("toy/animals", resume=1, listener=listener)
    assert resumed.version.digest == trained["toy/animals"].digest
    assert any(name in stage and "not resumable" in stage for stage in listener.stages)
    assert "resuming after step 2" in listener.stages
    assert listener.steps[0] == 3


def test_run_without_a_complete_checkpoint_begins_again(
    stopped: Platform, trained: Trained
) -> None:
    for folder in checkpoints(stopped).iterdir():
        (folder / "optimizer.pt").unlink()
    listener = Stages()
    resumed = stopped.train("toy/animals", resume=1, listener=listener)
    assert "no complete checkpoint: beginning again" in listener.stages
    assert listener.steps[0] == 1
    assert resumed.version.digest == trained["toy/animals"].digest


def test_run_in_a_moved_workspace_is_resumed_to_the_same_adapter(
    stopped: Platform, trained: Trained, tmp_path: Path
) -> None:
    import trunkline.api

    moved = shutil.copytree(stopped.workspace.root, tmp_path / "moved")
    shutil.rmtree(checkpoints(stopped))
    with_base = trunkline.api.open(moved, base=stopped.base_name)
    assert with_base.train("toy/animals", resume=1).version.digest == trained["toy/animals"].digest
    with_base.registry.close()


@pytest.fixture
def finished(platform: Platform) -> Platform:
    """A platform whose run 1 was stopped after its last step."""
    with pytest.raises(Interrupted):
        platform.train("toy/animals", listener=Stages("predicting"), **SETTINGS)
    return platform


def test_finished_steps_are_not_taken_again(finished: Platform, trained: Trained) -> None:
    listener = Stages()
    resumed = finished.train("toy/animals", resume=1, listener=listener)
    assert "all steps are finished; none is repeated" in listener.stages
    assert listener.steps == []
    assert resumed.version.digest == trained["toy/animals"].digest


def test_finished_run_whose_best_checkpoint_is_damaged_takes_steps_again(
    finished: Platform, trained: Trained
) -> None:
    point = find_resume_point(checkpoints(finished)).checkpoint
    assert point is not None
    truncate(point.best_folder / "adapter_model.safetensors")
    listener = Stages()
    resumed = finished.train("toy/animals", resume=1, listener=listener)
    assert listener.steps[-1] == 7
    assert resumed.version.digest == trained["toy/animals"].digest


def test_run_stopped_early_takes_no_step_when_resumed(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trunkline.training.scoring import Selection

    monkeypatch.setattr(
        Selection, "ends_training", lambda self, patience: self.step + self.since >= 2
    )
    choice = {"max_steps": 6, "evals_per_epoch": 3}
    with pytest.raises(Interrupted):
        platform.train("toy/animals", listener=Stages("predicting"), **choice)
    listener = Stages()
    resumed = platform.train("toy/animals", resume=1, listener=listener)
    assert listener.steps == []
    assert resumed.report["steps"] < 6


# -------------------------------------------------------------------------- resuming refused


def test_run_with_changed_rows_is_not_resumed(
    stopped: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list(toy_plugin.read_animals())
    changed = [replace(rows[0], text="an ostrich in the wild"), *rows[1:]]
    monkeypatch.setattr(toy_plugin, "read_animals", lambda: iter(changed))
    with pytest.raises(RefusedError, match="its data changed"):
        stopped.train("toy/animals", resume=1)
    assert status(stopped) == "interrupted"


def test_finished_run_is_not_resumed(trained_platform: Platform) -> None:
    with pytest.raises(RegistryError, match="has finished"):
        trained_platform.train("toy/animals", resume=1)
    assert status(trained_platform) == "finished"


def test_unknown_run_is_an_error(platform: Platform) -> None:
    with pytest.raises(NotFoundError, match="no run 77"):
        platform.train("toy/animals", resume=77)


@pytest.mark.parametrize("name", ["threads", "torch", "device_name"])
def test_run_of_another_environment_is_not_resumed(
    stopped: Platform, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    unchanged = run_info.environment

    def elsewhere(device: Any, bf16: bool, **options: Any) -> dict[str, Any]:
        values = unchanged(device, bf16, **options)
        (values["packages"] if name == "torch" else values)[name] = "another"
        return values

    monkeypatch.setattr("trunkline.training.run.environment", elsewhere)
    with pytest.raises(RefusedError, match="'another' now"):
        stopped.train("toy/animals", resume=1)
    assert status(stopped) == "interrupted"


@pytest.mark.parametrize("state", ["stopped", "finished"])
@pytest.mark.parametrize("changed", ["template", "dataset", "unit", "max new tokens"])
def test_run_whose_recipe_states_something_else_is_not_resumed(
    state: str, changed: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record would not describe the adapter, also where no step is taken."""
    training_job = Platform.training_job

    def change(self: Platform, recipe: str, settings: Any) -> Any:
        job = training_job(self, recipe, settings)
        if changed == "unit":
            return replace(job, dataset=replace(job.dataset, unit="kg"))
        if changed == "dataset":
            return replace(job, dataset=replace(job.dataset, name="toy/renamed"))
        if changed == "template":
            return replace(job, recipe=replace(job.recipe, template=Template(prompt="Q: {text}")))
        return replace(job, recipe=replace(job.recipe, max_new_tokens=7))

    platform: Platform = request.getfixturevalue(state)
    monkeypatch.setattr(Platform, "training_job", change)
    with pytest.raises(RefusedError, match=f"its {changed} changed"):
        platform.train("toy/animals", resume=1)
    assert status(platform) == "interrupted"


def test_finished_run_is_published_with_corrected_code(
    finished: Platform, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_info, "code_digest", lambda function: "another")
    resumed = finished.train("toy/animals", resume=1)
    assert resumed.version.digest == trained["toy/animals"].digest


def test_run_of_another_recipe_is_an_error(stopped: Platform) -> None:
    with pytest.raises(UsageError, match="Run 1 is of toy/animals"):
        stopped.train("toy/prices", resume=1)


def test_resumed_run_keeps_its_settings(stopped: Platform) -> None:
    with pytest.raises(UsageError, match="keeps its settings"):
        stopped.train("toy/animals", resume=1, seed=9)


def test_run_in_use_by_another_process_is_not_resumed(stopped: Platform) -> None:
    from filelock import FileLock

    folder = stopped.workspace.run_path(1)
    with (
        FileLock(folder / ".lock"),
        pytest.raises(RefusedError, match="in use by another process"),
    ):
        stopped.train("toy/animals", resume=1)
    assert status(stopped) == "interrupted"


def test_manifest_that_says_finished_ends_no_training_early(
    stopped: Platform, trained: Trained
) -> None:
    """Neither edited nor sealed again: whether steps are left follows from the trainer's state."""
    folder = newest(stopped)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).unlink()
    values = {name: manifest[name] for name in ("training", "step", "best_step")}
    seal_checkpoint(folder, **values, finished=True)
    resumed = stopped.train("toy/animals", resume=1)
    assert resumed.version.digest == trained["toy/animals"].digest

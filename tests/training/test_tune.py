"""A search over settings: trials are kept, go on, and stop when they lose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from cli_runner import invoke
from trunkline.adapters.gc import collect, find_garbage
from trunkline.api import Platform
from trunkline.errors import Interrupted, NotFoundError, RefusedError, UsageError
from trunkline.training.config import RecipeConfig, make_config, read_config
from trunkline.training.search_space import SPACE, Choice, parse_space
from written_claims import claims

__all__ = ["claims"]

SETTINGS: dict[str, Any] = {"max_steps": 3, "evals_per_epoch": 1}


def own(file: Path, **settings: Any) -> RecipeConfig:
    values = {
        "name": "own/claims",
        "data": {"file": str(file), "label": "label"},
        "settings": {"max_steps": 24, "learning_rate": 0.005, "evals_per_epoch": 4, **settings},
    }
    return make_config(values, "test")


def test_the_first_trial_is_the_recipe_and_a_search_goes_on(platform: Platform) -> None:
    result = platform.tune("toy/animals", trials=2, **SETTINGS)
    job = platform.training_job("toy/animals", SETTINGS)
    first = result.trials[0]
    assert first.settings["learning_rate"] == pytest.approx(job.settings.learning_rate)
    assert set(first.settings) == set(SPACE)
    assert [trial.state for trial in result.trials] == ["complete", "complete"]
    assert result.best in result.trials
    scores = [trial.score for trial in result.trials if trial.score is not None]
    assert result.best is not None
    assert result.best.score == max(scores)
    assert platform.tune("toy/animals", trials=2, **SETTINGS).trials == result.trials
    more = platform.tune("toy/animals", trials=3, **SETTINGS)
    assert more.trials[:2] == result.trials
    assert len(more.trials) == 3
    other = platform.tune("toy/animals", trials=1, max_steps=2, evals_per_epoch=1)
    assert [trial.state for trial in other.trials] == ["complete"]
    assert platform.registry.adapters.list() == []
    assert list(platform.workspace.runs.iterdir()) == []


def test_a_losing_trial_is_stopped_by_its_interval(platform: Platform, claims: Path) -> None:
    space = {"learning_rate": "0.005,1e-8"}
    result = platform.tune(own(claims), trials=5, space=space)
    by_rate: dict[float, set[str]] = {0.005: set(), 1e-8: set()}
    for trial in result.trials:
        by_rate[trial.settings["learning_rate"]].add(trial.state)
    assert by_rate == {0.005: {"complete"}, 1e-8: {"stopped"}}
    stopped = [trial for trial in result.trials if trial.state == "stopped"]
    assert all(trial.share < 1 for trial in stopped)
    assert result.rows < result.full_rows
    assert result.best is not None
    assert result.best.settings == {"learning_rate": 0.005}


def test_a_trial_whose_process_was_killed_does_not_block_the_search(platform: Platform) -> None:
    platform.tune("toy/animals", trials=1, **SETTINGS)
    (name,) = optuna.get_all_study_names(
        optuna.storages.RDBStorage(platform.workspace.registry_url, skip_compatibility_check=True)
    )
    storage = optuna.storages.RDBStorage(
        platform.workspace.registry_url, skip_compatibility_check=True
    )
    optuna.load_study(study_name=name, storage=storage).ask()
    result = platform.tune("toy/animals", trials=3, **SETTINGS)
    states = [trial.state for trial in result.trials]
    assert states == ["complete", "unfinished", "complete", "complete"]


def test_time_and_the_user_end_a_search_and_keep_its_trials(platform: Platform) -> None:
    assert platform.tune("toy/animals", trials=3, seconds=0.0, **SETTINGS).best is None
    calls: list[int] = []

    def should_stop() -> bool:
        calls.append(1)
        return len(calls) > 12

    with pytest.raises(Interrupted):
        platform.tune("toy/animals", trials=9, should_stop=should_stop, **SETTINGS)
    result = platform.tune("toy/animals", trials=1, **SETTINGS)
    assert len(result.trials) >= 1


def test_the_registry_still_opens_and_migrates(platform: Platform) -> None:
    platform.tune("toy/animals", trials=1, **SETTINGS)
    where = ("--workspace", str(platform.workspace.root))
    for command in (("db", "current"), ("adapters", "list"), ("runs", "list")):
        assert invoke(*where, *command).exit_code == 0, command


def test_a_setting_that_fails_is_a_failed_trial(platform: Platform) -> None:
    space = {"layers_to_transform": ",top-3,top-9"}
    with pytest.raises((UsageError, NotFoundError)):
        parse_space(platform.training_job("toy/animals", SETTINGS), {"layers": "1,2"})
    result = platform.tune("toy/animals", trials=4, space=space, **SETTINGS)
    failed = [trial for trial in result.trials if trial.state == "failed"]
    assert all("top-9" in str(trial.settings) for trial in failed)
    assert all(trial.error for trial in failed)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("1e-4:2e-3:log", Choice("learning_rate", low=1e-4, high=2e-3, log=True)),
        ("0.001:0.01", Choice("learning_rate", low=0.001, high=0.01)),
        ("0.001,0.01,0.001", Choice("learning_rate", (0.001, 0.01))),
    ],
)
def test_ranges_and_values_are_read(text: str, choice: Choice, platform: Platform) -> None:
    job = platform.training_job("toy/animals", {})
    assert parse_space(job, {"learning_rate": text}) == (choice,)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("learning_rate", "0.01:0.001"),
        ("learning_rate", "0:0.001:log"),
        ("learning_rate", "high"),
        ("learning_rate", "1:2:3:4"),
        ("learning_rate", "2:3"),
        ("r", "0:8"),
        ("lr_scheduler_type", "linear:cosine"),
        ("use_rslora", "maybe"),
        ("split_seed", "1,2"),
        ("max_train_samples", "16,17"),
        ("seed", "1,2"),
    ],
)
def test_a_malformed_space_is_refused(name: str, text: str, platform: Platform) -> None:
    with pytest.raises(UsageError):
        parse_space(platform.training_job("toy/animals", {}), {name: text})


def test_the_command_prints_the_trials_and_writes_the_best_recipe(
    platform: Platform, claims: Path, tmp_path: Path
) -> None:
    where = ["--workspace", str(platform.workspace.root), "--base", str(platform.base_name)]
    file, best = tmp_path / "claims.yaml", tmp_path / "best.yaml"
    file.write_text(own(claims, max_steps=4, evals_per_epoch=1).to_yaml())
    done = invoke(
        *where, "tune", "--config", str(file), "--trials", "2", "--space", "r=4,8",
        "--budget", "5m", "--out", str(best), "--set", "max_steps=3",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "Best: trial" in done.stderr
    assert f"trunkline train --config {file} --set max_steps=3 --set r=" in done.stdout
    assert read_config(best).settings["r"] in (4, 8)
    assert read_config(best).settings["max_steps"] == 3
    done = invoke(
        *where, "tune", "--config", str(file), "--trials", "2", "--space", "r=4,8", "--json"
    )
    assert len(json.loads(done.stdout)["trials"]) == 2
    for args in (
        ("tune",),
        ("tune", "toy/animals", "--budget", "5 minutes"),
        ("tune", "toy/animals", "--trials", "1", "--out", str(tmp_path / "none" / "best.yaml")),
    ):
        assert invoke(*where, *args).exit_code == 2


def test_the_recipe_is_tried_again_if_its_trial_was_not_finished(platform: Platform) -> None:
    with pytest.raises(Interrupted):
        platform.tune("toy/animals", trials=3, should_stop=stop_in_training(), **SETTINGS)
    result = platform.tune("toy/animals", trials=2, **SETTINGS)
    assert [trial.state for trial in result.trials] == ["unfinished"] * 3 + ["complete"] * 2
    own_rate = platform.training_job("toy/animals", SETTINGS).settings.learning_rate
    assert result.trials[3].settings["learning_rate"] == pytest.approx(own_rate)


def test_trials_beside_one_another_end_as_they_do_alone(platform: Platform, claims: Path) -> None:
    space = {"learning_rate": "0.005,1e-8"}
    together = platform.tune(own(claims), trials=4, space=space, together=4)
    (shown, lost) = (
        [one for one in together.trials if one.settings["learning_rate"] == rate]
        for rate in (0.005, 1e-8)
    )
    assert {one.state for one in lost} <= {"stopped"}
    assert {one.state for one in shown} <= {"complete"}
    assert len(shown) + len(lost) == 4


def test_trials_that_can_not_share_the_base_run_alone(platform: Platform) -> None:
    result = platform.tune("toy/animals", trials=3, space={"use_dora": "true,false"}, **SETTINGS)
    assert [trial.state for trial in result.trials] == ["complete"] * 3


def stop_in_training() -> Any:
    """A ``should_stop`` that becomes true once a trial takes steps."""
    calls: list[int] = []

    def should_stop() -> bool:
        calls.append(1)
        return len(calls) > 3

    return should_stop


def test_another_recipe_or_space_is_another_search(platform: Platform, claims: Path) -> None:
    first = own(claims, max_steps=2, evals_per_epoch=1)
    other = first.model_copy(update={"loss": "focal", "loss_options": {"gamma": 5}})
    space = {"learning_rate": "1e-4:1e-3"}
    scores = []
    for config, searched in (
        (first, space), (other, space), (first, {"learning_rate": "1e-4:1e-3:log"}),
    ):  # fmt: skip
        result = platform.tune(config, trials=1, space=searched)
        assert [trial.state for trial in result.trials] == ["complete"]
        scores.append(result.trials[0].rows)
    names = optuna.get_all_study_names(
        optuna.storages.RDBStorage(platform.workspace.registry_url, skip_compatibility_check=True)
    )
    assert len(set(names)) == 3


def test_a_search_that_runs_elsewhere_is_not_disturbed(platform: Platform) -> None:
    seen: list[str] = []

    def should_stop() -> bool:
        if not seen and any(platform.workspace.runs.glob("tune-*/0")):
            with pytest.raises(RefusedError, match="another process"):
                platform.tune("toy/animals", trials=2, **SETTINGS)
            seen.append("refused")
        return False

    result = platform.tune("toy/animals", trials=1, should_stop=should_stop, **SETTINGS)
    assert seen == ["refused"]
    assert [trial.state for trial in result.trials] == ["complete"]


def test_what_a_killed_search_leaves_is_garbage(platform: Platform) -> None:
    folder = platform.workspace.runs / "tune-0123456789abcdef"
    (folder / "0").mkdir(parents=True)
    (folder / ".lock").touch()
    (folder / "0" / "model.safetensors").write_bytes(b"x" * 100)
    (garbage,) = find_garbage(platform.store)
    assert (garbage.name, garbage.bytes >= 100) == (folder.name, True)
    assert list(collect(platform.store, [garbage])) == [garbage]
    assert not folder.exists()

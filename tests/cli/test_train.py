"""train, eval, adapters and runs: output, exit codes, and what they record."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trunkline.cli import progress

if TYPE_CHECKING:
    from conftest import Run, Shared


@pytest.mark.parametrize("recipe", ["toy/animals", "toy/prices", "toy/plurals"])
def test_train_ends_well_whatever_the_verdict(shared: Shared, recipe: str) -> None:
    assert shared.trained[recipe].exit_code == 0


def test_train_reports_what_became_of_the_rows(shared: Shared) -> None:
    text = shared.trained["toy/animals"].stdout
    assert "65 read, 63 kept; dropped: empty text 1; duplicates 1; label conflicts 0" in text
    assert "tokens; cut to 96: none" in text


def test_train_ends_with_the_evaluation_report_beside_the_baselines(shared: Shared) -> None:
    text = shared.trained["toy/animals"].stdout
    for part in (
        "this adapter",
        "baseline majority",
        "baseline tfidf",
        "toy/hit_rate",
        "the baseline",
    ):
        assert part in text


def test_train_names_the_version_and_the_next_commands(shared: Shared) -> None:
    result = shared.trained["toy/animals"]
    assert "published toy/animals@1 (sha256:" in result.stdout
    assert 'trunkline predict toy/animals@1 "' in result.stderr
    assert "trunkline adapters promote toy/animals@1" in result.stderr


def test_train_of_a_generation_points_to_generate(shared: Shared) -> None:
    assert "trunkline generate toy/plurals@1" in shared.trained["toy/plurals"].stderr


def test_train_prints_progress_on_stderr_only(shared: Shared) -> None:
    result = shared.trained["toy/animals"]
    assert "reading data\n" in result.stderr
    assert "3 of 3, loss" in result.stderr
    assert "reading data" not in result.stdout


def test_train_json_holds_version_report_and_evaluation_report(shared: Shared) -> None:
    data = json.loads(shared.trained["toy/prices"].stdout)
    assert data["adapter"] == "toy/prices@1"
    assert data["report"]["data"]["read"] == 60
    assert data["evaluation_report"]["scores"].keys() == {"mae", "median_ape"}


def test_dry_run_shows_the_resolved_recipe_and_its_cost(run: Run) -> None:
    result = run("train", "toy/animals", "--set", "r=2", "--dry-run")
    assert result.exit_code == 0
    assert re.search(r"^r +2\b", result.stdout, re.MULTILINE)
    assert "nothing was trained or written" in result.stdout


def test_dry_run_trains_nothing(run: Run) -> None:
    before = run("runs", "list").stdout
    run("train", "toy/animals", "--dry-run", "--json")
    assert run("runs", "list").stdout == before


def test_dry_run_json_parses(run: Run) -> None:
    data = json.loads(run("train", "toy/animals", "--dry-run", "--json").stdout)
    assert data["steps"] == 3


def test_interrupted_training_is_kept_and_resumed(
    run_copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = progress.Lines.progress

    def interrupt(self: progress.Lines, done: int, total: int, values: Any) -> None:
        original(self, done, total, values)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(progress.Lines, "progress", interrupt)
        stopped = run_copy("train", "toy/prices")
    assert stopped.exit_code == 130
    assert "stopping after this step" in stopped.stderr
    assert "Interrupted: Run 4 was stopped" in stopped.stderr
    assert "interrupted" in run_copy("runs", "list").stdout
    resumed = run_copy("train", "toy/prices", "--resume", "4")
    assert resumed.exit_code == 0
    assert "published toy/prices@2" in resumed.stdout


def test_second_interrupt_quits_at_once(run_copy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: progress.Lines, done: int, total: int, values: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(progress.Lines, "progress", interrupt)
    result = run_copy("train", "toy/prices")
    assert result.exit_code == 130
    assert run_copy("adapters", "list").stdout.count("toy/prices") == 1


def test_handler_of_interrupts_is_put_back(run_copy: Run) -> None:
    before = signal.getsignal(signal.SIGINT)
    run_copy("train", "toy/prices", "--set", "max_steps=1")
    assert signal.getsignal(signal.SIGINT) is before


def test_eval_evaluates_a_version_again_with_slices(run_copy: Run) -> None:
    result = run_copy("eval", "toy/animals")
    assert result.exit_code == 0
    assert "toy/animals@1 (newest)" in result.stderr
    assert "Slices, by accuracy" in result.stdout
    assert "unknown" in result.stdout


def test_eval_json_holds_the_evaluation_report(run_copy: Run) -> None:
    data = json.loads(run_copy("eval", "toy/animals@1", "--json").stdout)
    assert data["adapter"] == "toy/animals@1"
    assert data["evaluation_report"]["verdict"] in ("beats", "ties", "loses")


def test_eval_over_folds_publishes_nothing(run_copy: Run) -> None:
    args = ("eval", "toy/prices", "--folds", "2", "--set", "max_steps=1", "--json")
    data = json.loads(run_copy(*args).stdout)
    assert data["folds"] == 2
    assert data["evaluation_report"]["rows"] == 60
    assert run_copy("adapters", "list").stdout.count("1 of 1") == 3


def test_eval_over_folds_prints_a_line_a_fold(run_copy: Run) -> None:
    result = run_copy("eval", "toy/prices", "--folds", "2", "--set", "max_steps=1")
    assert "toy/prices, 2 folds" in result.stdout
    assert "best on validation" in result.stdout


def test_adapters_list_shows_score_and_verdict(run: Run) -> None:
    lines = run("adapters", "list").stdout.splitlines()
    heads = ("adapter", "task", "reads", "base", "newest", "aliases", "score", "vs.", "baseline")
    assert tuple(lines[0].split()) == heads
    assert [line.split()[0] for line in lines[1:]] == ["toy/animals", "toy/plurals", "toy/prices"]
    assert "accuracy 0." in lines[1]


def test_adapters_list_json_parses(run: Run) -> None:
    data = json.loads(run("adapters", "ls", "--json").stdout)
    assert data[0]["adapter"] == "toy/animals"
    assert data[0]["score"].keys() == {"value", "low", "high"}


def test_adapters_list_says_when_there_are_more(run: Run) -> None:
    result = run("adapters", "list", "--limit", "2")
    assert len(result.stdout.splitlines()) == 3
    assert "--after toy/plurals" in result.stderr


def test_adapters_show_prints_identity_and_evaluation_report(run: Run, shared: Shared) -> None:
    text = run("adapters", "show", "toy/animals").stdout
    folder = shared.workspace / "adapters" / "toy" / "animals" / "1"
    for part in ("sha256:", "toy/animals@1", str(folder), "this adapter", "Slices", "Versions"):
        assert part in text


def test_adapters_show_json_names_the_folder(run: Run) -> None:
    data = json.loads(run("adapters", "show", "toy/animals@1", "--json").stdout)
    assert Path(data["folder"], "adapter_config.json").is_file()
    assert data["evaluation_report"]["rows"] == 18


def test_promote_prints_the_conditions_and_the_move(run_copy: Run) -> None:
    result = run_copy("adapters", "promote", "toy/prices")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("yes  at most 10000  (mae: ")
    assert lines[-1] == "toy/prices  champion: none → 1"


def test_promote_again_says_that_nothing_moved(run_copy: Run) -> None:
    run_copy("adapters", "promote", "toy/prices")
    assert "champion: 1 already" in run_copy("adapters", "promote", "toy/prices").stdout


def test_promote_is_refused_by_the_gate(run_copy: Run) -> None:
    result = run_copy("adapters", "promote", "toy/animals")
    assert result.exit_code == 1
    assert "Error: The gate refuses toy/animals@1" in result.stderr
    assert "Hint: " in result.stderr
    assert "champion" not in run_copy("adapters", "list").stdout


def test_forced_promotion_needs_a_reason(run_copy: Run) -> None:
    assert run_copy("adapters", "promote", "toy/animals", "--force").exit_code == 2


def test_forced_promotion_moves_the_alias(run_copy: Run) -> None:
    args = ("--force", "--reason", "a trial", "--alias", "trial", "--json")
    data = json.loads(run_copy("adapters", "promote", "toy/animals", *args).stdout)
    assert (data["alias"], data["new"], data["forced"]) == ("trial", 1, True)
    assert "trial=1" in run_copy("adapters", "list").stdout


def test_champion_answers_and_the_output_says_so(run_copy: Run) -> None:
    run_copy("adapters", "promote", "toy/prices")
    assert "toy/prices@1 (champion)\n" in run_copy("predict", "toy/prices", "3 kg").stderr


def test_runs_list_has_the_newest_first(run: Run) -> None:
    lines = run("runs", "list").stdout.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["toy/plurals", "toy/prices", "toy/animals"]


def test_runs_list_of_one_recipe(run: Run) -> None:
    data = json.loads(run("runs", "list", "--recipe", "toy/prices", "--json").stdout)
    assert [one["recipe"] for one in data] == ["toy/prices"]


def test_runs_show_prints_changed_settings_report_and_figures(run: Run) -> None:
    text = run("runs", "show", "1").stdout
    for part in (
        "num_train_epochs=1, ",
        "r=4",
        "torch",
        "65 read",
        "learning_rate",
        "toy/animals@1",
    ):
        assert part in text
    assert "warmup_ratio" not in text


def test_runs_show_json_has_the_figures(run: Run) -> None:
    data = json.loads(run("runs", "show", "1", "--json").stdout)
    assert {one["name"] for one in data["metrics"]} >= {"loss", "validation.accuracy"}


def test_failed_run_shows_its_error(run_copy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_plugin

    def no_number(context: Any) -> Any:
        return lambda outputs, targets: outputs.sum() * float("nan")

    monkeypatch.setattr(toy_plugin, "soft_loss", no_number)
    result = run_copy("train", "toy/animals")
    assert result.exit_code == 1
    assert "Error: The loss became nan at step 1." in result.stderr
    assert "The loss became nan" in run_copy("runs", "show", "4").stdout

"""``trunkline eval --against`` and ``--seeds``: versions, baselines, repeated trainings."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from cli_runner import invoke
from trunkline.api import Platform
from trunkline.errors import DataError, NotFoundError, UsageError


def run(platform: Platform, *args: str) -> tuple[int, str]:
    where = ["--workspace", str(platform.workspace.root), "--base", str(platform.base_name)]
    done = invoke(*where, *args)
    return done.exit_code, done.output


def test_two_versions_are_compared_row_by_row(trained_platform: Platform) -> None:
    trained_platform.train("toy/animals", max_steps=3, evals_per_epoch=1)
    result = trained_platform.compare("toy/animals@2", "toy/animals@1")
    back = trained_platform.compare("toy/animals@1", "toy/animals@2")
    assert (result.against, back.against) == ("toy/animals@1", "toy/animals@2")
    assert (result.gained, result.lost) == (back.lost, back.gained)
    for metric, difference in result.differences.items():
        expected = result.scores[metric].value - result.other_scores[metric].value
        assert difference.value == pytest.approx(expected)
        assert back.differences[metric].value == pytest.approx(-expected)


@pytest.mark.parametrize("name", ["animals", "prices", "plurals"])
def test_the_best_baseline_is_compared_as_in_the_evaluation(
    name: str, trained_platform: Platform
) -> None:
    evaluated = trained_platform.evaluation_report(trained_platform.resolve(f"toy/{name}").version)
    assert evaluated is not None
    result = trained_platform.compare(f"toy/{name}", "baseline")
    assert result.against == evaluated[0].best_baseline
    difference, stored = result.differences[result.metric], evaluated[0].difference
    assert asdict(difference) == pytest.approx(asdict(stored))
    assert result.verdict == evaluated[0].verdict


def test_a_baseline_by_name_is_fitted_on_the_same_rows(trained_platform: Platform) -> None:
    version = trained_platform.resolve("toy/animals").version
    evaluated = trained_platform.evaluation_report(version)
    assert evaluated is not None
    result = trained_platform.compare("toy/animals", "majority")
    assert result.other_scores == evaluated[0].baselines["majority"]
    nearest = trained_platform.compare("toy/animals", "core/nearest")
    assert nearest.against == "nearest"


def test_what_cannot_be_compared_is_refused(trained_platform: Platform) -> None:
    with pytest.raises(NotFoundError, match="baseline of a classification"):
        trained_platform.compare("toy/animals", "base")
    with pytest.raises(NotFoundError):
        trained_platform.compare("toy/animals", "toy/animal")
    with pytest.raises(DataError, match="can't be compared: the rows differ"):
        trained_platform.compare("toy/animals", "toy/plurals")


def test_seeds_show_the_spread_and_publish_nothing(platform: Platform) -> None:
    result = platform.repeat("toy/animals", 3, max_steps=3, evals_per_epoch=1)
    values = [report.score.value for report in result.reports]
    spread = result.spread[result.metric]
    assert spread.mean == pytest.approx(sum(values) / 3)
    assert (spread.low, spread.high) == (min(values), max(values))
    assert len({report.baselines["majority"][result.metric] for report in result.reports}) == 1
    assert platform.registry.adapters.list() == []
    assert list(platform.workspace.runs.iterdir()) == []
    with pytest.raises(UsageError, match="seeds can't be 1"):
        platform.repeat("toy/animals", 1)
    with pytest.raises(UsageError, match="seed can't be set"):
        platform.repeat("toy/animals", 2, seed=7)


def test_commands_print_the_comparison_and_the_spread(trained_platform: Platform) -> None:
    code, output = run(trained_platform, "eval", "toy/animals", "--against", "baseline")
    assert code == 0
    assert "McNemar" in output
    assert "difference" in output
    code, output = run(trained_platform, "eval", "toy/animals", "--against", "majority", "--json")
    assert json.loads(output[output.index("{") :])["against"] == "majority"
    settings = ("--set", "max_steps=2", "--set", "evals_per_epoch=1")
    code, output = run(trained_platform, "eval", "toy/prices", "--seeds", "2", *settings)
    assert code == 0, output
    assert "seeds 0 to 1" in output
    assert "deviation" in output


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("toy/animals", "--against", "baseline", "--folds", "2"), "can't be combined"),
        (("toy/animals", "--folds", "2", "--seeds", "2"), "can't be combined"),
        ((), "REF_OR_RECIPE is missing"),
        (("--config", "x.yaml"), "needs --folds or --seeds"),
        (("toy/animals", "--config", "x.yaml", "--seeds", "2"), "needs a recipe"),
        (("toy/animals@1", "--seeds", "2"), "names a version"),
        (("toy/animals", "--set", "r=4"), "keeps the settings"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    args: tuple[str, ...], part: str, trained_platform: Platform
) -> None:
    code, output = run(trained_platform, "eval", *args)
    assert code in (1, 2)
    assert part in output

"""``adapters merge`` and the parents in ``lineage``: output, JSON and exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from cli_runner import invoke
from toy_plugin import install_toy
from trunkline.bases import release
from workbench import tiny, trained_workspace, two_prices_workspace

__all__ = ["tiny", "trained_workspace", "two_prices_workspace"]

Run = Callable[..., Result]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_prices_workspace: Path, tiny: Path
) -> Run:
    """Run the program in a copy of the workspace with two versions of ``toy/prices``."""
    install_toy(tmp_path, monkeypatch)
    release()
    workspace = shutil.copytree(two_prices_workspace, tmp_path / "workspace")
    place = ("--workspace", str(workspace), "--base", str(tiny))
    return lambda *args, **options: invoke(*place, *args, **options)


def test_a_merge_shows_its_parents_and_its_evaluation(run: Run) -> None:
    merged = run("adapters", "merge", "toy/prices@1", "toy/prices@2", "--name", "toy/mixed",
                 "--method", "dare", "--weights", "0.4,0.6", "--seed", "7")  # fmt: skip
    assert merged.exit_code == 0, merged.output
    assert "toy/mixed@1" in merged.stdout
    assert "dare, density 0.5, seed 7" in merged.stdout
    assert "toy/prices@2, weight 0.6" in merged.stdout
    assert "the baseline" in merged.stdout
    lineage = run("lineage", "toy/mixed@1").stdout
    assert "merged by: dare, density 0.5, seed 7" in lineage
    assert "toy/prices@1: weight 0.4, sha256:" in lineage
    assert "merged into: toy/mixed@1" in run("lineage", "toy/prices@1").stdout
    assert run("eval", "toy/mixed").exit_code == 0
    assert run("adapters", "promote", "toy/mixed").exit_code == 0


def test_json_names_parents_rank_and_proof(run: Run) -> None:
    merged = run("adapters", "merge", "toy/prices@1", "toy/prices@2", "--name", "toy/mixed",
                 "--json")  # fmt: skip
    assert merged.exit_code == 0, merged.output
    value = json.loads(merged.stdout)
    assert value["adapter"] == "toy/mixed@1"
    assert [one["weight"] for one in value["merge"]["parents"]] == [0.5, 0.5]
    assert value["rank"] == 8
    assert value["proof"]["to_trained"] < 1e-4
    assert value["evaluation_report"]["metric"] == "mae"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("toy/prices@1", "toy/animals@1"), 1, "differ in their task"),
        (("toy/prices@1", "toy/prices@2", "--weights", "1;2"), 2, "not a list of weights"),
        (("toy/prices@1",), 2, "1 adapters can't be merged"),
    ],
)
def test_what_cannot_be_merged_is_explained(
    run: Run, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = run("adapters", "merge", *arguments, "--name", "toy/mixed")
    assert result.exit_code == code, result.output
    assert message in result.stderr

"""Averages of several adapters' answers, and their evaluation on rows that none has seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_runner import invoke
from trunkline.api import Platform
from trunkline.errors import RefusedError, UsageError
from trunkline.inference.ensemble import average
from trunkline.inference.request import Answer
from workbench import platform, tiny, trained_platform, trained_workspace

__all__ = ["platform", "tiny", "trained_platform", "trained_workspace"]

quick = settings(max_examples=50, deadline=None)
tables = st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3)


def classified(name: str, odds: list[float], labels: str = "abc") -> Answer:
    table = {label: one / sum(odds) for label, one in zip(labels, odds, strict=True)}
    label = max(table, key=lambda one: table[one])
    return Answer(name, f"sha256:{name}", "classification", 5, label=label, probabilities=table)


def regressed(name: str, value: float, unit: str = "USD") -> Answer:
    return Answer(name, f"sha256:{name}", "regression", 5, value=value, unit=unit)


@quick
@given(st.lists(tables, min_size=2, max_size=4))
def test_probabilities_are_averaged(odds: list[list[float]]) -> None:
    answers = [classified(f"a@{number}", one) for number, one in enumerate(odds, start=1)]
    mean = average(answers)
    assert mean.probabilities is not None
    assert sum(mean.probabilities.values()) == pytest.approx(1.0)
    for label, value in mean.probabilities.items():
        values = [(answer.probabilities or {})[label] for answer in answers]
        assert value == pytest.approx(sum(values) / len(values))
    assert mean.probabilities[mean.label or ""] == max(mean.probabilities.values())
    assert mean.adapter == "+".join(answer.adapter for answer in answers)


def test_numbers_are_averaged() -> None:
    assert average([regressed("a@1", 1.0), regressed("a@2", 4.0)]).value == 2.5


@pytest.mark.parametrize(
    "answers",
    [
        [classified("a@1", [1, 2, 3]), regressed("b@1", 1.0)],
        [classified("a@1", [1, 2, 3]), classified("b@1", [1, 2, 3], "abd")],
        [regressed("a@1", 1.0), regressed("b@1", 1.0, "EUR")],
        [Answer("a@1", "d", "generation", 5, text="x")] * 2,
        [classified("a@1", [1, 2, 3]), classified("b@1", [2, 2, 3]), classified("a@1", [1, 2, 3])],
    ],
)
def test_what_has_no_average_is_refused(answers: list[Answer]) -> None:
    with pytest.raises(UsageError, match="a@1"):
        average(answers)


def test_an_ensemble_is_evaluated_and_predicts_alike(
    trained_platform: Platform, tmp_path: Path
) -> None:
    trained_platform.train("toy/animals", max_steps=5, seed=9)
    report = trained_platform.evaluate("toy/animals@2", ensemble=["toy/animals@1"])
    assert set(report.baselines) >= {"majority", "tfidf"}
    where = ["--workspace", str(trained_platform.workspace.root)]
    where += ["--base", str(trained_platform.base_name)]
    texts = ["a cow", "a robin"]
    one, two = (trained_platform.predict(f"toy/animals@{number}", texts) for number in (2, 1))
    done = invoke(
        *where, "predict", "toy/animals@2", *texts, "--ensemble", "toy/animals@1", "--json",
        "--top", "0",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for shown, pair in zip(json.loads(done.stdout), zip(one, two, strict=True), strict=True):
        assert shown["probabilities"] == pytest.approx(average(pair).probabilities)
        assert shown["adapter"] == "toy/animals@2+toy/animals@1"
    file = tmp_path / "rows.csv"
    file.write_text("\n".join(["text", *texts, ""]))
    done = invoke(
        *where, "predict", "toy/animals@2", "--file", str(file), "--ensemble", "toy/animals@1",
        "--json", "--top", "0",
    )  # fmt: skip
    rows = json.loads(done.stdout)
    assert [row["text"] for row in rows] == texts
    for row, pair in zip(rows, zip(one, two, strict=True), strict=True):
        assert row["probabilities"] == pytest.approx(average(pair).probabilities)
    done = invoke(*where, "eval", "toy/animals@2", "--ensemble", "toy/animals@1", "--json")
    assert json.loads(done.stdout)["ensemble"] == ["toy/animals@1"]


def test_versions_of_another_split_are_not_evaluated_together(trained_platform: Platform) -> None:
    trained_platform.train("toy/animals", max_steps=2, split_seed=5)
    with pytest.raises(RefusedError, match="may have seen"):
        trained_platform.evaluate("toy/animals@1", ensemble=["toy/animals@2"])


def test_an_ensemble_has_no_thresholds(trained_platform: Platform) -> None:
    where = ("--workspace", str(trained_platform.workspace.root))
    args = ("predict", "toy/animals", "a cow", "--ensemble", "toy/animals", "--abstain", "0.9")
    done = invoke(*where, *args)
    assert done.exit_code == 2
    assert "can't be combined" in done.output

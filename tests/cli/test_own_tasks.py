"""Labels, spans and candidates from the command line: check, preview, train, predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from own_files import own_recipe

if TYPE_CHECKING:
    from conftest import Run

SMALL = ("--set", "max_steps=2", "--set", "r=2", "--set", "max_length=64")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file for each task."""
    monkeypatch.chdir(tmp_path)
    for name in ("shop/colors", "clinic/drugs", "shop/next"):
        own_recipe(name, tmp_path)
    lines = [f"Patient O\n{number} O\ntook O\naspirin B-DRUG\n\n" for number in range(60)]
    (tmp_path / "drugs.conll").write_text("".join(lines))
    return tmp_path


def ran(run: Run, *args: str) -> Any:
    """The JSON that a command prints."""
    result = run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_labels_are_trained_and_predicted(run_copy: Run, files: Path) -> None:
    columns = ("--labels", "colors")
    checked = ran(run_copy, "datasets", "check", "colors.jsonl", *columns)
    assert set(checked["labels"]) == {"red", "green", "blue"}
    args = ("train", "--data", "colors.jsonl", *columns, "--name", "shop/colors", *SMALL)
    trained = ran(run_copy, *args)
    assert set(trained["evaluation_report"]["scores"]) >= {"micro_f1", "subset_accuracy"}
    (answer,) = ran(run_copy, "predict", "shop/colors", "shirt in red", "--top", "0")
    assert set(answer["labels"]) <= set(answer["probabilities"])
    text = run_copy("predict", "shop/colors", "shirt in red").stdout
    assert text.splitlines()[0].strip() == (", ".join(answer["labels"]) or "no label")
    preview = run_copy("datasets", "preview", "colors.jsonl", *columns).stdout
    assert "shirt" in preview


def test_conll_file_is_trained_and_tagged(run_copy: Run, files: Path) -> None:
    preview = run_copy("datasets", "preview", "drugs.conll").stdout
    assert "[aspirin: DRUG]" in preview
    trained = ran(run_copy, "train", "--data", "drugs.conll", "--name", "clinic/drugs", *SMALL)
    assert trained["version"]["task"] == "tagging"
    assert "dictionary" in trained["evaluation_report"]["baselines"]
    text = "Patient 1 took aspirin"
    (answer,) = ran(run_copy, "predict", "clinic/drugs", text)
    for span in answer["spans"]:
        assert text[span["start"] : span["end"]] == span["text"]
    shown = run_copy("predict", "clinic/drugs", text).stdout
    assert all(span["text"] in shown for span in answer["spans"])


def test_candidates_are_trained_and_ranked(run_copy: Run, files: Path) -> None:
    columns = ("--text", "basket", "--relevant", "next", "--candidates", "goods")
    separator = ("--separator", "|")
    args = ("train", "--data", "baskets.jsonl", *columns, *separator, "--name", "shop/next")
    trained = run_copy(*args, *SMALL)
    assert "baseline popularity" in trained.stdout
    assert "baseline similarity" in trained.stdout
    assert 'predict shop/next@1 "a text" --candidate A --candidate B' in trained.stderr
    goods = ("milk", "tea", "rice")
    options = [part for one in goods for part in ("--candidate", one)]
    ranking = ran(run_copy, "predict", "shop/next", "basket: milk", *options)
    assert sorted(ranking["candidates"]) == sorted(goods)
    shown = run_copy("predict", "shop/next", "basket: milk", *options).stdout
    assert [line.split()[0] for line in shown.splitlines()] == ranking["candidates"]


PROBLEMS = {
    "no candidates": (("--relevant", "next"), "both relevant and candidates"),
    "candidates alone": (("--candidates", "goods"), "Which column"),
    "two tasks": (("--labels", "next", "--label", "goods"), "can't be combined"),
    "a template without the candidate": (
        ("--relevant", "next", "--candidates", "goods", "--separator", "|", "--text", "basket",
         "--template", "Basket: {text}"),
        "has no {candidate}",
    ),
    "a wrong separator": (
        ("--relevant", "next", "--candidates", "goods", "--text", "basket"), "--separator '|'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("problem", PROBLEMS)
def test_columns_that_do_not_fit_are_refused(run: Run, files: Path, problem: str) -> None:
    options, reason = PROBLEMS[problem]
    result = run("train", "--data", "baskets.jsonl", *options, "--name", "shop/next", *SMALL)
    assert result.exit_code in (1, 2)
    assert reason in result.stderr
    assert "Traceback" not in result.stderr


def test_candidate_needs_one_query(run: Run) -> None:
    result = run("predict", "toy/animals", "a", "b", "--candidate", "c", "--candidate", "d")
    assert result.exit_code == 2
    assert "one text as the query" in result.stderr
    result = run("predict", "toy/animals", "a", "--candidate", "c", "--candidate", "d")
    assert "only a ranking takes a candidate" in result.stderr

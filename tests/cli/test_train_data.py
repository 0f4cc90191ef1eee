"""Train on a user's own file: from a CSV to a version that answers, is evaluated and resumed."""

from __future__ import annotations

import csv
import json
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trunkline.cli import progress

if TYPE_CHECKING:
    from conftest import Run

COLUMNS = ("--text", "{title}: {body}", "--label", "kind")
SMALL = ("--set", "max_steps=2", "--set", "r=2", "--set", "max_length=64")


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixty rows in the current folder."""
    monkeypatch.chdir(tmp_path)
    drawn = random.Random(1)
    causes = {"home": ("water", "roof", "fire"), "car": ("crash", "hail", "glass")}
    with Path("claims.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["title", "body", "kind", "price"])
        for number in range(60):
            kind = ("home", "car")[number % 2]
            body = f"{drawn.choice(causes[kind])} damage, case {number}"
            table.writerow([f"Claim {number}", body, kind, f"{number}.5"])
    return Path("claims.csv")


def ran(run: Run, *args: str) -> Any:
    """The JSON that a command prints."""
    result = run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_csv_becomes_an_adapter_that_answers(run_copy: Run, claims: Path) -> None:
    args = ("train", "--data", str(claims), *COLUMNS, "--name", "claims/kind", *SMALL)
    trained = ran(run_copy, *args)
    assert trained["adapter"] == "claims/kind@1"
    assert trained["report"]["data"]["read"] == 60
    assert {"majority", "tfidf"} <= set(trained["evaluation_report"]["baselines"])
    answers = ran(run_copy, "predict", "claims/kind", "Claim: hail damage")
    assert answers[0]["label"] in ("home", "car")
    again = ran(run_copy, "eval", "claims/kind")
    assert again["evaluation_report"]["scores"] == trained["evaluation_report"]["scores"]
    assert "claims.csv (sha256 " in run_copy("lineage", "claims/kind").stdout


def test_eval_after_the_file_changed_is_refused(run_copy: Run, claims: Path) -> None:
    args = ("--data", str(claims), *COLUMNS, "--name", "claims/kind", *SMALL)
    assert run_copy("train", *args).exit_code == 0
    claims.write_text(claims.read_text().replace("hail", "snow"))
    result = run_copy("eval", "claims/kind")
    assert result.exit_code == 1
    assert "changed" in result.stderr
    claims.unlink()
    result = run_copy("eval", "claims/kind")
    assert result.exit_code != 0
    assert "claims.csv" in result.stderr


def test_interrupted_training_is_resumed_by_its_name(
    run_copy: Run, claims: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = progress.Lines.progress

    def interrupt(self: progress.Lines, done: int, total: int, values: Any) -> None:
        original(self, done, total, values)
        signal.raise_signal(signal.SIGINT)

    args = ("--data", str(claims), *COLUMNS, "--name", "claims/kind", *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(progress.Lines, "progress", interrupt)
        stopped = run_copy("train", *args)
    assert stopped.exit_code == 130
    assert "`trunkline train claims/kind --resume 4`" in stopped.stderr
    resumed = ran(run_copy, "train", "claims/kind", "--resume", "4")
    uninterrupted = ran(run_copy, "train", *args)
    assert resumed["version"]["digest"] == uninterrupted["version"]["digest"]


def test_artifact_does_not_name_the_folder_of_the_file(run_copy: Run, claims: Path) -> None:
    args = ("--data", str(claims.absolute()), *COLUMNS, "--name", "claims/kind", *SMALL)
    ran(run_copy, "train", *args)
    shown = ran(run_copy, "adapters", "show", "claims/kind")
    texts = [
        path.read_text()
        for path in Path(shown["folder"]).iterdir()
        if path.suffix != ".safetensors"
    ]
    assert any("claims.csv" in text for text in texts)
    assert not any(str(claims.absolute().parent) in text for text in texts)
    assert str(claims.absolute()) in run_copy("recipes", "export", "4").stdout


def test_yaml_of_a_run_trains_the_same_adapter(run_copy: Run, claims: Path) -> None:
    args = ("--data", str(claims), *COLUMNS, "--name", "claims/kind", *SMALL)
    first = ran(run_copy, "train", *args)
    assert run_copy("recipes", "export", "4", "--output", "claims.yaml").exit_code == 0
    second = ran(run_copy, "train", "--config", "claims.yaml")
    assert second["version"]["digest"] == first["version"]["digest"]


@pytest.mark.parametrize("name", ["²", "99999999999999999999", "-1", "run/0", "claims"])
def test_export_of_what_is_no_run_is_wrong_usage(run: Run, name: str) -> None:
    result = run("recipes", "export", "--", name)
    assert result.exit_code == 2
    assert "is not the number of a run" in result.stderr


def test_answer_that_would_be_cut_is_an_error_before_training(run: Run, claims: Path) -> None:
    claims.write_text(claims.read_text().replace(",home,", f",{'home ' * 60},"))
    args = ("datasets", "check", str(claims), "--text", "body", "--completion", "kind")
    result = run(*args)
    assert result.exit_code == 1
    assert "max_new_tokens" in result.stdout


def test_empty_number_is_listed(run: Run, claims: Path) -> None:
    claims.write_text(claims.read_text().replace(",3.5\n", ",\n"))
    data = ran(run, "datasets", "check", str(claims), "--text", "body", "--target", "price")
    (finding,) = [one for one in data["findings"] if one["kind"] == "empty targets"]
    assert finding["rows"] == ["4"]


def test_number_and_answer_are_learned_too(run_copy: Run, claims: Path) -> None:
    number = ran(
        run_copy, "train", "--data", str(claims), "--text", "body", "--target", "price",
        "--name", "claims/price", *SMALL,
    )  # fmt: skip
    assert number["version"]["task"] == "regression"
    answer = ran(
        run_copy, "train", "--data", str(claims), "--text", "body", "--completion", "kind",
        "--name", "claims/answer", *SMALL,
    )  # fmt: skip
    assert answer["version"]["task"] == "generation"


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ((), "is missing"),
        (("toy/animals", "--data", "claims.csv"), "can't be combined"),
        (("--data", "claims.csv", "--label", "kind"), "--name own/claims"),
        (("--data", "claims.csv", "--name", "a/b"), "title, body, kind, price"),
        (("--data", "claims.csv", "--name", "a/b", "--label", "kind", "--target", "price"),
         "--label and --target"),
        (("--data", "claims.csv", "--name", "a/b", "--label", "kimd", "--text", "body"), "'kind'"),
        (("--data", "none.csv", "--name", "a/b", "--label", "kind"), "none.csv"),
        (("--data", "claims.csv", "--name", "ab", "--label", "kind", "--text", "body"), "'ab'"),
        (("--data", "claims.csv", "--name", "a/b", "--label", "kind"), "'text'"),
        (("--label", "kind"), "--data"),
        (("toy/animals", "--name", "a/b"), "--data"),
        (("--config", "none.yaml"), "none.yaml"),
        (("--data", "claims.csv", "--name", "a/b", "--label", "kind", "--text", "body",
          "--template", "Claim"), "{text}"),
    ],
    ids=str,
)  # fmt: skip
def test_mistake_is_one_sentence_with_a_way_out(
    run: Run, claims: Path, args: tuple[str, ...], part: str
) -> None:
    result = run("train", *args)
    assert result.exit_code in (1, 2)
    assert part in result.stderr
    assert "Traceback" not in result.stderr
    assert "opening the base" not in result.stderr


# ------------------------------------------------------------------------- datasets check, preview


def test_check_finds_what_is_wrong_row_by_row(run: Run, claims: Path) -> None:
    with claims.open("a", newline="\r\n") as file:
        file.write("Claim 60,,car,1\nClaim 61,ask jane@example.org,Car,2\n")
        file.write("Claim 62,a scratch,Car,3\n")
    result = run("datasets", "check", str(claims), *COLUMNS)
    assert result.exit_code == 0, result.stderr
    assert "an e-mail address" in result.stdout
    assert "Rows 62" in result.stdout
    assert "'Car'" in result.stdout
    data = ran(run, "datasets", "check", str(claims), "--text", "body", "--label", "kind")
    assert data["usable"] is True
    kinds = {finding["kind"]: finding for finding in data["findings"]}
    assert kinds["empty texts"]["rows"] == ["61"]


def test_check_of_what_can_not_be_trained_on_fails(run: Run, claims: Path) -> None:
    claims.write_text("body,kind\none,a\ntwo,a\n")
    result = run("datasets", "check", str(claims), "--text", "body", "--label", "kind")
    assert result.exit_code == 1
    assert "one class only" in result.stdout
    assert "Error: own/claims can't be trained on." in result.stderr
    assert json.loads(
        run(
            "datasets", "check", str(claims), "--text", "body", "--label", "kind", "--json"
        ).stdout
    )["usable"] is False  # fmt: skip


def test_check_of_a_plugins_dataset(run: Run) -> None:
    data = ran(run, "datasets", "check", "toy/animals")
    assert data["rows"] == 65
    assert {"empty texts", "duplicates"} <= {finding["kind"] for finding in data["findings"]}


def test_columns_need_a_file(run: Run) -> None:
    result = run("datasets", "check", "toy/animals", "--label", "kind")
    assert result.exit_code == 2
    assert "--label needs a file" in result.stderr


def test_preview_shows_the_prompt_and_what_is_learned(run: Run, claims: Path) -> None:
    template = ("--template", r"Claim: {text}\nKind:")
    args = ("datasets", "preview", str(claims), "--text", "body", *template)
    shown = run(*args, "--label", "kind", "--rows", "2")
    assert shown.exit_code == 0
    assert shown.stdout.count("Claim: ") == 2
    assert "\nKind: → [" in shown.stdout
    answers = ran(run, *args, "--completion", "kind", "--rows", "1")
    (one,) = answers
    assert one["prompt"].endswith("\nKind:")
    assert one["learned"].endswith("[<|im_end|>]")
    assert len(one["input_ids"]) == one["prompt_tokens"] + one["learned_tokens"]


def test_saved_data_set_is_trained_on_in_its_official_split(run_copy: Run, tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    def part(name: str, count: int) -> Dataset:
        rows = [{"body": f"{name} {n}", "kind": ("home", "car")[n % 2]} for n in range(count)]
        return Dataset.from_list(rows)

    folder = tmp_path / "claims"
    parts = {"train": part("a", 20), "dev": part("b", 6), "test": part("c", 8)}
    DatasetDict(parts).save_to_disk(str(folder))
    args = ("--data", str(folder), "--text", "body", "--label", "kind", "--name", "claims/kind")
    trained = ran(run_copy, "train", *args, *SMALL)
    data = trained["report"]["data"]
    assert data["given_split"] is True
    assert data["parts"] == {"train": 20, "validation": 6, "test": 8}
    assert "claims/dev (sha256 " in run_copy("lineage", "claims/kind").stdout
    assert run_copy("eval", "claims/kind").exit_code == 0
    checked = ran(run_copy, "datasets", "check", str(folder), "--text", "body", "--label", "kind")
    assert checked["parts"] == data["parts"]
    DatasetDict({**parts, "test": part("d", 8)}).save_to_disk(str(folder))
    result = run_copy("eval", "claims/kind")
    assert result.exit_code == 1
    assert "changed" in result.stderr


def test_folds_of_own_data_hold_every_group_out_once(run_copy: Run, claims: Path) -> None:
    Path("claims.yaml").write_text(
        "name: claims/kind\ndata: {file: claims.csv, text: body, label: kind, group: title}\n"
        "settings: {max_steps: 2, r: 2, max_length: 64}\n"
    )
    folds = ran(run_copy, "eval", "--config", "claims.yaml", "--folds", "2")
    assert [fold["test_rows"] for fold in folds["per_fold"]] == [30, 30]
    report = folds["evaluation_report"]
    assert report["rows"] == report["groups"] == 60
    assert run_copy("adapters", "show", "claims/kind").exit_code != 0

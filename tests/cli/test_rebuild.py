"""``db rebuild``, ``adapters card`` and ``datasets croissant`` on the command line."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Run = Callable[..., Result]


KEPT = (
    *("adapter", "digest", "base_digest", "dataset", "dataset_fingerprint", "split_fingerprint"),
    *("run", "bytes", "files", "template_digest", "evaluation_report"),
)
ADAPTERS = ("toy/animals", "toy/plurals", "toy/prices")


def shown(run: Run, name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(run("adapters", "show", name, "--json").stdout)
    return {key: data[key] for key in KEPT}


@pytest.fixture
def lose(tmp_path: Path) -> Any:
    """Delete the registry of the copied workspace."""

    def lose() -> None:
        files = list((tmp_path / "copy").glob("registry.db*"))
        assert files
        for path in files:
            path.unlink()

    return lose


def test_deleted_registry_is_rebuilt_to_what_it_was(run_copy: Run, lose: Any) -> None:
    before = [shown(run_copy, name) for name in ADAPTERS]
    run = json.loads(run_copy("runs", "show", "1", "--json").stdout)
    lose()
    done = run_copy("db", "rebuild")
    assert done.exit_code == 0, done.stderr
    assert [shown(run_copy, name) for name in ADAPTERS] == before
    again = json.loads(run_copy("runs", "show", "1", "--json").stdout)
    for key in ("recipe", "status", "seed", "settings", "environment", "specification", "report",
                "plugin", "started", "versions"):  # fmt: skip
        assert again[key] == run[key]


def test_rebuild_lists_what_is_lost(run_copy: Run, lose: Any) -> None:
    lose()
    done = run_copy("db", "rebuild", "--json")
    assert "Lost permanently: aliases" in done.stderr
    data = json.loads(done.stdout)
    assert (data["versions"], data["runs"], data["skipped"]) == (3, 3, [])


@pytest.fixture
def damaged(run_copy: Run, lose: Any, tmp_path: Path) -> Run:
    """Run the program with a lost registry and one damaged artifact of three."""
    lose()
    weights = tmp_path / "copy/adapters/toy/prices/1/adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return run_copy


def test_rebuild_that_skipped_an_artifact_fails_with_an_error(damaged: Run) -> None:
    done = damaged("db", "rebuild")
    assert done.exit_code == 1
    error, hint = done.stderr.splitlines()[-2:]
    assert error == "Error: 1 of 3 artifacts was skipped; the others are in the registry."
    assert hint.startswith("Hint: ")
    assert "toy/prices/1 was skipped: " in done.stderr


def test_rebuild_that_skipped_an_artifact_recovers_the_others(damaged: Run) -> None:
    data = json.loads(damaged("db", "rebuild", "--json").stdout)
    assert (data["versions"], data["skipped"]) == (2, ["toy/prices/1"])
    assert damaged("adapters", "verify", "--all").exit_code == 0


def test_rebuilt_workspace_answers_as_before(run_copy: Run, lose: Any) -> None:
    expected = ("predict", "toy/animals", "a sparrow", "--json")
    before = json.loads(run_copy(*expected).stdout)
    lose()
    run_copy("db", "rebuild")
    assert json.loads(run_copy(*expected).stdout) == before


def test_rebuild_refuses_a_registry_with_rows(run_copy: Run) -> None:
    done = run_copy("db", "rebuild")
    assert done.exit_code == 1
    assert "is not empty" in done.stderr
    assert "db restore" in done.stderr


@pytest.mark.parametrize(
    ("lacks", "expected"),
    [("seconds", "unknown form"), ("data", "unknown form")],
)
def test_run_is_shown_whatever_its_report_lacks(
    run_copy: Run, lacks: str, expected: str, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "copy" / "registry.db")) as connection, connection:
        connection.execute("UPDATE runs SET report = json_remove(report, ?)", (f"$.{lacks}",))
    shown = run_copy("runs", "show", "1")
    assert shown.exit_code == 0, shown.stderr
    assert expected in shown.stdout + shown.stderr


def test_card_is_printed_with_its_metadata(run: Run) -> None:
    done = run("adapters", "card", "toy/animals")
    assert done.exit_code == 0
    assert done.stdout.startswith("---\nbase_model: ")
    assert "# toy/animals@1" in done.stdout


def test_card_of_json_names_the_digest(run: Run) -> None:
    data = json.loads(run("adapters", "card", "toy/animals", "--json").stdout)
    assert data["digest"].startswith("sha256:")
    assert data["card"].startswith("---\n")


def test_written_card_is_the_printed_one_and_verifies(run_copy: Run, tmp_path: Path) -> None:
    done = run_copy("adapters", "card", "toy/animals", "--write")
    kept = tmp_path / "copy/adapters/toy/animals/1/README.md"
    assert kept.read_text(encoding="utf-8") == done.stdout
    assert run_copy("adapters", "verify", "toy/animals").exit_code == 0


def test_card_of_an_unknown_adapter_is_wrong_usage(run: Run) -> None:
    assert run("adapters", "card", "toy/animal").exit_code == 2


def test_croissant_goes_to_stdout(run: Run) -> None:
    data = json.loads(run("datasets", "croissant", "toy/animals").stdout)
    assert data["conformsTo"] == "http://mlcommons.org/croissant/1.0"


def test_croissant_describes_the_file_of_rows(run: Run, tmp_path: Path) -> None:
    output, rows = tmp_path / "animals.json", tmp_path / "rows.jsonl"
    done = run("datasets", "croissant", "toy/animals", "--output", str(output),
               "--rows", str(rows), "--json")  # fmt: skip
    assert done.exit_code == 0
    data = json.loads(output.read_text())["distribution"][0]["sha256"]
    assert json.loads(done.stdout)["sha256"] == data
    assert hashlib.sha256(rows.read_bytes()).hexdigest() == data


def test_croissant_and_rows_need_two_files(run: Run, tmp_path: Path) -> None:
    same = str(tmp_path / "animals.json")
    done = run("datasets", "croissant", "toy/animals", "--output", same, "--rows", same)
    assert done.exit_code == 2
    assert "Name two files" in done.stderr


def test_croissant_that_can_t_be_written_is_one_error(run: Run, tmp_path: Path) -> None:
    done = run("datasets", "croissant", "toy/animals", "--output", str(tmp_path / "no/x.json"))
    assert done.exit_code == 2
    assert "does not exist" in done.stderr


def test_croissant_of_an_unknown_dataset_is_wrong_usage(run: Run) -> None:
    assert run("datasets", "croissant", "toy/animal").exit_code == 2

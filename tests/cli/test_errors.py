"""Errors: one sentence and a hint on stderr, nothing on stdout, an exit code."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cli_runner import invoke
from toy_plugin import install_toy
from trunkline import api
from trunkline.cli.output import note

if TYPE_CHECKING:
    from conftest import Run, Shared

WRONG_USAGE = [
    (("plugins", "show", "toi"), "Did you mean 'toy'?"),
    (("recipes", "show", "toy/animal"), "Did you mean 'toy/animals'?"),
    (("datasets", "show", "toy/animal"), "Did you mean 'toy/animals'?"),
    (("train", "toy/animal"), "Did you mean 'toy/animals'?"),
    (("train", "toy/animals", "--set", "max_step=3"), "Did you mean 'max_steps'?"),
    (("train", "toy/animals", "--set", "max_steps=x"), "must be an integer"),
    (("train", "toy/animals", "--set", "max_steps"), "is not key=value"),
    (("train", "toy/animals", "--set", "r=0"), "can't be 0"),
    (("train", "toy/animals", "--set", "target_modules=q_prj"), "Did you mean 'q_proj'?"),
    (("train", "toy/animals", "--set", "layers_to_transform=0,9"), "the base has 3 layers"),
    (("train", "toy/animals", "--resume", "2"), "Run 2 is of toy/prices"),
    (("train", "toy/animals", "--resume", "99"), "There is no run 99"),
    (("train", "toy/animals", "--resume", "1", "--dry-run"), "can't be combined"),
    (("eval", "toy/animals", "--set", "r=2"), "keeps the settings"),
    (("eval", "toy/animals@1", "--folds", "2"), "names a version"),
    (("eval", "toy/animals", "--folds", "1"), "2 to 20"),
    (("eval", "base"), "not an adapter"),
    (("predict", "toy/animal", "x"), "Did you mean 'toy/animals'?"),
    (("predict", "toy/animals@9", "x"), "The newest is toy/animals@1"),
    (("predict", "toy/animals@best", "x"), "There is no version 'toy/animals@best'"),
    (("predict", "../animals", "x"), "is not a valid domain"),
    (("predict", "toy/animals/x", "x"), "is not a ref"),
    (("predict", "toy/" + "a" * 300, "x"), "is not a valid adapter name"),
    (("predict", "base", "x"), "trunkline generate base"),
    (("predict", "toy/plurals", "x"), "trunkline generate toy/plurals@1"),
    (("predict", "toy/animals"), "either as arguments or with --file"),
    (("predict", "toy/animals", "x", "--out", "y"), "--out needs --file"),
    (("predict", "toy/animals", "--file", "nothing.csv"), "There is no file 'nothing.csv'"),
    (("generate", "toy/animals", "x"), "trunkline predict toy/animals@1"),
    (("generate", "base", "x", "--max-new-tokens", "0"), "max_new_tokens can't be 0"),
    (("adapters", "show", "toy/animal"), "Did you mean 'toy/animals'?"),
    (("adapters", "promote", "toy/prices", "--alias", "latest"), "is reserved"),
    (("runs", "show", "99"), "trunkline runs list"),
    (("lineage", "run/0"), "'run/0' is not the number of a run"),
    (("runs", "diff", "1", "run/2/3"), "'run/2/3' is not the number of a run"),
    (("runs", "list", "--before", "9" * 20), "is not the number of a run"),
    (("adapters", "history", "toy/animals", "--limit", "9" * 20), "is not in the range"),
    (("base", "show", "smollm2-135"), "Did you mean 'smollm2-135m'?"),
    (("base", "pull", "--from", "nothing.whl", "smollm2-135m"), "There is no file"),
    (("plugins", "check", "nothing"), "There is no plugin or folder"),
    (("adapter", "list"), "Did you mean 'adapters'?"),
    (("adapters", "lst"), "Did you mean 'list'?"),
    (("adapters", "list", "--jsn"), "Did you mean '--json'?"),
    (("adapters", "list", "--workspace", "x"), "`trunkline --workspace … adapters list …`"),
    (("train",), "What is to be trained is missing"),
    (("train", "toy/animals", "--set", "r=2", "--set", "r=4"), "--set r is given twice"),
    (("runs", "show", "one"), "'one' is not the number of a run"),
]


@pytest.mark.parametrize(("args", "expected"), WRONG_USAGE, ids=lambda value: str(value)[:60])
def test_wrong_usage_exits_with_2(run: Run, args: tuple[str, ...], expected: str) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    lines = [line for line in result.stderr.splitlines() if line.startswith(("Error", "Hint"))]
    assert [line.partition(":")[0] for line in lines] == ["Error", "Hint"]
    assert expected in " ".join(lines)


@pytest.mark.parametrize(
    "args",
    [
        ("train", "--json"),
        ("train", "toy/animals", "extra", "--json"),
        ("train", "--json", "toy/animals", "--nonsense"),
        ("predict", "toy/animals", "-20% off", "--json"),
        ("predict", "toy/animals", "a carp", "--top", "-1", "--json"),
        ("runs", "list", "--json", "--limit", "0"),
        ("runs", "lst", "--json"),
        ("nonsense", "--json"),
        ("--nonsense", "runs", "list", "--json"),
    ],
    ids=" ".join,
)
def test_wrong_usage_with_json_is_one_json_document(run: Run, args: tuple[str, ...]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["message"]
    assert "Error: " in result.stderr


def test_json_among_the_texts_is_a_text(run: Run) -> None:
    result = run("predict", "--top", "x", "toy/animals", "--", "--json")
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize("command", [("chat", "toy/animals"), ("train", "toy/animals")])
def test_unknown_option_of_a_command_without_texts_is_no_text(
    run: Run, command: tuple[str, ...]
) -> None:
    result = run(*command, "--nonsense")
    assert "If it is a text" not in result.stderr
    assert f"`trunkline {command[0]} --help` shows the usage." in result.stderr


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("predict", "toy/animals", "-20% on all shoes"), '`trunkline predict … -- "-2…"`'),
        (("predict", "toy/animals", "--sale today--"), '-- "--sale today--"`'),
        (("generate", "base", "- one\n- two"), '`trunkline generate … -- "- …"`'),
        (("note", "run/1", "-done-"), '`trunkline note … -- "-d…"`'),
    ],
    ids=["percent", "long", "list", "note"],
)
def test_text_that_begins_with_a_dash_is_shown_the_way(
    run: Run, args: tuple[str, ...], expected: str
) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Hint: If it is a text, put `--` before it: " in result.stderr
    assert expected in result.stderr


def test_text_after_two_dashes_is_taken(run: Run) -> None:
    result = run("predict", "toy/animals", "--json", "--", "-20% on all shoes", "--top")
    assert [answer["text"] for answer in json.loads(result.stdout)] == [
        "-20% on all shoes", "--top",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "args",
    [("adapters", "export", "toy/animals"), ("audit", "export"), ("db", "backup")],
    ids=" ".join,
)
def test_an_existing_output_file_is_wrong_usage(
    run: Run, args: tuple[str, ...], tmp_path: Path
) -> None:
    remote = tmp_path / "there"
    remote.write_text("mine")
    result = run(*args, str(remote))
    assert (result.exit_code, result.stdout, remote.read_text()) == (2, "", "mine")
    assert "another file" in result.stderr


CLEAR = "\x1b[2J\x9b2J\u202e"


@pytest.mark.parametrize(
    "args",
    [
        ("runs", "list", CLEAR),
        ("runs", "list", f"--{CLEAR}"),
        ("runs", CLEAR),
        ("adapters", "list", "--limit", CLEAR),
        ("plugins", "show", CLEAR),
        ("db", "backup", f"/nowhere/{CLEAR}/x.db"),
    ],
    ids=["argument", "option", "command", "value", "name", "path"],
)
def test_control_characters_of_an_argument_are_escaped(run: Run, args: tuple[str, ...]) -> None:
    text = run(*args).stderr
    assert text.isascii()
    assert r"\x1b[2J\x9b2J\u202e" in text
    assert "\x1b" not in text


def test_control_characters_in_a_note_are_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    note(f"two lines:\n{CLEAR} is left out")
    assert capsys.readouterr().err == "two lines:\n\\x1b[2J\\x9b2J\\u202e is left out\n"


def test_error_stays_in_its_line_whatever_was_typed(run: Run) -> None:
    lines = run("runs", "list", "x\nError: y").stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["Error", "Hint"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--workspace", "/nowhere", "runs", "list"), "does not exist"),
        (("--no-plugin", "toi", "recipes", "list"), "Did you mean 'toy'?"),
        (("--base", "smollm", "base", "show"), "Did you mean 'smollm2-135m'?"),
    ],
    ids=["workspace", "plugin", "base"],
)
def test_wrong_global_option_exits_with_2(
    args: tuple[str, ...], expected: str, run: Run, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_WORKSPACE", str(shared.workspace))
    result = invoke(*args)
    assert result.exit_code == 2
    assert expected in result.stderr


def test_base_that_was_not_pulled_is_a_failure(run: Run) -> None:
    result = run("base", "show", "smollm2-135m")
    assert result.exit_code == 1
    assert "Hint: Run `trunkline base pull`." in result.stderr


def test_registry_newer_than_the_code_is_refused(run_copy: Run, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "copy" / "registry.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    result = run_copy("runs", "list")
    assert result.exit_code == 1
    assert "newer" in result.stderr


def test_changed_artifact_is_refused(run_copy: Run, tmp_path: Path) -> None:
    weights = tmp_path / "copy/adapters/toy/animals/1/adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    result = run_copy("predict", "toy/animals", "x")
    assert result.exit_code == 1
    assert "Error: " in result.stderr
    assert "was changed" in result.stderr


@pytest.fixture
def broken(shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_WORKSPACE", str(shared.workspace))
    install_toy(tmp_path, monkeypatch, broken=True)


def test_broken_plugin_is_shown_as_failed(broken: None) -> None:
    line = next(
        line for line in invoke("plugins", "list").stdout.splitlines() if line.startswith("broken")
    )
    assert "failed" in line
    assert "no_such_module" in line


def test_broken_plugin_shows_its_traceback(broken: None) -> None:
    text = invoke("plugins", "show", "broken").stdout
    assert "Traceback" in text
    assert "import no_such_module" in text


@pytest.mark.parametrize("noun", ["recipes", "datasets"])
def test_broken_plugin_is_warned_of_once(broken: None, noun: str) -> None:
    result = invoke(noun, "list")
    assert result.exit_code == 0
    assert result.stderr.count("trunkline plugins show broken") == 1
    assert "toy/animals" in result.stdout


def test_commands_without_plugins_warn_of_none(broken: None) -> None:
    assert invoke("runs", "list").stderr == ""


def test_broken_plugin_is_an_error_under_strict(broken: None) -> None:
    result = invoke("--strict", "recipes", "list")
    assert result.exit_code == 1
    assert "no_such_module" in result.stderr


def test_blocked_plugin_is_not_loaded(broken: None) -> None:
    result = invoke("--no-plugin", "broken", "recipes", "list")
    assert "broken" not in result.stderr


def test_no_plugins_leaves_an_empty_list(toy: None, tmp_path: Path) -> None:
    result = invoke("--workspace", str(tmp_path), "--no-plugins", "recipes", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "No plugin has a recipe" in result.stderr


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("boom\nbang")

    monkeypatch.setattr(api, "open", fail)


def test_unexpected_exception_is_one_line_and_a_hint(bug: None) -> None:
    result = invoke("runs", "list")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "Error: unexpected ValueError: boom."
    assert "--debug" in result.stderr.splitlines()[1]
    assert len(result.stderr.splitlines()) == 2


def test_debug_shows_the_traceback(bug: None) -> None:
    assert "Traceback (most recent call last)" in invoke("--debug", "runs", "list").stderr


def test_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "open", interrupt)
    result = invoke("runs", "list")
    assert result.exit_code == 130
    assert result.stderr.strip() == "Interrupted."


def test_no_command_shows_the_help_on_stderr() -> None:
    result = invoke()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Commands:" in result.stderr


def test_reader_that_goes_away_is_no_error(environment: dict[str, str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = "from trunkline.cli import main; main()"
    with os.fdopen(writing, "w") as stdout:
        done = subprocess.run(
            [sys.executable, "-c", program, "base", "list", "--json"],
            env=environment,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.stderr == ""


def test_full_disk_behind_stdout_is_one_sentence(environment: dict[str, str]) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    args = [sys.executable, "-c", "from trunkline.cli import main; main()", "--version"]
    with full.open("w") as sink:
        done = subprocess.run(args, stdout=sink, stderr=subprocess.PIPE, env=environment)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[0].startswith("Error: The output can't be")

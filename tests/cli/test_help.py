"""Help texts, examples, and the packages that a command loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cli_runner import invoke
from trunkline import __version__
from trunkline.cli.examples import SESSION, declared_examples, recorded_outputs
from trunkline.cli.root import trunkline
from trunkline.reference import command_paths

LISTS = ("plugins", "base", "datasets", "recipes", "adapters", "runs", "keys", "requests", "audit")
GROUPS = {(one,) for one in (*LISTS, "db")}
COMMANDS = [path for path in command_paths() if path and path not in GROUPS]

WEB = ("fastapi", "uvicorn", "prometheus_client", "httpx2")
STACK = ("torch", "transformers", "peft", "datasets", "sklearn", "pandas", "pyarrow", *WEB)
LIBRARIES = (*STACK, "numpy", "sqlalchemy", "alembic", "rich", "pluggy")


@pytest.mark.parametrize("path", command_paths(), ids=" ".join)
def test_help_answers(path: tuple[str, ...]) -> None:
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: " + " ".join(("trunkline", *path)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_shows_an_example_with_its_output(path: tuple[str, ...]) -> None:
    example = invoke(*path, "-h").stdout.partition("Example:\n")[2].partition("\nOptions:")[0]
    lines = example.splitlines()
    assert lines[0].startswith("  $ trunkline " + " ".join(path))
    assert len(lines) > 1


def test_each_command_is_in_the_session_of_examples() -> None:
    assert sorted(SESSION) == sorted(" ".join(path) for path in COMMANDS)


def test_each_example_has_a_recorded_output_and_no_output_is_left_over() -> None:
    lines = [example.line for _, example in declared_examples()]
    assert sorted(lines) == sorted(recorded_outputs())
    assert all(recorded_outputs().values())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_listings_and_shows_have_json(path: tuple[str, ...]) -> None:
    without = {("plugins", "uninstall"), ("chat",), ("serve",), ("console",), ("audit", "export")}
    assert ("--json" in invoke(*path, "--help").stdout) == (path not in without)


@pytest.mark.parametrize("noun", LISTS)
def test_ls_is_list(noun: str) -> None:
    help_of_list = invoke(noun, "list", "--help").stdout
    assert invoke(noun, "ls", "--help").stdout.replace(" ls ", " list ") == help_of_list


def test_rm_is_uninstall() -> None:
    assert "Uninstall a plugin" in invoke("plugins", "rm", "--help").stdout


def test_rm_is_itself_where_a_group_has_it() -> None:
    assert "Remove a key" in invoke("keys", "rm", "--help").stdout


def test_short_helps_are_not_cut() -> None:
    assert "..." not in invoke("--help").stdout.partition("Commands:")[2]


def test_version_is_printed() -> None:
    assert invoke("--version").stdout == f"trunkline {__version__}\n"


def test_the_name_of_the_program_is_the_entry_points() -> None:
    assert trunkline.name == "trunkline"


@pytest.mark.parametrize(
    ("args", "heavy"),
    [
        (("--help",), LIBRARIES),
        (("train", "--help"), LIBRARIES),
        (("plugins", "list"), STACK),
        (("adapters", "list"), STACK),
        (("runs", "list"), STACK),
        (("recipes", "list"), STACK),
        (("datasets", "list"), STACK),
        (("base", "list"), STACK),
        (("serve", "--help"), LIBRARIES),
        (("ps", "--help"), LIBRARIES),
        (("keys", "list"), STACK),
        (("requests", "list"), STACK),
    ],
    ids=" ".join,
)
def test_command_does_not_load(
    args: tuple[str, ...], heavy: tuple[str, ...], environment: dict[str, str]
) -> None:
    program = (
        "import sys\n"
        "from trunkline.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        f"print('LOADED', sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *args], env=environment, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == "LOADED []"

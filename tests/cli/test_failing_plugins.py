"""A plugin that fails in a command: one error, a non-zero exit, and stdout for JSON alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

import toy_plugin
from cli_runner import invoke
from toy_plugin import install_toy
from trunkline.cli.command import Command
from trunkline.cli.errors import exit_code_of
from trunkline.cli.output import json_option, print_json

if TYPE_CHECKING:
    from conftest import Run, Shared


class Stop(BaseException):
    """An exception that is no Exception."""


def ending(end: Callable[[], Any]) -> Callable[..., Any]:
    def function(*_: Any) -> Any:
        return end()

    return function


ENDS: dict[str, Callable[[], Any]] = {
    "sys.exit(0)": lambda: sys.exit(0),
    "os._exit(9)": lambda: os._exit(9),
    "Stop: over": lambda: (_ for _ in ()).throw(Stop("over")),
}


@pytest.mark.parametrize("text", ENDS)
@pytest.mark.parametrize("function", ["read_animals", "soft_loss"])
def test_plugin_that_ends_the_program_fails_the_training(
    function: str, text: str, run_copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_plugin, function, ending(ENDS[text]))
    result = run_copy("train", "toy/animals", "--set", "max_steps=1", "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "PluginCallError"
    assert text in error["message"]
    assert "Traceback" not in result.stderr
    assert result.stderr.count("Error: ") == 1


@pytest.mark.parametrize("text", ["sys.exit(0)", "Stop: over"])
def test_metric_that_fails_after_the_training_says_how_to_go_on(
    text: str, run_copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(toy_plugin, "hit_rate", ending(ENDS[text]))
        result = run_copy("train", "toy/animals", "--set", "max_steps=1", "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert "The metric toy/hit_rate" in error["message"]
    command = re.search(r"`trunkline (train toy/animals --resume \d+)`", error["hint"])
    assert command is not None
    resumed = run_copy(*command[1].split(), "--json")
    assert resumed.exit_code == 0
    assert json.loads(resumed.stdout)["adapter"] == "toy/animals@2"
    assert "1 of 1" not in resumed.stderr  # no step was taken again


def test_plugin_that_prints_does_not_spoil_the_json(
    run_copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(scored: Any) -> float:
        print("noise of the metric")
        return 1.0

    monkeypatch.setattr(toy_plugin, "hit_rate", noisy)
    result = run_copy("train", "toy/animals", "--set", "max_steps=1", "--json")
    assert json.loads(result.stdout)["adapter"] == "toy/animals@2"
    assert "noise of the metric" in result.stderr


def test_second_claim_on_a_domain_is_warned_of_with_both_names(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = install_toy(tmp_path, monkeypatch)
    for name, time in (("trunkline_toy", 1), ("rival", 2)):
        info = site / f"{name}-1.0.dist-info"
        if not info.exists():
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text("[trunkline]\ntoy = rival\n")
        os.utime(info / "METADATA", (time, time))
    result = invoke("--workspace", str(shared.workspace), "recipes", "list")
    assert result.exit_code == 0
    assert "toy/animals" in result.stdout
    assert result.stderr == (
        "Warning: the plugin 'toy' of rival is ignored: the domain 'toy' belongs to "
        "trunkline-toy 1.0, which was installed first; uninstall one of them, or name the owner in "
        "trunkline.toml.\n"
    )


# ---------------------------------------------------------------------------- the JSON document


@pytest.fixture
def command() -> Callable[[Callable[[], None]], int]:
    """Run a command with ``--json`` whose body is the given function."""

    def run(body: Callable[[], None]) -> int:
        @click.command("try", cls=Command, example="trunkline try")
        @json_option
        def command(as_json: bool) -> None:
            body()

        return exit_code_of(
            lambda: command.main(["--json"], standalone_mode=False), debug=lambda: False
        )

    return run


def test_stdout_of_json_holds_the_result_alone(
    command: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    def body() -> None:
        print("by Python")
        os.write(1, b"by the system\n")
        subprocess.run(["echo", "by a child"], check=True)
        print_json([1])

    assert command(body) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out) == [1]
    for line in ("by Python", "by the system", "by a child"):
        assert line in captured.err
    print("afterwards")
    assert capfd.readouterr().out == "afterwards\n"


@pytest.mark.parametrize(
    ("end", "code", "kind"),
    [
        (lambda: sys.exit(0), 1, "SystemExit"),
        (lambda: sys.exit(), 1, "SystemExit"),
        (lambda: sys.exit("no"), 1, "SystemExit"),
        (lambda: sys.exit(7), 7, "SystemExit"),
        (lambda: {}["x"], 1, "KeyError"),
        (ENDS["Stop: over"], 1, "Stop"),
        (lambda: (_ for _ in ()).throw(KeyboardInterrupt), 130, "KeyboardInterrupt"),
        (lambda: (_ for _ in ()).throw(click.UsageError("no")), 2, "UsageError"),
    ],
)
def test_every_abnormal_end_has_an_exit_code_and_one_error_in_json(
    end: Callable[[], Any],
    code: int,
    kind: str,
    command: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert command(end) == code
    captured = capfd.readouterr()
    assert json.loads(captured.out)["error"]["type"] == kind
    assert captured.err.strip()


def test_error_after_the_result_adds_nothing_to_stdout(
    command: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    def body() -> None:
        print_json({"done": True})
        raise ValueError("late")

    assert command(body) == 1
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {"done": True}
    assert "late" in captured.err


def test_exit_of_the_program_names_the_file_and_line(
    command: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(lambda: sys.exit(0)) == 1
    assert re.search(
        r"ended by sys\.exit\(0\) in .*test_failing_plugins\.py, line \d+", capfd.readouterr().err
    )

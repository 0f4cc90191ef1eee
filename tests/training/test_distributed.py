"""Two processes of a launcher train what one process does with twice the batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli_runner import invoke
from own_files import own_recipe
from trunkline.adapter_files import AdapterFiles
from trunkline.api import open
from trunkline.errors import UsageError

pytestmark = pytest.mark.merge

SETTINGS: dict[str, Any] = {"max_steps": 6, "num_train_epochs": 3.0, "evals_per_epoch": 1}


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--no-python", "--nproc-per-node=2", "--master-port"],
    "accelerate": [
        "accelerate.commands.launch", "--multi_gpu", "--no_python", "--num_processes=2",
        "--main_process_port",
    ],
}  # fmt: skip


def command(folder: Path, base: Path, launcher: str, *args: str) -> list[str]:
    """`trunkline train` of the folder's recipe, in two processes if a launcher is named."""
    program = [str(Path(sys.executable).parent / "trunkline")]
    if launcher:
        program = [sys.executable, "-m", *LAUNCHERS[launcher], str(free_port()), *program]
    place = ["--workspace", str(folder), "--base", str(base), "--no-plugins"]
    return [*program, *place, "train", "--config", str(folder / "recipe.yaml"), *args, "--json"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=ENVIRONMENT)


def start(folder: Path, base: Path, launcher: str = "", *args: str) -> Any:
    """The JSON that `trunkline train` prints."""
    done = run(command(folder, base, launcher, *args))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def stop_after_a_checkpoint(folder: Path, base: Path) -> None:
    """Stop a training of two processes between its first checkpoint and its last step."""
    started = subprocess.Popen(
        command(folder, base, "torchrun"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    try:
        end = time.monotonic() + 120
        while not list(folder.glob("**/checkpoints/checkpoint-*/checkpoint.json")):
            assert started.poll() is None, "it ended before it wrote a checkpoint"
            assert time.monotonic() < end, "it wrote no checkpoint"
            time.sleep(0.05)
    finally:
        started.terminate()
        started.wait(60)


def workspace(folder: Path, name: str, batch: int, **settings: Any) -> Path:
    folder.mkdir()
    settings = {**SETTINGS, "per_device_train_batch_size": batch, **settings}
    recipe = own_recipe(name, folder, **settings)
    (folder / "recipe.yaml").write_text(recipe.to_yaml(folder), encoding="utf-8")
    return folder


def losses(folder: Path, base: Path, run: int) -> list[float]:
    platform = open(folder, base=str(base), no_plugins=True)
    try:
        metrics = platform.registry.runs.metrics(run)
        return [point.value for point in metrics if point.name in ("loss", "validation.loss")]
    finally:
        platform.registry.close()


@pytest.mark.parametrize(
    ("name", "launcher"), [("shop/colors", "torchrun"), ("clinic/drugs", "accelerate")]
)
def test_two_processes_train_like_one_with_twice_the_batch(
    name: str, launcher: str, tmp_path: Path, tiny: Path
) -> None:
    one = workspace(tmp_path / "one", name, 8)
    two = workspace(tmp_path / "two", name, 4)
    alone, together = start(one, tiny), start(two, tiny, launcher)
    assert together["report"]["steps"] == alone["report"]["steps"] == 6
    assert losses(two, tiny, 1) == pytest.approx(losses(one, tiny, 1), abs=1e-4)
    assert len(losses(two, tiny, 1)) > 6
    assert [path.name for path in (two / "adapters" / name).iterdir()] == ["1"]


def test_two_processes_resume_what_two_began(tmp_path: Path, tiny: Path) -> None:
    settings = {"max_steps": 40, "num_train_epochs": 20.0, "evals_per_epoch": 2}
    complete = start(workspace(tmp_path / "a", "shop/colors", 4, **settings), tiny, "torchrun")
    stopped = workspace(tmp_path / "b", "shop/colors", 4, **settings)
    stop_after_a_checkpoint(stopped, tiny)
    alone = run(command(stopped, tiny, "", "--resume", "1"))
    assert alone.returncode == 1
    assert "the number of processes was 2 and is 1 now" in alone.stderr
    resumed = start(stopped, tiny, "torchrun", "--resume", "1")
    assert resumed["version"]["digest"] == complete["version"]["digest"]


FILES: dict[str, Callable[[AdapterFiles], object]] = {
    "merge": lambda files: files.merge_adapters(["toy/a@1", "toy/a@2"], "toy/b"),
    "import": lambda files: files.import_adapter("folder", "toy/a"),
    "an archive": lambda files: files.import_archive("a.tar"),
    "export": lambda files: files.export_adapter("toy/a", "a.tar"),
    "a model": lambda files: files.export_model("toy/a", "folder", "merged"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_are_written_by_one_process(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"2 processes \(WORLD_SIZE\)"):
        FILES[case](open(tmp_path, no_plugins=True).files)


def test_number_of_processes_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    refused = invoke(
        "--workspace", str(tmp_path), "adapters", "merge", "toy/a@1", "toy/a@2", "--name", "toy/b"
    )
    assert "WORLD_SIZE is 'two'" in refused.stderr
    assert refused.exit_code == 2


@pytest.mark.parametrize("args", [("eval", "--folds", "2"), ("eval", "--seeds", "2"), ("tune",)])
def test_work_of_one_process_is_refused_in_several(
    args: tuple[str, ...], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workspace(tmp_path / "a", "shop/colors", 4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    place = ("--workspace", str(folder), "--base", str(tiny), "--no-plugins")
    refused = invoke(*place, *args, "--config", str(folder / "recipe.yaml"))
    assert "2 processes (WORLD_SIZE)" in refused.stderr
    assert refused.exit_code == 2

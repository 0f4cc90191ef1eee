"""Two processes that torchrun starts train what one process does with twice the batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from own_files import own_recipe
from trunkline.api import open

pytestmark = pytest.mark.merge

SETTINGS: dict[str, Any] = {"max_steps": 6, "num_train_epochs": 3.0, "evals_per_epoch": 1}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(folder: Path, base: Path, processes: int, *args: str) -> Any:
    """The JSON that `trunkline train` prints in ``processes`` processes."""
    program = [str(Path(sys.executable).parent / "trunkline")]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--no-python"]
        ports = [f"--nproc-per-node={processes}", f"--master-port={free_port()}"]
        program = [*launcher, *ports, *program]
    command = [*program, "--workspace", str(folder), "--base", str(base), "--no-plugins", "train"]
    done = subprocess.run(
        [*command, "--config", str(folder / "recipe.yaml"), *args, "--json"],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def workspace(folder: Path, name: str, batch: int) -> Path:
    folder.mkdir()
    recipe = own_recipe(name, folder, per_device_train_batch_size=batch, **SETTINGS)
    (folder / "recipe.yaml").write_text(recipe.to_yaml(folder), encoding="utf-8")
    return folder


def losses(folder: Path, base: Path, run: int) -> list[float]:
    platform = open(folder, base=str(base), no_plugins=True)
    try:
        metrics = platform.registry.runs.metrics(run)
        return [point.value for point in metrics if point.name in ("loss", "validation.loss")]
    finally:
        platform.registry.close()


@pytest.mark.parametrize("name", ["shop/colors", "clinic/drugs"])
def test_two_processes_train_like_one_with_twice_the_batch(
    name: str, tmp_path: Path, tiny: Path
) -> None:
    one = workspace(tmp_path / "one", name, 8)
    two = workspace(tmp_path / "two", name, 4)
    alone, together = start(one, tiny, 1), start(two, tiny, 2)
    assert together["report"]["steps"] == alone["report"]["steps"] == 6
    assert losses(two, tiny, 1) == pytest.approx(losses(one, tiny, 1), abs=1e-4)
    assert len(losses(two, tiny, 1)) > 6
    assert [path.name for path in (two / "adapters" / name).iterdir()] == ["1"]

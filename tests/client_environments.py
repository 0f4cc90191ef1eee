"""A virtual environment for each client, made once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from trunkline.workspace import cache_folder

CLIENTS = Path(__file__).parent / "clients"
_INSTALL_SECONDS = 1200

USER_CACHE = cache_folder()
"""The user's cache, read before a test gets a cache of its own."""


def python_of(name: str) -> Path:
    """The interpreter of a client's environment; the test is skipped if it can't be installed."""
    requirements = CLIENTS / "requirements" / f"{name}.txt"

    def install(folder: Path) -> None:
        _run([sys.executable, "-m", "venv", str(folder)], requirements)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "-r"]
        _run([*pip, str(requirements)], requirements)

    return _installed(requirements, install) / "bin" / "python"


def node_modules_of(name: str) -> Path:
    """The folder with a Node client's packages; the test is skipped without Node."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node or npm is not installed")
    requirements = CLIENTS / "requirements" / f"{name}.json"

    def install(folder: Path) -> None:
        folder.mkdir()
        shutil.copy(requirements, folder / "package.json")
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
        _run([*command, "--prefix", str(folder)], requirements)

    return _installed(requirements, install)


def client_environment(folder: Path, **variables: str) -> dict[str, str]:
    """Environment variables of a client: its own home, no access to hubs."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_API_KEY": "none",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    return kept | offline | {"HOME": str(folder)} | variables


def _installed(requirements: Path, install: Callable[[Path], None]) -> Path:
    """The environment of a requirements file, under a name that changes with its content."""
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    root = USER_CACHE / "clients"
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{requirements.stem}-{digest}"
    with FileLock(root / f"{requirements.stem}.lock"):
        built = folder / ".built"
        if not built.exists():
            shutil.rmtree(folder, ignore_errors=True)
            install(folder)
            built.touch()
    return folder


def _run(command: list[str], requirements: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:]
        pytest.skip(f"{requirements.name} can't be installed: {' '.join(reason)}")

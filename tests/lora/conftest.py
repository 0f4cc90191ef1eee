"""One artifact for all tests, made without training; each test changes a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from workbench import make_artifact, platform, tiny

__all__ = ["artifact", "platform", "sound", "tiny"]


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A sound classification artifact on the tiny Llama, only to be read."""
    folder = tmp_path_factory.mktemp("artifacts") / "sound"
    make_artifact(folder, tiny, target_modules=["q_proj", "v_proj"])
    return folder


@pytest.fixture
def artifact(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound artifact that a test may damage."""
    return Path(shutil.copytree(sound, tmp_path / "artifact"))

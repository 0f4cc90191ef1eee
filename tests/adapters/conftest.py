"""One artifact per session, made without training; tests damage copies of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from peft_folders import (
    classifying,
    folder,
    generating,
    headed,
    import_folder,
    refused,
    registry,
    store,
    tiny_gpt2,
)
from workbench import make_artifact, platform, tiny

__all__ = [
    "artifact", "classifying", "folder", "generating", "headed", "import_folder", "platform",
    "refused", "registry", "sound", "store", "tiny", "tiny_gpt2",
]  # fmt: skip


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A read-only classification artifact on the tiny Llama."""
    folder = tmp_path_factory.mktemp("artifacts") / "sound"
    make_artifact(folder, tiny, target_modules=["q_proj", "v_proj"])
    return folder


@pytest.fixture
def artifact(sound: Path, tmp_path: Path) -> Path:
    """A copy of the artifact that a test may damage."""
    return Path(shutil.copytree(sound, tmp_path / "artifact"))

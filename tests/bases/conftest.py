"""Tiny bases, made once a session; a test that changes files takes a copy."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_base import make_tiny_base


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, only to be read."""
    return make_tiny_base(tmp_path_factory.mktemp("bases") / "llama")


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Path]:
    """Family → a tiny base of it, only to be read."""
    room = tmp_path_factory.mktemp("families")
    return {
        "llama": tiny,
        "qwen2": make_tiny_base(room / "qwen2", "qwen2"),
        "gpt2": make_tiny_base(room / "gpt2", "gpt2"),
    }


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may damage."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    """No base is held before or after a test."""
    from trunkline.bases import release

    release()
    yield
    release()

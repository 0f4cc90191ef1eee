"""Fixtures for tests of training: a platform on a tiny base, and adapters trained once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from toy_plugin import install_toy
from trunkline.api import Platform
from workbench import (
    opened,
    own_platform,
    own_workspace,
    platform,
    stopped_workspace,
    tiny,
    trained,
    trained_platform,
    trained_workspace,
)

__all__ = [
    "own_platform",
    "own_workspace",
    "platform",
    "stopped_workspace",
    "tiny",
    "trained",
    "trained_platform",
    "trained_workspace",
]


@pytest.fixture
def stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_workspace: Path, tiny: Path
) -> Iterator[Platform]:
    """A platform whose run 1 was stopped after three steps."""
    install_toy(tmp_path, monkeypatch)
    yield from opened(shutil.copytree(stopped_workspace, tmp_path / "workspace"), tiny)

"""Fixtures for tests of training: a platform on a tiny base, and adapters trained once."""

from __future__ import annotations

from workbench import (
    platform,
    stopped_workspace,
    tiny,
    trained,
    trained_platform,
    trained_workspace,
)

__all__ = [
    "platform",
    "stopped_workspace",
    "tiny",
    "trained",
    "trained_platform",
    "trained_workspace",
]

"""Fixtures for plugin authors; pytest loads them through the entry point ``pytest11``.

Owns: what a plugin's own tests need: a workspace, a catalog, one call that checks the plugin.
Must not know: any domain. pytest imports this module in every environment that holds Trunkline,
so the platform is imported only when a fixture or :func:`check_plugin` is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trunkline.plugins import Catalog

__all__ = ["check_plugin", "trunkline_catalog", "trunkline_workspace"]


@pytest.fixture
def trunkline_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty workspace that the whole platform uses for the length of one test."""
    folder = tmp_path / "workspace"
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("TRUNKLINE_WORKSPACE", str(folder))
    monkeypatch.delenv("TRUNKLINE_REGISTRY", raising=False)
    return folder


@pytest.fixture
def trunkline_catalog() -> Catalog:
    """Give what all installed plugins contribute, broken ones set aside."""
    from trunkline.plugins import load_plugins

    return load_plugins()


def check_plugin(target: str | Path) -> None:
    """Fail the running test, listing the findings, unless the plugin keeps every rule.

    Args:
        target: the plugin's domain, or the folder that holds its ``pyproject.toml``.
    """
    from trunkline.plugins import check

    errors = [finding for finding in check(target) if finding.level == "error"]
    if errors:
        lines = "\n".join(f"  {finding.subject}: {finding.message}" for finding in errors)
        pytest.fail(f"The plugin {str(target)!r} breaks the contract:\n{lines}", pytrace=False)

"""pytest fixtures for plugin authors: a workspace, a catalog and a check of the plugin.

pytest loads this module through the entry point ``pytest11`` in every environment that has
Trunkline, so the platform is imported only when a fixture or :func:`check_plugin` is used.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trunkline.plugins import Catalog

__all__ = ["check_plugin", "trunkline_catalog", "trunkline_workspace"]


@pytest.fixture
def trunkline_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace that the platform uses during one test."""
    folder = tmp_path / "workspace"
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("TRUNKLINE_WORKSPACE", str(folder))
    monkeypatch.delenv("TRUNKLINE_REGISTRY", raising=False)
    return folder


@pytest.fixture
def trunkline_catalog() -> Catalog:
    """The catalog of all installed plugins, without broken ones."""
    from trunkline.plugins import load_plugins

    return load_plugins()


def check_plugin(target: str | Path, base: str | None = None) -> None:
    """Check a plugin as ``trunkline plugins check`` does.

    The running test fails with a list of the errors; what is suspicious in the data is a warning.

    Args:
        target: the plugin's domain, or the folder that contains its ``pyproject.toml``.
        base: whose tokenizer counts the lengths of texts; by default that of ``trunkline``.
    """
    from trunkline.bases import DEFAULT_BASE
    from trunkline.plugins import check

    findings = check(target, base=base or DEFAULT_BASE)
    for finding in findings:
        if finding.level == "warning":
            warnings.warn(f"{finding.subject}: {finding.message}", stacklevel=2)
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        lines = "\n".join(f"  {finding.subject}: {finding.message}" for finding in errors)
        pytest.fail(f"The plugin {str(target)!r} breaks the contract:\n{lines}", pytrace=False)

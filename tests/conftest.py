"""What every test of the core stands on: nothing of the user's own set-up leaks in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trunkline.threads import limit_spinning

limit_spinning()
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; one thread each is fastest
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the secrets of other tests; a test's output may contain them by chance."""
    monkeypatch.setattr("trunkline.redaction._remembered", {})


@pytest.fixture(autouse=True)
def isolated_environment(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give each test a workspace and a cache of its own and no plugin filter.

    Tests marked ``real`` keep the user's cache, because the real base is in it; session fixtures
    run before this one and see it too.
    """
    monkeypatch.setenv("TRUNKLINE_WORKSPACE", str(tmp_path / "workspace"))
    if request.node.get_closest_marker("real") is None:
        monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))
    for name in ("TRUNKLINE_REGISTRY", "TRUNKLINE_LOAD_PLUGINS", "TRUNKLINE_TRACE_HOOKS"):
        monkeypatch.delenv(name, raising=False)

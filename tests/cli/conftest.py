"""A workspace in which the toy recipes were trained once, on a tiny base, by the command line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import Result

from cli_runner import invoke
from tiny_base import make_tiny_base
from toy_plugin import install_toy

Run = Callable[..., Result]


@dataclass(frozen=True)
class Shared:
    """What the session's tests stand on; ``trained`` is the output of each training."""

    folder: Path
    base: Path
    workspace: Path
    trained: dict[str, Result]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    from trunkline.bases import release

    folder = tmp_path_factory.mktemp("cli")
    workspace = folder / "workspace"
    workspace.mkdir()
    base = make_tiny_base(folder / "base")
    release()
    with pytest.MonkeyPatch.context() as patch:
        install_toy(folder, patch)
        patch.setenv("TRUNKLINE_CACHE", str(folder / "cache"))
        place = ("--workspace", str(workspace), "--base", str(base))
        trained = {
            name: invoke(*place, "train", name, *extra)
            for name, extra in (
                ("toy/animals", ()),
                ("toy/prices", ("--json",)),
                ("toy/plurals", ()),
            )
        }
    yield Shared(folder, base, workspace, trained)
    release()


@pytest.fixture
def toy(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin `toy` alone, and the session's cache."""
    install_toy(shared.folder, monkeypatch)
    monkeypatch.setenv("TRUNKLINE_CACHE", str(shared.folder / "cache"))


@pytest.fixture
def run(shared: Shared, toy: None) -> Run:
    """Run the program in the trained workspace, which no test may change."""

    def run(*args: str, input: str | None = None) -> Result:
        place = ("--workspace", str(shared.workspace), "--base", str(shared.base))
        return invoke(*place, *args, input=input)

    return run


@pytest.fixture
def run_copy(shared: Shared, toy: None, tmp_path: Path) -> Run:
    """Run the program in a copy of the trained workspace."""
    workspace = Path(shutil.copytree(shared.workspace, tmp_path / "copy"))

    def run(*args: str, input: str | None = None) -> Result:
        place = ("--workspace", str(workspace), "--base", str(shared.base))
        return invoke(*place, *args, input=input)

    return run


@pytest.fixture
def environment(toy: None, tmp_path: Path) -> dict[str, str]:
    """The environment of a subprocess: an empty workspace, the plugin `toy`."""
    (tmp_path / "empty").mkdir()
    return {**os.environ, "TRUNKLINE_WORKSPACE": str(tmp_path / "empty")}

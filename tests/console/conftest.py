"""A server with the console over real versions, for the tests of a module."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from console_site import Browser, SignIn, Site, served, signed_in
from toy_plugin import install_toy
from trunkline.evaluation.intervals import group_draws
from workbench import opened, tiny, trained_workspace, two_prices_workspace

__all__ = ["tiny", "trained_workspace", "two_prices_workspace"]


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, two_prices_workspace: Path, tiny: Path
) -> Iterator[Site]:
    """A server with keys, a champion, requests, a tag and a note."""
    folder = tmp_path_factory.mktemp("console")
    with pytest.MonkeyPatch.context() as patch:
        install_toy(folder, patch)
        patch.setattr(group_draws, "__defaults__", (20,))
        workspace = Path(shutil.copytree(two_prices_workspace, folder / "workspace"))
        for platform in opened(workspace, tiny):
            yield from served(platform)
            platform.engine.close()


@pytest.fixture
def sign_in(site: Site) -> SignIn:
    """A browser with the session of a role."""
    return lambda role: signed_in(site, role)


@pytest.fixture
def admin(sign_in: SignIn) -> Browser:
    return sign_in("admin")


@pytest.fixture
def viewer(sign_in: SignIn) -> Browser:
    return sign_in("viewer")

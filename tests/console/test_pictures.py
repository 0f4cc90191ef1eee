"""The console checks a plugin's dataset of pictures and shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from console_site import HOST, Browser, Site, signed_in
from toy_plugin import write_distribution
from trunkline.api import open
from trunkline.console.app import create_console_app
from trunkline.serving.settings import ServerSettings

PLUGIN = """
from trunkline.contracts import DatasetSpec, Row
from trunkline.hookspecs import hookimpl

TRUNKLINE_API = 1


def rows():
    from tiny_images import encoded, picture

    for number in range(20):
        label = ("cracked", "sound")[number % 2]
        data = encoded(picture(number, 64, 48))
        yield Row(id=f"cell-{number}", target=label, group=str(number), image=data)
    yield Row(id="torn", target="sound", group="torn", image=data[:100])


@hookimpl
def trunkline_datasets():
    yield DatasetSpec(
        name="cells/cells", description="drawn cells", task="classification", load=rows,
        license="CC0-1.0", source="drawn", grouping="a cell", modality="image",
    )
"""


@pytest.fixture
def viewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    """A viewer of a workspace with one plugin, which has pictures."""
    plugins = tmp_path / "site"
    write_distribution(plugins, "cells", "cells_of_the_console_test")
    (plugins / "cells_of_the_console_test.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(plugins))
    monkeypatch.setenv("TRUNKLINE_LOAD_PLUGINS", "cells")
    (tmp_path / "workspace").mkdir()
    platform = open(tmp_path / "workspace")
    app = create_console_app(platform, ServerSettings(port=0))
    with TestClient(app, base_url=HOST):
        site = Site(app, platform)
        site.secrets["viewer"] = platform.registry.keys.create("a viewer", role="viewer")[1]
        yield signed_in(site, "viewer")
    platform.registry.close()


def test_findings_sizes_and_contact_sheet_are_shown(viewer: Browser) -> None:
    page = viewer.post("/datasets/cells/cells/check", {}).text
    assert "damaged or truncated" in page
    assert "torn" in page
    assert "64 × 48" in page
    (sheet,) = re.findall(r'<img[^>]* src="data:image/png;base64,[^"]+" alt="([^"]+)"', page)
    assert sheet == "Pictures of each label"

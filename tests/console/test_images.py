"""Adapters for pictures in the console; the server loads no base for its pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from console_site import HOST, Browser, Site, signed_in
from image_workbench import NAME, image_platform, image_workspace, shapes, tiny_resnet
from server_process import wait_until
from trunkline.api import Platform
from trunkline.console.app import create_app, create_console_app
from trunkline.serving.settings import ServerSettings

__all__ = ["image_platform", "image_workspace", "shapes", "tiny_resnet"]


@pytest.fixture
def browser(image_platform: Platform) -> Iterator[Browser]:
    app = create_console_app(image_platform, ServerSettings(port=0))
    with TestClient(app, base_url=HOST):
        site = Site(app, image_platform)
        site.secrets["admin"] = image_platform.registry.keys.create("a person", role="admin")[1]
        yield signed_in(site, "admin")


def test_pages_say_what_an_adapter_reads_and_its_base(browser: Browser) -> None:
    for path in ("/adapters", "/adapters?q=modality%3Dimage", f"/adapters/{NAME}"):
        page = browser.get(path)
        assert page.status_code == 200, page.text
        assert "classification · pictures" in page.text
        assert "resnet" in page.text
    version = browser.get(f"/adapters/{NAME}/1")
    assert version.status_code == 200, version.text
    assert "<dt>Reads</dt><dd>pictures</dd>" in version.text
    chinese = browser.get("/adapters", headers={"accept-language": "zh-CN"})
    assert "图像" in chinese.text


def test_data_of_the_pages_has_the_modality(browser: Browser) -> None:
    data = browser.get("/adapters", headers={"accept": "application/json"}).json()
    assert [one["modality"] for one in data["adapters"]] == ["image"]
    assert data["facets"]["modalities"] == ["image"]


def test_card_and_promotion_have_pages(browser: Browser) -> None:
    for page in ("card", "promote"):
        answer = browser.get(f"/adapters/{NAME}/1/{page}")
        assert answer.status_code == 200, (page, answer.text)


def test_serving_shows_pins_and_unloads_adapters_for_pictures(image_platform: Platform) -> None:
    app = create_app(image_platform, ServerSettings(port=0))
    with TestClient(app, base_url=HOST):
        wait_until(lambda: bool(app.state.service.ready), "the base is loaded")
        site = Site(app, image_platform)
        site.secrets["admin"] = image_platform.registry.keys.create("a person", role="admin")[1]
        browser = signed_in(site, "admin")
        pool = image_platform.engines.image.pool
        assert browser.post("/serving/load", {"ref": f"{NAME}@1"}).status_code == 303
        page = browser.get("/serving").text
        assert f"{NAME}@1" in page
        assert "KV cache" not in page
        digest = image_platform.resolve(NAME).digest
        browser.post("/serving/pin", {"digest": digest, "pinned": "yes"})
        assert [one.pinned for one in pool.residents()] == [True]
        browser.post("/serving/unload", {"digest": digest})
        assert not pool.residents()

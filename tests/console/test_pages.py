"""Every page as HTML and as JSON, without JavaScript."""

from __future__ import annotations

import pytest

from console_places import PAGES
from console_site import Browser


@pytest.mark.parametrize("path", PAGES)
def test_page_is_answered_as_html_and_as_json(admin: Browser, path: str) -> None:
    page = admin.get(path)
    assert page.status_code == 200, page.text
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    data = admin.get(path, headers={"accept": "application/json"})
    assert data.headers["content-type"] == "application/json"
    assert isinstance(data.json(), dict)

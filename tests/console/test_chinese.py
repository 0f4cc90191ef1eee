"""Every sentence on a Chinese page is Chinese, but for what people and plugins wrote."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from console_places import PAGES
from console_site import Browser, Site

CHINESE = {"accept-language": "zh"}
ENGLISH = re.compile(r"(?:\b[A-Za-z']+ ){2,}[A-Za-z']+")
COMMAND = re.compile(r"trunkline(?: [a-z-]+)+")
NOT_TEXT = {"code", "pre", "script", "style", "option", "textarea"}
WRITTEN = {"reason", "row-text", "mono", "ref", "answer"}
"""Classes of elements with what somebody wrote, or a name."""


class Sentences(HTMLParser):
    """Collects English words in sequence, outside of code and of what somebody wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.sentences: list[str] = []
        self._open: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("input", "br", "meta", "link", "img", "hr"):
            return  # they have no end tag
        left_out = tag in NOT_TEXT or not WRITTEN.isdisjoint((values.get("class") or "").split())
        self._open.append((tag, left_out))
        self._add(values.get("aria-label") or "")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        self._add(data)

    def _add(self, text: str) -> None:
        if not any(left_out for _, left_out in self._open):
            self.sentences += ENGLISH.findall(COMMAND.sub("", text))


def english(page: str, written: set[str]) -> list[str]:
    parser = Sentences()
    parser.feed(page)
    return [one for one in parser.sentences if not any(one in text for text in written)]


@pytest.fixture
def written(site: Site) -> set[str]:
    """What the toy plugin, the workspace and the tests wrote themselves."""
    catalog = site.platform.catalog
    specs = [*catalog.datasets(), *catalog.recipes()]
    texts = {one.description for one in specs}
    for one in catalog.datasets():
        texts |= {one.license, one.source, one.grouping, one.restrictions}
    notes = {"Reviewed by the pricing team.", "2 was wrong at noon", "a secret prompt"}
    return texts | notes | {"domain=NAME and test.accuracy>0.85"}


ERRORS = (
    "/adapters/toy/nothing",
    "/adapters/toy/prices/99",
    "/adapters/toy/prices/2/promote?alias=1",
    "/adapters?q=task%3D%3D",
    "/adapters?q=size%3D3",
    "/adapters?q=test.accuracy~x",
    "/compare?a=toy/prices@2&b=toy/animals@1",
    "/compare?a=toy/prices@2&b=x",
    "/datasets/toy/nothing",
    "/lineage?request=nothing",
    "/requests?status=lost",
    "/requests?since=noon",
    "/runs/99",
    "/runs?status=lost",
    "/train/jobs/20260101-000000-abcdef",
    "/train/uploads/0",
)

ACTIONS = (
    ("/adapters/toy/animals/1/verify", {}),
    ("/adapters/toy/animals/1/promote", {"reason": "", "expected": "0"}),
    ("/adapters/toy/prices/2/promote", {"reason": "better", "expected": "1"}),
    ("/audit/verify", {"events_head": "1:00", "requests_head": ""}),
    ("/audit/verify", {"events_head": "", "requests_head": "1:" + "0" * 64}),
    ("/datasets/toy/animals/check", {}),
    ("/datasets/toy/prices/check", {}),
    ("/keys", {"owner": "", "role": "viewer", "expires": "90d", "adapters": ""}),
    ("/keys", {"owner": "Ada", "role": "viewer", "expires": "90d", "adapters": "x y/"}),
    ("/playground", {"prompt": "a cat", "model1": "toy/nothing"}),
    ("/playground", {"prompt": "a" * 300_000, "model1": "toy/animals"}),
    ("/runs/1/stop", {}),
    ("/runs/1/resume", {}),
    ("/serving/load", {"ref": "toy/nothing"}),
    ("/train/recipes/toy/animals", {"action": "check"}),
    ("/train/recipes/toy/animals", {"action": "start", "set.r": "0"}),
    ("/train/recipes/toy/animals", {"action": "start", "set.learning_rate": "fast"}),
    ("/train/recipes/toy/animals", {"action": "start", "set.max_length": "1"}),
)


@pytest.mark.parametrize("path", [path for path in PAGES if not path.endswith("/card")])
def test_page_has_no_english_sentence(admin: Browser, written: set[str], path: str) -> None:
    assert english(admin.get(path, headers=CHINESE).text, written) == []


@pytest.mark.parametrize("path", ERRORS)
def test_error_has_no_english_sentence(admin: Browser, written: set[str], path: str) -> None:
    assert english(admin.get(path, headers=CHINESE).text, written) == []


@pytest.mark.parametrize(("path", "fields"), ACTIONS)
def test_action_has_no_english_sentence(
    admin: Browser, written: set[str], path: str, fields: dict[str, str]
) -> None:
    answer = admin.post(path, fields, headers=CHINESE, follow_redirects=True)
    assert english(answer.text, written) == []

"""The console in Chromium: every page at two widths, with and without JavaScript, through axe.

Each test also fails if a script raises, if the Content-Security-Policy blocks something, or if a
request leaves this machine.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from console_places import ADMIN_PAGES, PAGES, PROMOTER_PAGES, TESTER_PAGES
from console_site import Site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium"),
]

WIDTHS = (360, 1440)


@pytest.fixture(scope="module")
def url(site: Site) -> Iterator[str]:
    """The address of the site behind a socket."""
    import socket

    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(site.app, lifespan="off", log_config=None, access_log=False)
    )
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


class Tab:
    """A tab that has signed in, and everything that went wrong in it."""

    def __init__(self, context: BrowserContext, url: str, secret: str) -> None:
        self.problems: list[str] = []
        self.url = url
        context.on("request", self._check_request)
        self.page: Page = context.new_page()
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(f"{url}/console")
        self.page.fill("#key", secret)
        self.page.click("main button.primary")
        self.page.on("console", self._check_message)

    def go(self, path: str) -> Page:
        self.page.goto(f"{self.url}/console{path}")
        return self.page

    def _check_request(self, request: Any) -> None:
        if urlsplit(request.url).netloc != urlsplit(self.url).netloc:
            self.problems.append(f"a request to {request.url}")

    def _check_message(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)


@pytest.fixture
def tab(request: pytest.FixtureRequest, chromium: Browser, url: str, site: Site) -> Iterator[Tab]:
    """A tab of an administrator; the parameter is the width, negative without JavaScript."""
    width = getattr(request, "param", 1440)
    context = chromium.new_context(
        viewport={"width": abs(width), "height": 900}, java_script_enabled=width > 0,
        timezone_id="Asia/Shanghai", locale="en-US",
    )  # fmt: skip
    tab = Tab(context, url, site.secrets["admin"])
    yield tab
    context.close()
    assert tab.problems == []


@pytest.mark.parametrize("tab", WIDTHS, indirect=True)
def test_every_page_is_accessible_and_fits(tab: Tab) -> None:
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()
    for path in PAGES:
        page = tab.go(path)
        # axe is injected past the policy; what the page itself does is still checked
        violations = axe.run(page).response["violations"]
        rules = [(one["id"], one["nodes"][0]["html"][:200]) for one in violations]
        assert rules == [], path
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= page.viewport_size["width"], path


@pytest.mark.parametrize("tab", [-360, -1440], indirect=True)
def test_every_page_works_without_javascript(tab: Tab) -> None:
    for path in PAGES:
        page = tab.go(path)
        assert page.locator("h1").count() == 1
        assert page.locator("main").inner_text()
    page = tab.go("/adapters")
    page.fill("#q", "task=regression")
    page.press("#q", "Enter")
    assert page.locator("tbody tr").count() == 2


def test_dark_pages_have_contrast(chromium: Browser, url: str, site: Site) -> None:
    from axe_playwright_python.sync_playwright import Axe

    context = chromium.new_context(color_scheme="dark")
    tab = Tab(context, url, site.secrets["admin"])
    for path in ("", "/adapters", "/adapters/toy/animals/1", "/runs/1", "/keys", "/audit"):
        page = tab.go(path)
        violations = Axe().run(page, options={"runOnly": ["color-contrast"]}).response["violations"]
        assert [one["nodes"][0]["html"] for one in violations] == [], path
    context.close()
    assert tab.problems == []


def test_search_updates_as_one_types(tab: Tab) -> None:
    from playwright.sync_api import expect

    page = tab.go("/adapters")
    page.locator("#q").press_sequentially("task=regression")
    expect(page.locator("#results td a.ref", has_text="toy/prices@")).to_have_count(2)
    assert "q=" not in page.url


def test_times_are_in_the_readers_zone_with_utc_in_the_title(tab: Tab) -> None:
    page = tab.go("/adapters/toy/prices/1")
    time = page.locator("time[data-local]").first
    assert time.get_attribute("title").endswith(" UTC")
    assert "UTC" not in time.inner_text()


def test_curves_are_drawn_from_the_table(tab: Tab) -> None:
    page = tab.go("/runs/1")
    page.wait_for_selector(".plot canvas")
    assert page.locator(".plot canvas").count() == page.locator("[data-plot]").count()
    page.check("[data-log]")
    assert page.locator(".plot canvas").count() > 0


def test_curves_follow_a_running_run(tab: Tab, site: Site) -> None:
    from playwright.sync_api import expect

    runs = site.platform.registry.runs
    model = runs.get(1)
    number = runs.start(
        recipe=model.recipe, base_digest=model.base_digest, dataset_id=model.dataset_id, seed=1,
        settings={}, environment={},
    )  # fmt: skip
    runs.log_metrics(number, 1, {"loss": 2.0})
    page = tab.go(f"/runs/{number}")
    for step in range(2, 5):
        runs.log_metrics(number, step, {"loss": 2.0 / step})
    expect(page.locator("[data-curve] tbody tr")).to_have_count(4, timeout=15_000)
    page.reload()
    assert page.locator("[data-curve] tbody tr").count() == 4
    runs.finish(number, "finished")
    page.wait_for_selector("#live .status.finished", timeout=15_000)


def test_keyboard_alone_promotes(tab: Tab, site: Site) -> None:
    page = tab.go("/adapters/toy/prices/2/promote")
    page.focus("#reason")
    page.keyboard.type("by keyboard")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(".notice")
    assert site.platform.registry.adapters.get("toy", "prices").aliases["champion"] == 2
    page = tab.go("/adapters/toy/prices/rollback")
    page.fill("#reason", "back again")
    page.click("main .danger")
    page.wait_for_selector(".notice")
    assert site.platform.registry.adapters.get("toy", "prices").aliases["champion"] == 1


def test_skip_link_comes_first(tab: Tab) -> None:
    page = tab.go("")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_serving_page_refreshes_itself(tab: Tab, site: Site) -> None:
    page = tab.go("/serving")
    version = site.platform.resolve("toy/prices@1").version
    artifact = site.platform.store.fetch(version)
    site.app.state.service.engine.pool.load(artifact, "toy/prices@1")
    page.wait_for_selector("#residents + table", timeout=15_000)
    deadline = time.monotonic() + 5
    while "toy/prices@1" not in page.locator("#state").inner_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_answers_stream_side_by_side(tab: Tab, site: Site) -> None:
    page = tab.go("/playground")
    page.fill("#prompt", "a small cat")
    page.fill("#model1", "toy/animals")
    page.fill("#model2", "toy/plurals")
    page.check("[name=base]")
    page.click("main button.primary")
    page.wait_for_selector("#answers [aria-busy=false]", timeout=30_000)
    assert page.locator("#answers article").count() == 3
    assert page.url.endswith("/playground")
    label = site.platform.predict("toy/animals", ["a small cat"])[0].label
    assert label in page.locator("#answers article").first.inner_text()
    page.locator("#answers summary").first.click()
    page.locator("#answers textarea").first.fill("mammal")
    page.locator("#answers form button").first.click()
    page.wait_for_selector(".notice")
    assert "a small cat" in page.locator("#cases + p + table").inner_text()


def test_wrong_prompt_is_refused_beside_the_form(tab: Tab) -> None:
    page = tab.go("/playground")
    page.fill("#prompt", "a small cat")
    page.click("main button.primary")
    page.wait_for_selector("#answers .problem")
    assert page.locator("h1").count() == 1


def test_training_is_started_followed_and_stopped(tab: Tab, site: Site) -> None:
    page = tab.go("/train")
    page.click("text=toy/animals")
    page.fill("[name='set.max_steps']", "5000")
    page.fill("[name='set.early_stopping_patience']", "0")
    page.click("button[value=start]")
    page.wait_for_selector("#job a.button", timeout=60_000)
    page.click("#job a.button")
    page.wait_for_selector("[data-curve] tbody tr", state="attached", timeout=60_000)
    page.click("#live .danger")
    page.wait_for_selector("#live .status.interrupted", timeout=60_000)
    number = int(page.url.partition("/runs/")[2].partition("?")[0])
    assert site.platform.registry.runs.get(number).status == "interrupted"
    page.wait_for_selector("#live button.primary")
    page.select_option("[data-axis]", "tokens")
    assert page.locator(".plot canvas").count() > 0


def test_file_is_uploaded_and_checked(tab: Tab) -> None:
    page = tab.go("/train")
    rows = "text,kind\n" + "".join(f"animal {n},{'ab'[n % 2]}\n" for n in range(40))
    page.set_input_files(
        "#file", {"name": "mine.csv", "mimeType": "text/csv", "buffer": rows.encode()}
    )
    page.click("main .sheet .primary")
    page.wait_for_selector("#name")
    page.fill("#name", "own/mine")
    page.select_option("[name=text]", "text")
    page.select_option("[name=column]", "kind")
    page.click("button[value=check]")
    page.wait_for_selector("#check")
    assert "40" in page.locator("section[aria-labelledby=check]").inner_text()
    assert page.input_value("#name") == "own/mine"


def test_every_other_action_of_an_administrator(tab: Tab, site: Site) -> None:
    page = tab.go("/keys")
    page.fill("[name=owner]", "Ada Lovelace")
    page.click("main form:has([name=owner]) button")
    assert page.locator("#secret").inner_text().startswith("tl-")
    page = tab.go("/keys")
    page.locator("tr", has_text="Ada Lovelace").locator("button").click()
    page.wait_for_selector(".notice")
    assert "Ada Lovelace" not in [
        one.owner for one in site.platform.registry.keys.list() if one.removed is None
    ]
    page = tab.go("/serving")
    page.fill("#ref", "toy/animals@1")
    page.click("form:has(#ref) button")
    row = page.locator("#residents + table tr", has_text="toy/animals@1")
    for action, notice in (("Pin", "pinned"), ("Unpin", "no longer"), ("Unload", "unloaded")):
        row.get_by_role("button", name=action, exact=True).click()
        page.wait_for_selector(f".notice:has-text('{notice}')")
    page = tab.go("/adapters/toy/animals/1")
    page.click("form[action$=verify] button")
    page.wait_for_selector("h1:has-text('intact')")
    page = tab.go("/datasets/toy/animals")
    page.click("form[action$=check] button")
    page.wait_for_selector("#check")
    page = tab.go("/audit")
    page.click("form[action$=verify] button.primary")
    page.wait_for_selector(".notice, .problem")
    page.click("form[action$=saved] button")
    page.wait_for_selector("text=Last saved by")
    page.click("form[action$=language] button")
    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    assert tab.problems == []
    page.click("form[action$=sign-out] button")
    page.wait_for_selector("#key")
    tab.problems.clear()  # the form to sign in has the status 401, which Chromium reports


def test_viewer_sees_no_action_of_another_role(chromium: Browser, url: str, site: Site) -> None:
    context = chromium.new_context()
    tab = Tab(context, url, site.secrets["viewer"])
    hidden = {*TESTER_PAGES, *ADMIN_PAGES, *PROMOTER_PAGES}
    for path in PAGES:
        if any(path.startswith(one) for one in hidden):
            continue
        page = tab.go(path)
        assert page.locator("h1").count() == 1
        actions = page.locator("main form[method=post]").evaluate_all(
            "forms => forms.map(form => form.getAttribute('action') || '')"
        )
        assert all(action.endswith(("/check", "/verify", "/saved")) for action in actions), path
        links = page.locator("nav.places a").evaluate_all(
            "links => links.map(link => link.getAttribute('href'))"
        )
        assert not {f"/console{one}" for one in hidden} & set(links)
    context.close()
    assert tab.problems == []

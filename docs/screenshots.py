"""Make the pictures of docs/console.md: the console over a copy of the demo's workspace.

`make demo` first; then `python docs/screenshots.py`. It needs Chromium. The copy gets a second
version of one adapter, a gate that asks for a second person, moves of aliases and some requests;
the training of that version takes minutes. `--workspace DIR` takes a workspace that has everything
already, and `--keep` leaves the copy where it is.
"""

from __future__ import annotations

import argparse
import io
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import uvicorn
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import trunkline
from trunkline.api import Platform
from trunkline.console.app import create_app
from trunkline.refs import Ref
from trunkline.serving.settings import ServerSettings

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "images"
ADAPTER = Ref("finance", "naics-sector")
SETTINGS = {"max_steps": 32, "learning_rate": 1.7e-3, "r": 32}
GATE = "[gate]\nbeats_baseline = true\ntwo_persons = true\n"
PROMPTS = {
    "finance/naics-sector": ("Commercial banking", "Soybean farming", "Software publishers"),
    "medical/icd10-chapter": ("Acute appendicitis", "Type 2 diabetes mellitus"),
    "retail/department": ("frozen pizza", "dish soap"),
}
COLORS = 40
"""Of a picture's palette; the pages have few."""

PAGES: dict[str, dict[str, Any]] = {
    "home": {"path": "", "height": 760},
    "adapters": {"path": "/adapters", "dark": True, "height": 640},
    "version": {"path": f"/adapters/{ADAPTER}/2", "height": 1500},
    "promote": {"path": f"/adapters/{ADAPTER}/2/promote", "height": 760},
    "compare": {"path": f"/compare?a={ADAPTER}@2&b={ADAPTER}@1&texts=yes", "height": 1000},
    "run": {"path": "/runs/{run}", "height": 900},
    "train": {"path": f"/train/recipes/{ADAPTER}", "height": 860},
    "playground": {
        "path": "/playground?"
        + urlencode(
            {"prompt": "Commercial banking", "base": "yes", "max_new_tokens": "24"}
            | {f"model{index}": name for index, name in enumerate(PROMPTS, 1)}
        ),
        "click": "main button.primary",
        "wait": "#answers [aria-busy=false]",
        "full": True,
        "height": 900,
    },
}
"""Name → what is shown, after which click."""


def prepare(workspace: Path) -> None:
    """Add what the demo's workspace lacks; what is there stays."""
    platform = trunkline.open(workspace)
    registry = platform.registry
    if registry.adapters.get(ADAPTER.domain, ADAPTER.name).newest < 2:
        print("training a second version", file=sys.stderr)
        platform.train(str(ADAPTER), **SETTINGS)
    (workspace / "trunkline.toml").write_text(GATE, encoding="utf-8")
    for adapter in registry.adapters.list():
        if not adapter.aliases:
            first = adapter.ref.at(1)
            registry.aliases.move(first, "champion", actor="system:ada", reason="First release.")
    registry.tags.set(str(ADAPTER), "team", "payments")
    registry.close()


def ask(url: str, secret: str) -> None:
    """Send the requests that the pictures show."""
    headers = {"authorization": f"Bearer {secret}"}
    for model, texts in PROMPTS.items():
        for text in texts:
            body = {"model": model, "input": text}
            httpx2.post(f"{url}/v1/classify", json=body, headers=headers, timeout=120)


@contextmanager
def served(workspace: Path) -> Iterator[tuple[str, Platform]]:
    """The URL of a server over the workspace, with the base in memory."""
    platform = trunkline.open(workspace)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = create_app(platform, ServerSettings(port=0))
        app.state.service.url = "http://127.0.0.1:8000"  # as a reader's would be
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not app.state.service.ready:
            if app.state.service.failure is not None:
                raise app.state.service.failure
            time.sleep(0.2)
        yield url, platform
        server.should_exit = True
        thread.join(30)


def shoot(url: str, secret: str, paths: dict[str, dict[str, Any]]) -> None:
    """Sign in and photograph the pages."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, page in paths.items():
            context = browser.new_context(
                viewport={"width": 1180, "height": page["height"]},
                color_scheme="dark" if page.get("dark") else "light",
                locale="en-US",
                reduced_motion="reduce",
            )
            tab = context.new_page()
            tab.goto(f"{url}/console{page['path']}")
            tab.fill("#key", secret)
            tab.click("main button.primary")
            if "click" in page:
                tab.click(page["click"])
                tab.wait_for_selector(page["wait"], timeout=60_000)
            save(tab, name, full=bool(page.get("full")))
            context.close()
        browser.close()


def save(tab: Page, name: str, *, full: bool) -> None:
    """Write what the tab shows, or the full page, with a small palette."""
    tab.wait_for_load_state("networkidle")
    picture = Image.open(io.BytesIO(tab.screenshot(full_page=full))).convert("RGB")
    small = picture.quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    path = FOLDER / f"console-{name}.png"
    small.save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} KB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", type=Path, default=ROOT / "demo", help="[default: demo]")
    parser.add_argument("--keep", action="store_true", help="don't remove the copy")
    options = parser.parse_args()
    if not (options.workspace / "registry.db").exists():
        sys.exit(f"{options.workspace} has no registry.db: run `make demo` first.")
    FOLDER.mkdir(exist_ok=True)
    copy = Path(tempfile.mkdtemp(prefix="trunkline-pictures-")) / "demo"
    shutil.copytree(options.workspace, copy)
    try:
        prepare(copy)
        with served(copy) as (url, platform):
            registry = platform.registry
            _, program = registry.keys.create("billing", role="tester")
            ask(url, program)
            _, person = registry.keys.create("Grace", role="promoter")
            first = registry.versions.resolve(ADAPTER.at(1))[0]
            pages = {
                name: {**page, "path": page["path"].format(run=first.run)}
                for name, page in PAGES.items()
            }
            shoot(url, person, pages)
    finally:
        if options.keep:
            print(f"kept: {copy}", file=sys.stderr)
        else:
            shutil.rmtree(copy.parent)


if __name__ == "__main__":
    main()

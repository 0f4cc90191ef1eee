"""A server with the console over real versions, and browsers that sign in to it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from trunkline.api import Platform
from trunkline.console.app import create_app
from trunkline.refs import Ref
from trunkline.registry.records import RequestEntry
from trunkline.serving.settings import ServerSettings

HOST = "http://127.0.0.1"
TOKEN = re.compile(r'name="form_token" value="([0-9a-f]{64})"')


@dataclass
class Site:
    """The server of a module's tests.

    Attributes:
        secrets: role → a key with it for every adapter; ``some`` is a viewer's for toy/prices.
    """

    app: FastAPI
    platform: Platform
    secrets: dict[str, str] = field(default_factory=dict)

    def client(self) -> TestClient:
        """A browser that has not signed in; it follows no redirects."""
        return TestClient(self.app, base_url=HOST, follow_redirects=False)

    def bearer(self, role: str) -> dict[str, str]:
        """The headers of a program with a key."""
        return {"authorization": f"Bearer {self.secrets[role]}", "accept": "application/json"}


@dataclass
class Browser:
    """A browser without JavaScript that has signed in."""

    client: TestClient

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(f"/console{path}", **options)

    def token(self) -> str:
        """The token of a form."""
        match = TOKEN.search(self.get("/adapters").text)
        assert match is not None
        return match[1]

    def post(self, path: str, fields: dict[str, str], **options: Any) -> Any:
        """Send a form as the page's own would."""
        return self.client.post(
            f"/console{path}", data={"form_token": self.token(), **fields}, **options
        )


def served(platform: Platform) -> Iterator[Site]:
    app = create_app(platform, ServerSettings(port=0))
    with TestClient(app, base_url=HOST):
        while not app.state.service.ready:
            assert app.state.service.failure is None
        while not platform.registry.servers.list(1):  # recorded in a thread, with an event
            time.sleep(0.05)
        site = Site(app, platform)
        fill(site)
        yield site


def fill(site: Site) -> None:
    """Add to the trained workspace what the pages show."""
    registry = site.platform.registry
    prices = Ref("toy", "prices", "1")
    registry.aliases.move(prices.at(2), "champion", actor="system:ada")
    registry.aliases.move(prices, "champion", actor="system:ada", reason="2 was wrong at noon")
    registry.tags.set("toy/prices", "team", "pricing")
    registry.tags.add_note("toy/prices@1", "Reviewed by the pricing team.")
    for role in ("viewer", "tester", "promoter", "admin"):
        record, site.secrets[role] = registry.keys.create(f"{role} person", role=role)
    site.secrets["some"] = registry.keys.create("some person", ["toy/prices"], role="viewer")[1]
    version = registry.versions.resolve(prices)[0]
    entry = RequestEntry(
        id="request-1", at=datetime.now(UTC), key=record.id, route="/v1/regress",
        model="toy/prices", version="toy/prices@1", digest=version.digest, prompt_tokens=9,
        new_tokens=0, status=200, seconds=0.02, text="a secret prompt", output="12.5",
    )  # fmt: skip
    registry.requests.log([entry])
    registry.requests.log(
        [RequestEntry(
            id="request-2", at=datetime.now(UTC), key=None, route="/v1/classify",
            model="toy/animals", version="toy/animals@1", digest=None, prompt_tokens=9,
            new_tokens=0, status=503, seconds=0.5,
        )]
    )  # fmt: skip


def signed_in(site: Site, role: str) -> Browser:
    """A browser with the session of a role."""
    client = site.client()
    match = TOKEN.search(client.get("/console/sign-in").text)
    assert match is not None
    form = {"form_token": match[1], "key": site.secrets[role]}
    answer = client.post("/console/sign-in", data=form)
    assert answer.status_code == 303, answer.text
    return Browser(client)


SignIn = Callable[[str], Browser]

"""The home page: what is live, which servers run, what waits and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from trunkline.console.pages import N_, Page
from trunkline.console.routes import Routes
from trunkline.console.view import View
from trunkline.promotion import awaits_second_person
from trunkline.registry.records import RunRecord, VersionRecord

routes = Routes()

LIVE = 20
WAITING = 20
SERVERS = 10
_RECENT = timedelta(days=1)
_RUNS = 100
"""The newest runs, of which those that run or failed are shown."""


@routes.get("")
def home(view: View) -> Page:
    """The home page."""
    scope = view.access.scope
    live = view.registry.versions.search("alias=champion", limit=LIVE, scope=scope)
    runs = view.registry.runs.list(limit=_RUNS, scope=scope)
    servers = [one for one in view.registry.servers.list(SERVERS) if one.stopped is None]
    return Page(
        "home.html",
        N_("Home"),
        {
            "live": live.versions,
            "more_live": live.next is not None,
            "waiting": _waiting(view),
            "servers": servers,
            "running": [run for run in runs if run.status == "running"],
            "failed": _failed(runs),
        },
        command="trunkline adapters list --where 'alias=champion'",
        place="home",
    )


def _waiting(view: View) -> list[VersionRecord]:
    """Newest versions that pass their own gate, which asks for a second person."""
    demanded = view.platform.workspace.configuration.gate
    page = view.registry.versions.search(
        "newest=yes and not alias=champion", limit=WAITING, scope=view.access.scope
    )
    return [
        version
        for version in page.versions
        if awaits_second_person(view.registry, version, demanded)
    ]


def _failed(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs that failed since yesterday."""
    since = datetime.now(UTC) - _RECENT
    return [
        run for run in runs if run.status == "failed" and run.finished and run.finished >= since
    ]

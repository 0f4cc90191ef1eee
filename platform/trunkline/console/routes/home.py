"""The home page: what is live, which servers run, what waits and what failed."""

from __future__ import annotations

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


@routes.get("")
def home(view: View) -> Page:
    """The home page."""
    scope = view.access.scope
    live = view.registry.versions.search("alias=champion", limit=LIVE, scope=scope)
    servers = [one for one in view.registry.servers.list(SERVERS) if one.stopped is None]
    return Page(
        "home.html",
        N_("Home"),
        {
            "live": live.versions,
            "more_live": live.next is not None,
            "waiting": _waiting(view),
            "servers": servers,
            "running": view.registry.runs.list(status="running", limit=10, scope=scope),
            "failed": _failed(view),
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


def _failed(view: View) -> list[RunRecord]:
    """Runs that failed since yesterday, among the newest."""
    since = datetime.now(UTC) - _RECENT
    runs = view.registry.runs.list(limit=_RUNS, scope=view.access.scope)
    return [
        run for run in runs if run.status == "failed" and run.finished and run.finished >= since
    ]

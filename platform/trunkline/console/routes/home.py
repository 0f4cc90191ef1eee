"""The home page: what is live, which servers run, what waits and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from trunkline.console.pages import N_, Page
from trunkline.console.routes import Routes
from trunkline.console.routes.requests import STATUSES, listed_fields
from trunkline.console.view import View
from trunkline.console.waiting import find_waiting
from trunkline.registry.records import RunRecord

routes = Routes()

LIVE = 20
SERVERS = 10
FAILED_REQUESTS = 10
_RECENT = timedelta(days=1)
_RUNS = 100
"""The newest runs, of which those that run or failed are shown."""


@routes.get("")
def home(view: View) -> Page:
    """The home page."""
    scope = view.access.scope
    since = datetime.now(UTC) - _RECENT
    live = view.registry.versions.search("alias=champion", limit=LIVE, scope=scope)
    runs = view.registry.runs.list(limit=_RUNS, scope=scope)
    servers = [one for one in view.registry.servers.list(SERVERS) if one.stopped is None]
    failed = view.registry.requests.search(
        limit=FAILED_REQUESTS, statuses=STATUSES["failed"], since=since, scope=scope
    )
    return Page(
        "home.html",
        N_("Home"),
        {
            "live": live.versions,
            "more_live": live.next is not None,
            "waiting": find_waiting(view),
            "servers": servers,
            "running": [run for run in runs if run.status == "running"],
            "failed": _failed(runs, since),
            "failed_requests": [listed_fields(one) for one in failed.requests],
        },
        {
            "more_requests": failed.next is not None and len(failed.requests) == FAILED_REQUESTS,
            "since": f"{since:%Y-%m-%dT%H:%M}",
        },
        command="trunkline adapters list --where 'alias=champion'",
        place="home",
    )


def _failed(runs: Sequence[RunRecord], since: datetime) -> list[RunRecord]:
    """The runs that failed since then."""
    return [
        run for run in runs if run.status == "failed" and run.finished and run.finished >= since
    ]

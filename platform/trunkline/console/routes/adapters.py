"""Search adapters and versions, and show one adapter with its versions and aliases."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from trunkline.console.pages import N_, Page
from trunkline.console.routes import Routes
from trunkline.console.view import View
from trunkline.errors import UsageError
from trunkline.refs import Ref
from trunkline.registry.records import AdapterRecord, VersionRecord

routes = Routes()

PAGE_SIZE = 50
MOVES = 50
_SCANS = 3
"""How often a search that matches little goes on by itself."""


@routes.get("/adapters")
def adapters(view: View) -> Page:
    """Adapters by name; with a search, the matching versions, newest first."""
    query, after = view.text("q"), view.text("after")
    facets = view.registry.adapters.facets(scope=view.access.scope)
    records: Sequence[AdapterRecord] = ()
    versions: Sequence[VersionRecord] = ()
    following: Ref | None = None
    problem: UsageError | None = None
    try:
        start = view.access.check_ref(after) if after else None
        if query:
            versions, following = _search(view, query, start)
        else:
            listed = view.registry.adapters.list(
                limit=PAGE_SIZE + 1, after=start, scored=True, scope=view.access.scope
            )
            records = listed[:PAGE_SIZE]
            following = records[-1].ref if len(listed) > PAGE_SIZE else None
    except UsageError as error:
        problem = error
    return Page(
        "adapters.html",
        N_("Adapters"),
        {
            "query": query,
            "adapters": records,
            "versions": versions,
            "next": None if following is None else str(following),
            "facets": facets,
            "error": problem and problem.message,
        },
        {
            "hint": problem and problem.hint,
            "narrow": lambda field, value: _narrow(query, f"{field}={value}"),
        },
        command="trunkline adapters list" + (f" --where {shlex.quote(query)}" if query else ""),
        place="adapters",
        status=200 if problem is None else problem.http_status,
    )


def _search(
    view: View, query: str, start: Ref | None
) -> tuple[Sequence[VersionRecord], Ref | None]:
    versions: list[VersionRecord] = []
    for _ in range(_SCANS):
        page = view.registry.versions.search(
            query, limit=PAGE_SIZE - len(versions), after=start, scope=view.access.scope
        )
        versions += page.versions
        start = page.next
        if start is None or len(versions) == PAGE_SIZE:
            break
    return versions, start


def _narrow(query: str, condition: str) -> str:
    """A search with one more condition; without a search, of the newest versions."""
    if condition in query:
        return query
    if " or " in query.lower():
        query = f"({query})"
    return f"{query or 'newest=yes'} and {condition}"


@routes.get("/adapters/{domain}/{name}")
def adapter(view: View) -> Page:
    """One adapter: versions, newest first, and the moves of its aliases."""
    ref = view.access.check_adapter(view.path["domain"], view.path["name"])
    record = view.registry.adapters.get(ref.domain, ref.name)
    before = view.number("before")
    listed = view.registry.versions.list(
        ref.domain, ref.name, limit=PAGE_SIZE + 1, before=before, scored=True
    )
    versions = listed[:PAGE_SIZE]
    return Page(
        "adapter.html",
        ref.adapter,
        {
            "adapter": record,
            "versions": versions,
            "next": versions[-1].number if len(listed) > PAGE_SIZE else None,
            "moves": view.registry.aliases.moves(ref.domain, ref.name, limit=MOVES),
            "tags": view.registry.tags.get(ref.adapter).tags,
        },
        command=f"trunkline adapters show {ref.adapter}",
        place="adapters",
    )

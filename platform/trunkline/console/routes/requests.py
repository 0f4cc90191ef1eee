"""Search the request log; each request leads to its lineage."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime

from trunkline.console.pages import N_, Page
from trunkline.console.routes import Routes
from trunkline.console.view import View
from trunkline.errors import NotFoundError, UsageError
from trunkline.refs import BASE, shown
from trunkline.registry.records import RequestRecord
from trunkline.registry.requests import RequestPage

routes = Routes()

PAGE_SIZE = 100
STATUSES = {"ok": (200, 299), "refused": (400, 499), "failed": (500, 599)}
"""Name in the form → HTTP statuses, first and last."""


@routes.get("/requests")
def requests(view: View) -> Page:
    """The matching requests, newest first; without texts, which only their lineage shows."""
    model, key, status = view.text("model"), view.text("key"), view.text("status")
    id = view.text("id")
    if id:
        page = RequestPage(_by_id(view, id), None)
    else:
        if status and status not in STATUSES:
            raise UsageError(f"status can't be {shown(status)}.", f"Use {', '.join(STATUSES)}.")
        if model and model != BASE:
            view.access.check_ref(model)
        page = view.registry.requests.search(
            limit=PAGE_SIZE,
            before=view.number("before"),
            model=model or None,
            key=key or None,
            statuses=STATUSES.get(status),
            since=_time(view, "since"),
            until=_time(view, "until"),
            scope=view.access.scope,
        )
    adapter = model.partition("@")[0]
    options = [("--adapter", adapter), ("--key", key)]
    return Page(
        "requests.html",
        N_("Requests"),
        {"requests": [listed_fields(one) for one in page.requests], "next": page.next},
        {
            "id": id, "model": model, "key": key, "status": status, "statuses": STATUSES,
            "since": view.text("since"), "until": view.text("until"),
        },
        command="trunkline requests list"
        + "".join(f" {name} {shlex.quote(value)}" for name, value in options if value),
        place="requests",
    )  # fmt: skip


def _by_id(view: View, id: str) -> tuple[RequestRecord, ...]:
    try:
        record = view.registry.requests.get(id)
    except NotFoundError:
        return ()
    adapter = (record.version or "").partition("@")[0]
    visible = view.access.sees_everything or view.access.may_use(adapter)
    return (record,) if visible else ()


def listed_fields(record: RequestRecord) -> dict[str, object]:
    names = ("id", "at", "key", "route", "model", "version", "prompt_tokens", "new_tokens",
             "status", "seconds")  # fmt: skip
    return {name: getattr(record, name) for name in names}


def _time(view: View, name: str) -> datetime | None:
    """A time of the form, in UTC, as browsers send it: ``2026-11-30T14:00``."""
    text = view.text(name)
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{name} can't be {shown(text)}.", "Write 2026-11-30 or 2026-11-30T14:00, in UTC."
        ) from None

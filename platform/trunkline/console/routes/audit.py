"""Events and their hash chain: list, verify and export. The pages concern every adapter."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator

from starlette.responses import Response, StreamingResponse

from trunkline.console.pages import N_, Page, Redirect
from trunkline.console.routes import Routes
from trunkline.console.view import View
from trunkline.errors import BusyError, UsageError
from trunkline.refs import shown
from trunkline.registry.audit import HEADS_SAVED, find_chain
from trunkline.registry.chain import CHAINS, Head
from trunkline.registry.records import ChainReport

routes = Routes()

PAGE_SIZE = 100

_HEAD = re.compile(r"([0-9]{1,19}):([0-9a-f]{64})", re.ASCII)
_verifying = threading.Lock()


@routes.get("/audit", everything=True)
def audit(view: View) -> Page:
    """The heads of both chains, and the events, newest first."""
    return _page(view, ())


@routes.post("/audit/verify", everything=True)
def verify(view: View) -> Page:
    """Verify both chains from their first row, and compare them with heads that were kept."""
    heads = {}
    for name in CHAINS:
        if text := view.form.get(f"{name}_head", "").strip():
            heads[name] = _head(text)
    if not _verifying.acquire(blocking=False):
        raise BusyError(N_("The chains are being verified already."), N_("Retry later."))
    try:
        reports = view.registry.audit.verify(heads)
    finally:
        _verifying.release()
    return _page(view, reports)


@routes.post("/audit/saved", everything=True)
def saved(view: View) -> Redirect:
    """Record that the sender has saved the heads of this page elsewhere."""
    heads = {name: _head(view.form.get(f"{name}_head", "")) for name in CHAINS}
    view.registry.audit.record_saved_heads(heads, actor=view.access.actor)
    return Redirect("/audit", {"heads": {name: str(one) for name, one in heads.items()}},
                    done="heads-saved")  # fmt: skip


@routes.get("/audit/export", everything=True)
def export(view: View) -> Response:
    """Every row of a chain as a line of JSON, oldest first."""
    chain = find_chain(view.text("chain") or "events").name
    if chain == "requests":
        view.access.check_role("admin")  # prompts and answers, if they are logged
    after = view.number("after") or 0

    def lines() -> Iterator[str]:
        for row in view.registry.audit.export(chain, after=after):
            yield json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"

    return StreamingResponse(
        lines(),
        media_type="application/x-ndjson",
        headers={"content-disposition": f'attachment; filename="{chain}.jsonl"'},
    )


def _page(view: View, reports: list[ChainReport] | tuple[()]) -> Page:
    subject, kind = view.text("subject"), view.text("kind")
    listed = view.registry.events.list(
        subject or None, kind or None, view.number("before"), PAGE_SIZE + 1
    )
    events = listed[:PAGE_SIZE]
    saved = view.registry.events.list(kind=HEADS_SAVED, limit=1)
    return Page(
        "audit.html",
        N_("Audit"),
        {
            "heads": {name: str(head) for name, head in view.registry.events.heads().items()},
            "saved": saved[0] if saved else None,
            "reports": [
                {"chain": one.chain, "rows": one.rows, "head": str(one.head),
                 "compared": one.expected_head is not None, "intact": one.intact,
                 "breaks": one.breaks, "break_count": one.break_count}
                for one in reports
            ],
            "events": events,
            "next": events[-1].seq if len(listed) > PAGE_SIZE else None,
        },
        {"subject": subject, "kind": kind},
        command="trunkline audit verify",
        place="audit",
    )  # fmt: skip


def _head(text: str) -> Head:
    match = _HEAD.fullmatch(text.lower())
    if match is None:
        raise UsageError(
            f"{shown(text)} is not a head.",
            "Write it as it was printed: a row number, ':' and 64 hex digits.",
        )
    return Head(int(match[1]), match[2])

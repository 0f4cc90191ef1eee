"""API keys: list, create and revoke; for administrators whose key covers every adapter."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime, timedelta

from trunkline.console.pages import N_, Page, Redirect
from trunkline.console.routes import Routes
from trunkline.console.view import View
from trunkline.errors import UsageError
from trunkline.refs import shown
from trunkline.registry.tables import KEY_ROLES

routes = Routes()

EXPIRIES = {"": None, "1d": 1, "30d": 30, "90d": 90, "365d": 365}
"""Value in the form → days; None for never."""


@routes.get("/keys", role="admin", everything=True)
def keys(view: View) -> Page:
    """Every key, newest first, and the form for a new one."""
    return _page(view)


@routes.post("/keys", role="admin", everything=True)
def create(view: View) -> Page:
    """Create a key; the answer shows it, and nothing shows it again."""
    form = view.form
    days = form.get("expires", "")
    if days not in EXPIRIES:
        raise UsageError(f"expires can't be {shown(days)}.", "Choose one of the list.")
    span = EXPIRIES[days]
    expires = None if span is None else datetime.now(UTC) + timedelta(days=span)
    adapters = form.get("adapters", "").replace(",", " ").split()
    record, secret = view.registry.keys.create(
        form.get("owner", "").strip(),
        adapters,
        role=form.get("role", "") or "tester",
        expires=expires,
        actor=view.access.actor,
    )
    return _page(view, created=record.id, secret=secret)


@routes.post("/keys/{id}/revoke", role="admin", everything=True)
def revoke(view: View) -> Redirect:
    """Invalidate a key, and with it the sessions that it opened."""
    record = view.registry.keys.remove(view.path["id"], actor=view.access.actor)
    return Redirect("/keys", {"key": record}, done="revoked")


def _page(view: View, created: str | None = None, secret: str | None = None) -> Page:
    records = view.registry.keys.list()
    created_key = next((one for one in records if one.id == created), None)
    command = "trunkline keys list"
    if created_key is not None:
        command = f"trunkline keys create {shlex.quote(created_key.owner)} --role "
        command += created_key.role
        command += "".join(f" --adapter {shlex.quote(one)}" for one in created_key.adapters)
    return Page(
        "keys.html",
        N_("Keys"),
        {"keys": records, "created": created_key, "secret": secret},
        {
            "roles": KEY_ROLES,
            "expiries": EXPIRIES,
            "now": datetime.now(UTC),
            "own": view.access.key and view.access.key.id,
        },
        command=command,
        place="keys",
    )

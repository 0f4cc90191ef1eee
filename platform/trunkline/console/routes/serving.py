"""The engine of this server: residents, queue, memory and times; and the other servers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from trunkline.console.pages import N_, Page, Redirect
from trunkline.console.routes import Routes
from trunkline.console.view import View
from trunkline.errors import NotFoundError, UnavailableError
from trunkline.lora.pool import AdapterPool
from trunkline.serving.metrics import Latency

routes = Routes()

SERVERS = 20


@routes.get("/serving")
def serving(view: View) -> Page:
    """The state of the engine; totals appear only to keys that cover every adapter."""
    service = view.service
    engine: dict[str, Any] | None = None
    residents: list[dict[str, Any]] = []
    latencies: dict[str, Latency] = {}
    problem: str | None = None
    try:
        engines = service.engines
        pools = [one.pool for one in engines]
        state = asdict(engines[0].state())
        engine = {**state, "base": service.base.name, "in_flight": len(service.in_flight)}
        engine["others"] = [
            {**asdict(one.state()), "base": one.base.info.name} for one in engines[1:]
        ]
        if view.access.sees_everything:
            engine |= {
                "adapter_bytes": sum(one.total_bytes for one in pools),
                "adapter_budget": sum(one.budget_bytes for one in pools),
            }
        latencies = {
            name: latency
            for name, latency in service.metrics.latencies().items()
            if view.access.may_use(name.partition("@")[0])
        }
        held = [(own, one) for own in pools for one in own.residents()]
        for pool, one in held:
            if view.access.may_use(one.name.partition("@")[0]):
                latency = latencies.get(one.name)
                residents.append(
                    {**asdict(one), **asdict(pool.counters(one.digest)),
                     "p50": latency and latency.p50, "p95": latency and latency.p95}
                )  # fmt: skip
    except UnavailableError as error:
        problem = error.message if error.hint is None else f"{error.message} {error.hint}"
    servers = [one for one in view.registry.servers.list(SERVERS) if one.stopped is None]
    return Page(
        "serving.html",
        N_("Serving"),
        {"engine": engine, "residents": residents, "latencies": latencies, "servers": servers,
         "problem": problem},
        command="trunkline ps --url URL",
        place="serving",
    )  # fmt: skip


@routes.post("/serving/load", role="admin")
def load(view: View) -> Redirect:
    """Read an adapter from disk, verify it, and keep it in memory."""
    view.access.check_ref(view.form.get("ref", ""))
    model = view.platform.resolve(view.form["ref"], suggest=False)
    for modality, name, artifact in model.adapters():
        view.service.engine_of(modality).pool.load(artifact, name)
    return Redirect("/serving", {"ref": model.name, "resident": True}, done="loaded")


@routes.post("/serving/pin", role="admin")
def pin(view: View) -> Redirect:
    """Pin a resident adapter, or unpin it."""
    pool, digest = _resident(view)
    pinned = view.form.get("pinned") == "yes"
    pool.pin(digest, pinned)
    data = {"digest": digest, "pinned": pinned}
    return Redirect("/serving", data, done="pinned" if pinned else "unpinned")


@routes.post("/serving/unload", role="admin")
def unload(view: View) -> Redirect:
    """Evict an adapter; one in use is evicted when its last request ends."""
    pool, digest = _resident(view)
    evicted = pool.unload(digest)
    return Redirect("/serving", {"digest": digest, "resident": not evicted}, done="unloaded")


def _resident(view: View) -> tuple[AdapterPool, str]:
    """The digest in the form, of an adapter in memory that the key may use, and its pool."""
    digest = view.form.get("digest", "")
    for pool in [engine.pool for engine in view.service.engines]:
        for one in pool.residents():
            if one.digest == digest and view.access.may_use(one.name.partition("@")[0]):
                return pool, digest
    raise NotFoundError(N_("This version is not in memory."), N_("Load the page again."))

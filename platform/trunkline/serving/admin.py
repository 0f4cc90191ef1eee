"""``/admin``: what is resident, and what is to be.

Owns: the forms of its routes. Must not know: how adapters are stored. Every route wants an admin's
key, where keys are needed at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from trunkline.errors import BaseMismatchError, NotFoundError
from trunkline.promotion import GateRefusedError
from trunkline.refs import Ref
from trunkline.registry.actors import key_actor
from trunkline.serving.auth import check_admin
from trunkline.serving.call import Call
from trunkline.serving.errors import ApiError, told
from trunkline.serving.models import Model, find_model
from trunkline.serving.schemas import ModelName
from trunkline.serving.service import Service


async def _only_admins(request: Request) -> None:
    check_admin(request.state.call.key)


router = APIRouter(prefix="/admin", dependencies=[Depends(_only_admins)])


_LONGEST, _LONGEST_REASON = 256, 10_000


class RefBody(BaseModel):
    """One adapter, by any ref."""

    ref: ModelName


class PinBody(RefBody):
    """Whether it is to stay."""

    pinned: bool = True


class PromoteBody(RefBody):
    """Where an alias is to move; see :meth:`~trunkline.api.Platform.promote`."""

    alias: str = Field("champion", max_length=_LONGEST)
    force: bool = False
    reason: str = Field("", max_length=_LONGEST_REASON)


class RollbackBody(RefBody):
    """Which alias is to go back; see :meth:`~trunkline.api.Platform.rollback`."""

    alias: str = Field("champion", max_length=_LONGEST)
    reason: str = Field("", max_length=_LONGEST_REASON)


@router.get("/state")
async def state(request: Request) -> dict[str, Any]:
    """What is in flight, and how full the engine is."""
    service = _service(request)
    engine = asdict(service.engine.state())
    return {
        **engine,
        "draining": service.draining or engine["draining"],
        "in_flight": len(service.calls),
        "base": service.base.name,
    }


@router.get("/residents")
async def residents(request: Request) -> dict[str, Any]:
    """The adapters in memory that the key may see; the bytes are those of all."""
    service = _service(request)
    return await service.ask(_residents, service, request.state.call)


@router.post("/load")
async def load(body: RefBody, request: Request) -> dict[str, Any]:
    """Read an adapter from disk, verify it, and keep it ready."""
    service = _service(request)
    return await service.load(_load, service, request.state.call, body.ref)


@router.post("/unload")
async def unload(body: RefBody, request: Request) -> dict[str, Any]:
    """Put an adapter out of memory, pinned or not; one in use goes when its last request ends."""
    service = _service(request)
    model = await _adapter(request, body.ref)
    with _named(model):
        gone = await service.load(service.engine.pool.unload, model.digest)
    return {"ref": model.root, "digest": model.digest, "resident": not gone}


@router.post("/pin")
async def pin(body: PinBody, request: Request) -> dict[str, Any]:
    """Keep a resident adapter whatever else needs room, or no longer."""
    service = _service(request)
    model = await _adapter(request, body.ref)
    with _named(model):
        await service.load(service.engine.pool.pin, model.digest, body.pinned)
    return {"ref": model.root, "digest": model.digest, "pinned": body.pinned}


@router.post("/promote", response_model=None)
async def promote(body: PromoteBody, request: Request) -> dict[str, Any] | JSONResponse:
    """Move an alias, if the gate allows it; the next request sees it.

    The key's owner is who promotes. A refusal carries ``checks`` beside the error's other fields.
    """
    service = _service(request)
    try:
        return await service.load(_promote, service, request.state.call, body)
    except GateRefusedError as refused:
        error = told(refused)["error"]
        error["checks"] = [asdict(check) for check in refused.checks]
        return JSONResponse({"error": error}, refused.http_status)


@router.post("/rollback")
async def rollback(body: RollbackBody, request: Request) -> dict[str, Any]:
    """Let an alias go back to its previous version, without a gate; the next request sees it."""
    service = _service(request)
    return await service.load(_rollback, service, request.state.call, body)


def _service(request: Request) -> Service:
    call: Call = request.state.call
    return call.service


async def _adapter(request: Request, ref: str) -> Model:
    service = _service(request)
    return await service.ask(_find, service, request.state.call, ref)


def _find(service: Service, call: Call, ref: str) -> Model:
    """One adapter's version; the base is none, and can't be moved."""
    model = find_model(service.registry, service.base, call.key, ref)
    if model.parent is None:
        raise ApiError(
            "The base is no adapter: it is always there, and stays as it is.",
            "GET /v1/models lists the adapters.",
            status=404,
            param="model",
            code="model_not_found",
        )
    return model


@contextmanager
def _named(model: Model) -> Iterator[None]:
    """The adapter pool knows digests only."""
    try:
        yield
    except NotFoundError:
        raise NotFoundError(
            f"{model.root} is not in memory.", "POST /admin/load brings it there."
        ) from None


def _load(service: Service, call: Call, ref: str) -> dict[str, Any]:
    model = _find(service, call, ref)
    version = service.registry.versions.resolve(Ref.parse(model.root))[0]
    service.engine.pool.load(service.platform.store.fetch(version), model.root)
    return {"ref": model.root, "digest": model.digest, "resident": True}


def _promote(service: Service, call: Call, body: PromoteBody) -> dict[str, Any]:
    _find(service, call, body.ref)
    done = service.platform.promote(
        body.ref, body.alias, force=body.force, reason=body.reason, actor=_actor(call)
    )
    return {
        "ref": str(done.version.ref),
        "adapter": done.version.ref.adapter,
        "alias": done.alias,
        "old": done.old,
        "new": done.new,
        "forced": done.forced,
        "checks": [asdict(check) for check in done.checks],
        "head": done.head,
    }


def _rollback(service: Service, call: Call, body: RollbackBody) -> dict[str, Any]:
    with suppress(BaseMismatchError):  # going back may be the way out of it
        _find(service, call, body.ref)
    done = service.platform.rollback(body.ref, body.alias, reason=body.reason, actor=_actor(call))
    return {**asdict(done.move), "head": done.head}


def _actor(call: Call) -> str | None:
    """Who asks; where no key is needed, the system's user under whom the server runs."""
    return None if call.key is None else key_actor(call.key.id, call.key.owner)


def _residents(service: Service, call: Call) -> dict[str, Any]:
    pool, key = service.engine.pool, call.key
    seen = [
        one for one in pool.residents() if key is None or key.may_use(one.name.partition("@")[0])
    ]
    return {
        "object": "list",
        "data": [{**asdict(one), **asdict(pool.counters(one.digest))} for one in seen],
        "total_bytes": pool.total_bytes,
        "budget_bytes": pool.budget_bytes,
    }

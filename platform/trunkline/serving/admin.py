"""``/admin``: the engine's state, resident adapters, promotion and rollback.

Unless the server is open, every route needs a key with the role ``admin``; a ``promoter`` may move
aliases.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Self

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, Field, StrictBool, field_validator, model_validator

from trunkline.errors import BaseMismatchError, ForbiddenError, NotFoundError, UsageError
from trunkline.promotion import GateRefusedError
from trunkline.refs import check_alias, shown
from trunkline.registry.actors import key_actor
from trunkline.serving.admin_schemas import Promotion, Residents, Rollback, ServerState
from trunkline.serving.bodies import JsonRoute
from trunkline.serving.errors import ApiError, error_body
from trunkline.serving.fields import StrictModel, invalid
from trunkline.serving.models import served_models
from trunkline.serving.schemas import ModelName, Text
from trunkline.serving.service import Context, RequestContext

if TYPE_CHECKING:
    from trunkline.resolution import ResolvedModel

_MAX_ALIAS_CHARS, _MAX_REASON_CHARS = 256, 10_000


def _require(role: str) -> Any:
    """A dependency that refuses keys without a role."""

    async def check(context: Context) -> None:
        key = context.key
        if key is not None and not key.has_role(role):
            raise ForbiddenError(
                f"The key {key.id} has the role {key.role}; this needs {role}.",
                f"Create one with: trunkline keys create OWNER --role {role}.",
            )

    return Depends(check)


_ADMIN, _PROMOTER = [_require("admin")], [_require("promoter")]

router = APIRouter(route_class=JsonRoute, prefix="/admin")


class RefBody(StrictModel):
    """An adapter, by any ref."""

    ref: ModelName


class PinBody(RefBody):
    """Whether to pin or to unpin an adapter."""

    pinned: StrictBool = True


def _check_alias(text: str) -> str:
    try:
        return check_alias(text)
    except UsageError as error:
        raise invalid(f"can't be {shown(text)}.", error.hint or "") from None


Alias = Annotated[Text, Field(max_length=_MAX_ALIAS_CHARS), AfterValidator(_check_alias)]
Reason = Annotated[Text, Field(max_length=_MAX_REASON_CHARS)]


class PromoteBody(RefBody):
    """Which alias to move; see :meth:`~trunkline.api.Platform.promote`."""

    alias: Alias = "champion"
    force: StrictBool = False
    reason: Reason = ""

    @model_validator(mode="after")
    def _check_reason(self) -> Self:
        if self.force and not self.reason.strip():
            raise invalid("is empty: a forced promotion needs one.", "Send it.", field="reason")
        return self


class RollbackBody(RefBody):
    """Which alias to roll back; see :meth:`~trunkline.api.Platform.rollback`."""

    alias: Alias = "champion"
    reason: Reason = ""

    @field_validator("ref")
    @classmethod
    def _check_ref(cls, ref: str) -> str:
        adapter, at, _ = ref.partition("@")
        if at:
            raise invalid(
                "names a version, but an alias belongs to the adapter.", f"Send {shown(adapter)}."
            )
        return ref


@router.get("/state", response_model=ServerState, dependencies=_ADMIN)
async def state(context: Context) -> dict[str, Any]:
    """Show the requests in flight and the load of the engines."""
    service = context.service
    loads = [
        {**asdict(one.state()), "base": one.base.info.name, "modality": one.modality}
        for one in service.engines
    ]
    return {
        **loads[0],
        "draining": service.draining or loads[0]["draining"],
        "in_flight": len(service.in_flight),
        "engines": loads,
    }


@router.get("/residents", response_model=Residents, dependencies=_ADMIN)
async def residents(context: Context) -> dict[str, Any]:
    """List the adapters in memory that the key may use; the byte totals count all adapters."""
    return await context.service.query(_residents, context)


@router.post("/load", dependencies=_ADMIN)
async def load(body: RefBody, context: Context) -> dict[str, Any]:
    """Read an adapter from disk, verify it, and keep it in memory."""
    return await context.service.load(_load, context, body.ref)


@router.post("/unload", dependencies=_ADMIN)
async def unload(body: RefBody, context: Context) -> dict[str, Any]:
    """Evict an adapter, even if it is pinned; one in use is evicted when its last request ends."""
    model = await context.service.query(_resolve_adapter, context, body.ref)
    with _named(model):
        pool = context.service.pool_of(model.digest)
        evicted = await context.service.load(pool.unload, model.digest)
    return {"ref": model.name, "digest": model.digest, "resident": not evicted}


@router.post("/pin", dependencies=_ADMIN)
async def pin(body: PinBody, context: Context) -> dict[str, Any]:
    """Pin a resident adapter, so that it is never evicted for others, or unpin it."""
    model = await context.service.query(_resolve_adapter, context, body.ref)
    with _named(model):
        pool = context.service.pool_of(model.digest)
        await context.service.load(pool.pin, model.digest, body.pinned)
    return {"ref": model.name, "digest": model.digest, "pinned": body.pinned}


@router.post("/promote", response_model=Promotion, dependencies=_PROMOTER)
async def promote(body: PromoteBody, context: Context) -> dict[str, Any] | JSONResponse:
    """Move an alias if the gate allows it; the next request uses the new version.

    The owner of the key is the actor. If the gate refuses, the error has ``checks`` too.
    """
    try:
        return await context.service.load(_promote, context, body)
    except GateRefusedError as refused:
        error = error_body(refused)["error"]
        error["checks"] = [asdict(check) for check in refused.checks]
        return JSONResponse({"error": error}, refused.http_status)


@router.post("/rollback", response_model=Rollback, dependencies=_PROMOTER)
async def rollback(body: RollbackBody, context: Context) -> dict[str, Any]:
    """Move an alias back to its previous version, without a gate; the next request uses it."""
    return await context.service.load(_rollback, context, body)


def _resolve_adapter(context: RequestContext, ref: str) -> ResolvedModel:
    model = served_models(context).resolve(context.key, ref, field="ref")
    if model.record is None:
        raise ApiError(
            "'base' is not an adapter; the base always stays in memory.",
            "GET /v1/models lists the adapters.",
            status=404,
            param="ref",
            code="model_not_found",
        )
    return model


@contextmanager
def _named(model: ResolvedModel) -> Iterator[None]:
    """Name the ref in the pool's error, which names the digest only."""
    try:
        yield
    except NotFoundError:
        error = NotFoundError(f"{model.name} is not in memory.", "Load it with POST /admin/load.")
        error.param = "ref"
        raise error from None


@contextmanager
def _alias_named() -> Iterator[None]:
    """Name the field in errors of a move; the ref is resolved, so they concern the alias."""
    try:
        yield
    except UsageError as error:
        error.param = error.param or "alias"
        raise


def _load(context: RequestContext, ref: str) -> dict[str, Any]:
    model = _resolve_adapter(context, ref)
    for modality, name, artifact in model.adapters():
        context.service.engine_of(modality).pool.load(artifact, name)
    return {"ref": model.name, "digest": model.digest, "resident": True}


def _promote(context: RequestContext, body: PromoteBody) -> dict[str, Any]:
    key = context.key
    if body.force and key is not None and not key.admin:
        raise ForbiddenError(
            f"The key {key.id} has the role {key.role}, which may not override the gate.",
            "Leave out force, or use an administrator's key.",
        )
    _resolve_adapter(context, body.ref)
    with _alias_named():
        promotion = context.service.platform.promote(
            body.ref, body.alias, force=body.force, reason=body.reason, actor=_actor(context)
        )
    return {
        "ref": str(promotion.version.ref),
        "adapter": promotion.version.ref.adapter,
        "alias": promotion.alias,
        "old": promotion.old,
        "new": promotion.new,
        "forced": promotion.forced,
        "checks": [asdict(check) for check in promotion.checks],
        "head": promotion.head,
    }


def _rollback(context: RequestContext, body: RollbackBody) -> dict[str, Any]:
    with suppress(BaseMismatchError):  # the rollback may be the remedy
        _resolve_adapter(context, body.ref)
    with _alias_named():
        change = context.service.platform.rollback(
            body.ref, body.alias, reason=body.reason, actor=_actor(context)
        )
    return {**asdict(change.move), "head": change.head}


def _actor(context: RequestContext) -> str | None:
    """The owner of the key; on an open server None, the system's user who runs it."""
    return None if context.key is None else key_actor(context.key.id, context.key.owner)


def _residents(context: RequestContext) -> dict[str, Any]:
    pools, key = [one.pool for one in context.service.engines], context.key
    return {
        "object": "list",
        "data": [
            {**asdict(resident), **asdict(pool.counters(resident.digest))}
            for pool in pools
            for resident in pool.residents()
            if key is None or key.may_use(resident.name.partition("@")[0])
        ],
        "total_bytes": sum(pool.total_bytes for pool in pools),
        "budget_bytes": sum(pool.budget_bytes for pool in pools),
    }

"""The replies of the ``/admin`` routes; the command line validates them with the same models."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class _Reply(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class EngineLoad(_Reply):
    """The load of one engine, in sequences or pictures; ``modality`` is what it reads."""

    base: str
    modality: str
    waiting: int
    running: int
    rows: int
    steps: int


class ServerState(_Reply):
    """Requests in flight, and load of the engine that was started first, in sequences and tokens.

    ``engines`` has the load of each engine; the one for pictures starts with the first picture.
    """

    base: str
    draining: bool
    in_flight: int
    waiting: int
    running: int
    rows: int
    steps: int
    kv_tokens: int
    kv_tokens_used: int
    cached_tokens: int
    engines: Sequence[EngineLoad]


class ResidentAdapter(_Reply):
    """One adapter in memory; ``in_use`` counts running sequences."""

    digest: str
    name: str
    tier: str
    bytes: int
    rank: int
    pinned: bool
    in_use: int
    requests: int
    idle_seconds: float
    loads: int
    evictions: int


class Residents(_Reply):
    """The adapters in memory that the key may use; the byte totals count all adapters."""

    object: str
    data: Sequence[ResidentAdapter]
    total_bytes: int
    budget_bytes: int


class Check(_Reply):
    """The result of one condition of a gate."""

    name: str
    passed: bool
    figures: str


class Promotion(_Reply):
    """A moved alias, with the checks of the gate and the head of the events."""

    ref: str
    adapter: str
    alias: str
    old: int | None
    new: int | None
    forced: bool
    checks: Sequence[Check]
    head: str


class Rollback(_Reply):
    """A move of an alias to its previous version, and the head of the events."""

    id: int
    adapter: str
    alias: str
    kind: str
    new: int | None
    old: int | None
    back_to: int | None
    at: Annotated[datetime, Field(strict=False)]
    actor: str
    forced: bool
    reason: str | None
    gate: Sequence[Check] | None
    head: str

"""Hash chains: appending rows so that a later change, removal or insertion is detectable.

Row n stores ``hash[n-1]`` and ``hash[n] = sha256(hash[n-1] + "\\n" + canonical JSON of row n)``
(Haber and Stornetta, "How to time-stamp a digital document", 1991). Whoever can write the database
can also rewrite the chain from some row on, or truncate it; only a head that is stored elsewhere
reveals that. :mod:`trunkline.registry.audit` verifies the chains.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, insert, select
from sqlalchemy.orm import Session

from trunkline.errors import IntegrityError
from trunkline.files import canonical_json
from trunkline.registry.actors import system_actor
from trunkline.registry.engine import dump_json
from trunkline.registry.tables import ChainHead, Event, LoggedRequest, utc_now

ROOT = "0" * 64
"""The hash before the first row."""

_PENDING = "events"


@dataclass(frozen=True, slots=True)
class Chain:
    """A table whose rows are chained; ``fields`` are the columns that the hash covers."""

    name: str
    table: type[Event] | type[LoggedRequest]
    fields: tuple[str, ...]


EVENTS = Chain("events", Event, ("seq", "at", "actor", "kind", "subject", "detail"))
REQUESTS = Chain(
    "requests",
    LoggedRequest,
    (
        *("seq", "id", "at", "key_id", "route", "model", "adapter", "version", "digest"),
        *("prompt_tokens", "new_tokens", "status", "seconds", "text", "output"),
    ),
)
CHAINS = {chain.name: chain for chain in (EVENTS, REQUESTS)}


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: its last row's number (0: none) and hash; ``SEQ:DIGEST`` as text."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


def row_hash(previous: str, row: Mapping[str, Any]) -> str:
    """64 hex digits over the row and the hash before it; the same on every database."""
    values = {name: _normalized(value) for name, value in row.items()}
    return hashlib.sha256(previous.encode() + b"\n" + canonical_json(values)).hexdigest()


def link(chain: Chain, head: Head, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with ``seq``, ``previous_hash`` and ``hash``, following ``head``."""
    linked = []
    for seq, row in enumerate(rows, head.seq + 1):
        numbered = {**row, "seq": seq}
        digest = row_hash(head.hash, {name: numbered.get(name) for name in chain.fields})
        linked.append({**numbered, "previous_hash": head.hash, "hash": digest})
        head = Head(seq, digest)
    return linked


def append(session: Session, chain: Chain, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows at the chain's end; every other writer of the chain waits for the commit.

    Call it last in a transaction, so that the transaction waits for nothing else while it holds
    the lock of the chain's head.
    """
    head = _stored_head(session, chain, select(ChainHead).with_for_update())
    linked = link(chain, Head(head.seq, head.hash), rows)
    if linked:
        session.execute(insert(chain.table), linked)
        head.seq, head.hash = linked[-1]["seq"], linked[-1]["hash"]


def head_of(session: Session, chain: Chain) -> Head:
    """Where the chain ends now.

    Raises:
        IntegrityError: the stored head was removed.
    """
    head = _stored_head(session, chain, select(ChainHead))
    return Head(head.seq, head.hash)


def heads_of(session: Session) -> dict[str, Head]:
    """Where every chain ends now, by the chain's name.

    Raises:
        IntegrityError: a stored head was removed.
    """
    return {name: head_of(session, chain) for name, chain in CHAINS.items()}


def _stored_head(session: Session, chain: Chain, query: Select[ChainHead]) -> ChainHead:
    head = session.scalar(query.where(ChainHead.name == chain.name))
    if head is None:
        raise IntegrityError(
            f"The stored head of the chain '{chain.name}' was removed by hand.",
            "Restore a backup with: trunkline db restore FILE --replace.",
        )
    return head


def _normalized(value: Any) -> Any:
    """A value as every database returns it."""
    if isinstance(value, datetime):
        aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return aware.isoformat(timespec="microseconds")
    if isinstance(value, Mapping):
        return json.loads(dump_json(value))
    return value


# --------------------------------------------------------------------------------------- events


def event_values(
    actor: str | None, kind: str, subject: str, detail: Mapping[str, Any]
) -> dict[str, Any]:
    """The columns of an event that happens now; without an actor, the system's user did it."""
    return {
        "at": utc_now(),
        "actor": actor or system_actor(),
        "kind": kind,
        "subject": subject,
        "detail": dict(detail),
    }


def add_event(
    session: Session, actor: str | None, kind: str, subject: str, detail: Mapping[str, Any]
) -> None:
    """Append an event when the transaction in progress commits."""
    session.info.setdefault(_PENDING, []).append(event_values(actor, kind, subject, detail))


def append_pending_events(session: Session) -> None:
    """Append the events of the transaction in progress; the last step before its commit."""
    if events := session.info.pop(_PENDING, None):
        append(session, EVENTS, events)

"""Hash chains: rows that can't be changed, taken out or put in between without showing.

Owns: what a row's hash is taken of, and appending under the lock of the chain's head.
Must not know: what the rows are about, and who checks them (:mod:`trunkline.registry.audit`).

Row n carries ``hash[n-1]`` and ``hash[n] = sha256(hash[n-1] + "\\n" + canonical JSON of row n)``,
after Haber and Stornetta, "How to time-stamp a digital document" (1991). Whoever can write the
database can also rewrite the chain from some row on, or cut its tail off: only a head that is kept
elsewhere shows that.
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
from trunkline.registry.engine import dump_json
from trunkline.registry.tables import ChainHead, Event, LoggedRequest

ROOT = "0" * 64
"""Stands before the first row."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A table whose rows are chained; ``fields`` are the columns that the hash covers, for good."""

    name: str
    table: type[Event] | type[LoggedRequest]
    fields: tuple[str, ...]


EVENTS = Chain("events", Event, ("seq", "at", "actor", "kind", "subject", "detail"))
REQUESTS = Chain(
    "requests",
    LoggedRequest,
    (
        *("seq", "id", "at", "key_id", "route", "asked", "adapter", "version", "digest"),
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
    told = {name: _plain(value) for name, value in row.items()}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(f"{previous}\n{text}".encode()).hexdigest()


def linked(chain: Chain, head: Head, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with ``seq``, ``previous_hash`` and ``hash``, following ``head``."""
    made = []
    for seq, row in enumerate(rows, head.seq + 1):
        whole = {**row, "seq": seq}
        found = row_hash(head.hash, {name: whole.get(name) for name in chain.fields})
        made.append({**whole, "previous_hash": head.hash, "hash": found})
        head = Head(seq, found)
    return made


def append(session: Session, chain: Chain, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows at the chain's end; every other writer of the chain waits for the commit.

    Call it last in a transaction, so that nothing else is waited for while the head is locked.
    """
    last = _end(session, chain, select(ChainHead).with_for_update())
    made = linked(chain, Head(last.seq, last.hash), rows)
    if made:
        session.execute(insert(chain.table), made)
        last.seq, last.hash = made[-1]["seq"], made[-1]["hash"]


def head_of(session: Session, chain: Chain) -> Head:
    """Where the chain ends now.

    Raises:
        IntegrityError: the record of it was removed.
    """
    last = _end(session, chain, select(ChainHead))
    return Head(last.seq, last.hash)


def _end(session: Session, chain: Chain, query: Select[ChainHead]) -> ChainHead:
    last = session.scalar(query.where(ChainHead.name == chain.name))
    if last is None:
        raise IntegrityError(
            f"The record of where the chain of the {chain.name} ends was removed by hand.",
            "Restore a backup with: trunkline db restore FILE --replace.",
        )
    return last


def _plain(value: Any) -> Any:
    """A value as it comes back from any database."""
    if isinstance(value, datetime):
        aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return aware.isoformat(timespec="microseconds")
    if isinstance(value, Mapping):
        return json.loads(dump_json(value))
    return value

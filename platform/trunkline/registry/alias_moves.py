"""The rows of aliases and of their moves: what stands, what came before, and carrying a move out.

Owns: the queries over ``aliases`` and ``alias_moves``, and the event that each change leaves.
Must not know: transactions; each function works in its caller's session, which holds the lock of
the adapter's row where it changes something.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session, aliased

from trunkline.errors import NotFoundError, RefusedError, UsageError
from trunkline.refs import shown
from trunkline.registry.records import AliasMoveRecord
from trunkline.registry.session import add_event, utc_now
from trunkline.registry.tables import Adapter, Alias, AliasMove, Base, Version


class Anything(Enum):
    """The type of :data:`ANY`."""

    ANY = "any"


ANY: Final = Anything.ANY
"""Stands for whatever the alias's newest move is."""

Expected = int | None | Literal[Anything.ANY]
"""Id of the newest move of an alias as somebody saw it; None: it was never moved."""


def check_no_base(session: Session, alias: str) -> None:
    if session.scalar(select(Base.id).where(func.lower(Base.name) == alias).limit(1)) is not None:
        raise reserved_for_base(alias)


def reserved_for_base(alias: str) -> UsageError:
    """The error for an alias that is the name of a base."""
    return UsageError(
        f"{shown(alias)} is the name of a base and can't be an alias.",
        "Choose an alias such as 'champion' or 'canary'.",
    )


def newest_move(session: Session, adapter: Adapter, alias: str) -> AliasMove | None:
    return session.scalar(
        select(AliasMove)
        .where(AliasMove.adapter_id == adapter.id, AliasMove.alias == alias)
        .order_by(AliasMove.id.desc())
        .limit(1)
    )


def standing(session: Session, adapter: Adapter, alias: str) -> int | None:
    """Id of the version at which an alias stands."""
    return session.scalar(
        select(Alias.version_id).where(Alias.adapter_id == adapter.id, Alias.alias == alias)
    )


def compared(
    session: Session, adapter: Adapter, alias: str, expected: Expected
) -> AliasMove | None:
    """The alias's newest move, if it is the expected one."""
    newest = newest_move(session, adapter, alias)
    if expected is ANY or expected == (newest and newest.id):
        return newest
    where = f"{adapter.domain}/{adapter.name}"
    hint = f"Look at it with `trunkline adapters history {where}` and decide again."
    if newest is None:
        raise RefusedError(f"The alias {alias!r} of {where} was never moved.", hint)
    won = move_record(session, newest.id)
    done = {
        "promoted": f"moved {alias!r} of {where} to version {won.new}",
        "rolled-back": f"rolled {alias!r} of {where} back to version {won.new}",
        "dropped": f"dropped {alias!r} of {where}",
    }[won.kind]
    raise RefusedError(
        f"Another was first: {won.actor} {done} at {won.at:%Y-%m-%dT%H:%M:%SZ}, while this was "
        "being decided. Nothing was changed.",
        hint,
    )


def one_step_back(session: Session, adapter: Adapter, alias: str) -> tuple[AliasMove, AliasMove]:
    """The newest move of an alias, and the earlier one whose version a rollback restores."""
    where = f"{adapter.domain}/{adapter.name}"
    newest = newest_move(session, adapter, alias)
    if newest is None:
        raise NotFoundError(
            f"{where} never had an alias {alias!r}.",
            f"See its versions and aliases with: trunkline adapters show {where}.",
        )
    step = newest.back_to
    while step is not None:
        earlier = session.get_one(AliasMove, step)
        if earlier.version_id is not None and earlier.version_id != newest.version_id:
            version = session.get_one(Version, earlier.version_id)
            if version.status == "visible":
                return newest, earlier
        step = earlier.back_to
    now = move_record(session, newest.id).new
    stands = "is dropped" if now is None else f"stands at version {now}"
    raise RefusedError(
        f"There is nothing to roll {alias!r} of {where} back to: it {stands}, and no version that "
        "is still there came before.",
        f"`trunkline adapters history {where}` tells its moves; "
        f"`trunkline adapters promote {where}@N` moves it to any version.",
    )


def carry_out(session: Session, adapter: Adapter, move: AliasMove) -> AliasMoveRecord:
    """Carry a move out: the alias, its account and its event."""
    row = session.scalar(
        select(Alias).where(Alias.adapter_id == adapter.id, Alias.alias == move.alias)
    )
    move.adapter_id = adapter.id
    move.old_version_id = None if row is None else row.version_id
    move.at = utc_now()
    if move.version_id is None:
        if row is not None:
            session.delete(row)
    elif row is None:
        session.add(Alias(adapter_id=adapter.id, alias=move.alias, version_id=move.version_id))
    else:
        row.version_id = move.version_id
    session.add(move)
    session.flush()
    record = move_record(session, move.id)
    detail = {
        "alias": record.alias,
        "old": record.old,
        "new": record.new,
        "kind": record.kind,
        "gate": record.gate,
        "forced": record.forced,
        "reason": record.reason,
    }
    add_event(session, move.actor, "alias.moved", record.adapter, detail)
    return record


_New, _Old = aliased(Version), aliased(Version)

MoveRow = Row[AliasMove, str, str, int | None, int | None]


def told_moves() -> Select[AliasMove, str, str, int | None, int | None]:
    return (
        select(AliasMove, Adapter.domain, Adapter.name, _New.number, _Old.number)
        .join(Adapter, Adapter.id == AliasMove.adapter_id)
        .outerjoin(_New, _New.id == AliasMove.version_id)
        .outerjoin(_Old, _Old.id == AliasMove.old_version_id)
    )


def move_record(session: Session, move: int) -> AliasMoveRecord:
    return record_of(session.execute(told_moves().where(AliasMove.id == move)).one())


def record_of(row: MoveRow) -> AliasMoveRecord:
    move, domain, name, new, old = row
    return AliasMoveRecord(
        id=move.id,
        adapter=f"{domain}/{name}",
        alias=move.alias,
        kind=move.kind,
        new=new,
        old=old,
        back_to=move.back_to,
        at=move.at,
        actor=move.actor,
        forced=move.forced,
        reason=move.reason,
        gate=move.gate,
    )

"""Aliases: move them to a version, roll them back, drop them, and list their moves.

A move is compare-and-set: it fails if the alias has moved since the caller read it. Writers of one
adapter's aliases wait for each other on the adapter's row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from trunkline.errors import NotFoundError, RefusedError, UsageError
from trunkline.refs import Ref, check_alias, shown
from trunkline.registry.actors import system_actor
from trunkline.registry.chain import add_event
from trunkline.registry.lookup import find_adapter, find_version
from trunkline.registry.mapping import move_records, version_record
from trunkline.registry.records import AliasMoveRecord, VersionRecord
from trunkline.registry.session import Aggregate
from trunkline.registry.tables import Adapter, Alias, AliasMove, Base, Version, utc_now


class AnyMove(Enum):
    """The type of :data:`ANY`."""

    ANY = "any"


ANY: Final = AnyMove.ANY
"""Move the alias whatever its newest move is."""

Expected = int | None | Literal[AnyMove.ANY]
"""Id of the newest move of an alias as the caller read it; None: it was never moved."""


class Aliases(Aggregate):
    """Moves aliases to versions, rolls them back, drops them, and lists their moves."""

    def move(
        self,
        ref: Ref,
        alias: str,
        *,
        expected: Expected = ANY,
        actor: str | None = None,
        forced: bool = False,
        reason: str | None = None,
        gate: Sequence[Mapping[str, Any]] | None = None,
    ) -> AliasMoveRecord | None:
        """Point ``alias`` at the version that ``ref`` resolves to; None if it does already.

        The move and its event are one transaction.

        Args:
            expected: the newest move that the caller has read.
            actor: who does it; by default the system's user.
            gate: the gate's checks, as ``{"name", "passed", "figures"}`` each.

        Raises:
            UsageError: the alias is malformed, reserved, or the name of a base.
            NotFoundError: ``ref`` resolves to no visible version.
            RefusedError: the alias was moved meanwhile; the message says by whom, when and where.
        """
        check_alias(alias)
        with self._sessions.write() as session:
            adapter = find_adapter(session, ref, lock=True)
            _check_no_base(session, alias)
            version = find_version(session, ref)
            newest = _expected_move(session, adapter, alias, expected)
            if _target(session, adapter, alias) == version.id:
                return None
            return _apply(
                session,
                adapter,
                AliasMove(
                    alias=alias,
                    kind="promoted",
                    version_id=version.id,
                    back_to=newest and newest.id,
                    actor=actor or system_actor(),
                    forced=forced,
                    reason=reason,
                    gate=None if gate is None else [dict(check) for check in gate],
                ),
            )

    def set(self, ref: Ref, alias: str, *, actor: str | None = None) -> tuple[int | None, int]:
        """Point ``alias`` at a version unconditionally; return its old and its new number.

        Raises:
            As :meth:`move`.
        """
        move = self.move(ref, alias, actor=actor)
        if move is None or move.new is None:
            with self._sessions.read() as session:
                number = find_version(session, ref).number
            return number, number
        return move.old, move.new

    def previous(self, domain: str, name: str, alias: str) -> tuple[AliasMoveRecord, VersionRecord]:
        """The alias's newest move, and the version that :meth:`rollback` would restore.

        Raises:
            NotFoundError: there is no such adapter, or it never had the alias.
            RefusedError: no earlier version still exists.
        """
        check_alias(alias)
        with self._sessions.read() as session:
            adapter = find_adapter(session, Ref(domain, name))
            newest, earlier = _rollback_target(session, adapter, alias)
            version = session.get_one(Version, earlier.version_id)
            return _move_record(session, newest.id), version_record(session, version)

    def rollback(
        self,
        ref: Ref,
        alias: str,
        *,
        expected: Expected = ANY,
        actor: str | None = None,
        reason: str | None = None,
    ) -> AliasMoveRecord:
        """Move the alias back to its previous version, one step further each time.

        Removed versions are skipped, and so are moves that would change nothing. A dropped alias
        returns to where it pointed.

        Args:
            ref: of the adapter, without a selector.
            expected: the newest move that the caller has read.

        Raises:
            As :meth:`previous`.
            RefusedError: the alias was moved meanwhile; the message says by whom, when and where.
        """
        check_alias(alias)
        with self._sessions.write() as session:
            adapter = find_adapter(session, ref, lock=True)
            _expected_move(session, adapter, alias, expected)
            _, earlier = _rollback_target(session, adapter, alias)
            return _apply(
                session,
                adapter,
                AliasMove(
                    alias=alias,
                    kind="rolled-back",
                    version_id=earlier.version_id,
                    back_to=earlier.back_to,
                    actor=actor or system_actor(),
                    forced=False,
                    reason=reason,
                    gate=None,
                ),
            )

    def drop(
        self,
        ref: Ref,
        alias: str,
        *,
        actor: str | None = None,
        forced: bool = False,
        reason: str | None = None,
    ) -> AliasMoveRecord:
        """Delete an alias; its moves stay, and a rollback restores it.

        Raises:
            NotFoundError: the adapter has no such alias.
        """
        check_alias(alias)
        with self._sessions.write() as session:
            adapter = find_adapter(session, ref, lock=True)
            if _target(session, adapter, alias) is None:
                aliases = select(Alias.alias).where(Alias.adapter_id == adapter.id)
                raise NotFoundError.named(
                    "alias",
                    alias,
                    session.scalars(aliases),
                    f"List them with: trunkline adapters show {ref.adapter}.",
                )
            newest = _newest_move(session, adapter, alias)
            return _apply(
                session,
                adapter,
                AliasMove(
                    alias=alias,
                    kind="dropped",
                    version_id=None,
                    back_to=newest and newest.id,
                    actor=actor or system_actor(),
                    forced=forced,
                    reason=reason,
                    gate=None,
                ),
            )

    def moves(
        self,
        domain: str,
        name: str,
        alias: str | None = None,
        *,
        limit: int = 100,
        before: int | None = None,
    ) -> list[AliasMoveRecord]:
        """The moves of an adapter's aliases, newest first, even if all its versions were removed.

        Args:
            alias: only moves of this one.
            before: only moves older than the one with this id, for the next page.
        """
        where = [Adapter.domain == domain, Adapter.name == name]
        if alias is not None:
            where.append(AliasMove.alias == alias)
        if before is not None:
            where.append(AliasMove.id < before)
        with self._sessions.read() as session:
            return move_records(session, *where, limit=limit)


def base_name_error(alias: str) -> UsageError:
    """The error for an alias that is the name of a base."""
    return UsageError(
        f"{shown(alias)} is the name of a base and can't be an alias.",
        "Choose an alias such as 'champion' or 'canary'.",
    )


def _check_no_base(session: Session, alias: str) -> None:
    if session.scalar(select(Base.id).where(func.lower(Base.name) == alias).limit(1)) is not None:
        raise base_name_error(alias)


def _newest_move(session: Session, adapter: Adapter, alias: str) -> AliasMove | None:
    return session.scalar(
        select(AliasMove)
        .where(AliasMove.adapter_id == adapter.id, AliasMove.alias == alias)
        .order_by(AliasMove.id.desc())
        .limit(1)
    )


def _move_record(session: Session, move: int) -> AliasMoveRecord:
    return move_records(session, AliasMove.id == move)[0]


def _target(session: Session, adapter: Adapter, alias: str) -> int | None:
    """Id of the version at which an alias points."""
    return session.scalar(
        select(Alias.version_id).where(Alias.adapter_id == adapter.id, Alias.alias == alias)
    )


def _expected_move(
    session: Session, adapter: Adapter, alias: str, expected: Expected
) -> AliasMove | None:
    """The alias's newest move, if it is the expected one.

    Raises:
        RefusedError: it is another one.
    """
    newest = _newest_move(session, adapter, alias)
    if expected is ANY or expected == (newest and newest.id):
        return newest
    name = f"{adapter.domain}/{adapter.name}"
    hint = f"Read it again with `trunkline adapters history {name}` and retry."
    if newest is None:
        raise RefusedError(f"Conflict: the alias {alias!r} of {name} was never moved.", hint)
    move = _move_record(session, newest.id)
    change = {
        "promoted": f"moved it to version {move.new}",
        "rolled-back": f"rolled it back to version {move.new}",
        "dropped": "dropped it",
    }[move.kind]
    now = "no longer exists" if move.new is None else f"already points to version {move.new}"
    raise RefusedError(
        f"Conflict: the alias {alias!r} of {name} {now}. {move.actor} {change} at "
        f"{move.at:%Y-%m-%dT%H:%M:%SZ}, meanwhile; nothing was changed.",
        hint,
    )


def _rollback_target(session: Session, adapter: Adapter, alias: str) -> tuple[AliasMove, AliasMove]:
    """The newest move of an alias, and the earlier one whose version a rollback restores."""
    name = f"{adapter.domain}/{adapter.name}"
    newest = _newest_move(session, adapter, alias)
    if newest is None:
        raise NotFoundError(
            f"{name} never had an alias {alias!r}.",
            f"See its versions and aliases with: trunkline adapters show {name}.",
        )
    step = newest.back_to
    while step is not None:
        earlier = session.get_one(AliasMove, step)
        if earlier.version_id is not None and earlier.version_id != newest.version_id:
            version = session.get_one(Version, earlier.version_id)
            if version.status == "visible":
                return newest, earlier
        step = earlier.back_to
    number = _move_record(session, newest.id).new
    state = "is dropped" if number is None else f"points to version {number}"
    raise RefusedError(
        f"The alias {alias!r} of {name} can't be rolled back: it {state}, and no earlier version "
        "still exists.",
        f"`trunkline adapters history {name}` lists its moves; "
        f"`trunkline adapters promote {name}@N` moves it to any version.",
    )


def _apply(session: Session, adapter: Adapter, move: AliasMove) -> AliasMoveRecord:
    """Change the alias, and record the move and its event."""
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
    record = _move_record(session, move.id)
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

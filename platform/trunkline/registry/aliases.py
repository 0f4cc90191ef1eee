"""Aliases: how they move, step back and go, and the account of it.

Owns: their transactions; :mod:`trunkline.registry.alias_moves` has the rows.
Must not know: gates, or who may do this; :mod:`trunkline.promotion` asks before.

A move is compare-and-set: whoever decided on what stood there before is told when it stands there
no longer. Writers of one adapter's aliases wait for each other on the adapter's row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select

from trunkline.errors import NotFoundError
from trunkline.refs import Ref, check_alias
from trunkline.registry.alias_moves import (
    ANY,
    Expected,
    carry_out,
    check_no_base,
    compared,
    move_record,
    newest_move,
    one_step_back,
    record_of,
    standing,
    told_moves,
)
from trunkline.registry.lookup import (
    find_adapter,
    find_version,
    version_records,
    visible_versions,
)
from trunkline.registry.records import AliasMoveRecord, VersionRecord
from trunkline.registry.session import Aggregate, system_actor
from trunkline.registry.tables import Adapter, Alias, AliasMove, Version


class Aliases(Aggregate):
    """Moves aliases to versions, back and away, and tells their moves."""

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
        """Move ``alias`` to the version that answers ``ref``; None if it stands there already.

        The move, its account and its event are one transaction.

        Args:
            expected: the newest move that the caller has seen.
            actor: who does it; by default the system's user.
            gate: what was asked before, as ``{"name", "passed", "figures"}`` each.

        Raises:
            UsageError: the alias is malformed, reserved, or the name of a base.
            NotFoundError: no visible version answers ``ref``.
            RefusedError: another move came first; it says whose, when and where to.
        """
        check_alias(alias)
        with self._sessions.write() as session:
            adapter = find_adapter(session, ref, lock=True)
            check_no_base(session, alias)
            version = find_version(session, ref)[0][0]
            newest = compared(session, adapter, alias, expected)
            if standing(session, adapter, alias) == version.id:
                return None
            return carry_out(
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
        """Move ``alias`` whatever stands there now; gives its old and its new version's number.

        Raises:
            As :meth:`move_alias`.
        """
        moved = self.move(ref, alias, actor=actor)
        if moved is None or moved.new is None:
            with self._sessions.read() as session:
                number = find_version(session, ref)[0][0].number
            return number, number
        return moved.old, moved.new

    def previous(self, domain: str, name: str, alias: str) -> tuple[AliasMoveRecord, VersionRecord]:
        """The alias's newest move, and the version that :meth:`rollback_alias` would go back to.

        Raises:
            NotFoundError: there is no such adapter, or it never had the alias.
            RefusedError: nothing came before that is still there.
        """
        check_alias(alias)
        with self._sessions.read() as session:
            adapter = find_adapter(session, Ref(domain, name))
            newest, earlier = one_step_back(session, adapter, alias)
            row = session.execute(visible_versions().where(Version.id == earlier.version_id)).one()
            return move_record(session, newest.id), version_records(session, [row])[0]

    def rollback(
        self,
        ref: Ref,
        alias: str,
        *,
        expected: Expected = ANY,
        actor: str | None = None,
        reason: str | None = None,
    ) -> AliasMoveRecord:
        """Go back to the alias's previous version, one step further each time.

        Removed versions are passed over, and so are moves that would change nothing. A dropped
        alias comes back to where it stood.

        Args:
            ref: of the adapter, without a selector.
            expected: the newest move that the caller has seen.

        Raises:
            As :meth:`previous_version`.
            RefusedError: another move came first; it says whose, when and where to.
        """
        check_alias(alias)
        with self._sessions.write() as session:
            adapter = find_adapter(session, ref, lock=True)
            compared(session, adapter, alias, expected)
            _, earlier = one_step_back(session, adapter, alias)
            return carry_out(
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
        """Take an alias away; its moves stay, and a rollback brings it back.

        Raises:
            NotFoundError: the adapter has no such alias.
        """
        check_alias(alias)
        with self._sessions.write() as session:
            adapter = find_adapter(session, ref, lock=True)
            if standing(session, adapter, alias) is None:
                known = session.scalars(select(Alias.alias).where(Alias.adapter_id == adapter.id))
                raise NotFoundError.named(
                    "alias", alias, known, f"See them with: trunkline adapters show {ref.adapter}."
                )
            newest = newest_move(session, adapter, alias)
            return carry_out(
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
        """The moves of an adapter's aliases, newest first; also of one all of whose versions went.

        Args:
            alias: only moves of this one.
            before: only moves older than the one with this id, for the next page.
        """
        query = told_moves().order_by(AliasMove.id.desc()).limit(limit)
        query = query.where(Adapter.domain == domain, Adapter.name == name)
        if alias is not None:
            query = query.where(AliasMove.alias == alias)
        if before is not None:
            query = query.where(AliasMove.id < before)
        with self._sessions.read() as session:
            return [record_of(row) for row in session.execute(query)]

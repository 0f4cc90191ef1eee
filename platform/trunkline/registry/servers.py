"""Deployments: which servers run, and which versions they hold in memory.

Owns: the rows of ``deployments`` and ``deployment_loads``, and who counts as alive.
Must not know: how a server loads anything; it tells.

Whether a server lives is decided by the database's clock, so that hosts with clocks of their own
can share a registry. Start and stop are events; heartbeats and loads are only rows.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Row, Select, func, select, update
from sqlalchemy.orm import Session

from trunkline.registry.records import DeploymentRecord, LoadRecord
from trunkline.registry.session import Aggregate, add_event, system_actor, utc_now
from trunkline.registry.tables import Base, Deployment, DeploymentLoad, UtcDateTime

ALIVE_SECONDS = 90
"""A server that was not seen for so long is not alive."""

_LAST = 2**63 - 1
_LIST = 500


class Servers(Aggregate):
    """Adds what servers tell of themselves, and reads it."""

    def start(
        self,
        host: str,
        pid: int,
        url: str,
        base_digest: str | None,
        actor: str | None = None,
        *,
        dtype: str | None = None,
    ) -> int:
        """A server has begun to serve; gives its number.

        Args:
            url: where it listens; empty where another program holds the socket.
            base_digest: of the base that it serves.
            dtype: in which the base computes, such as ``int8``; the event tells it, if it is known.
        """
        with self._sessions.write() as session:
            now = _clock(session)
            base = session.scalar(select(Base.id).where(Base.digest == base_digest))
            row = Deployment(
                actor=actor or system_actor(),
                host=host,
                pid=pid,
                url=url,
                base_id=base,
                started=now,
                seen=now,
                stopped=None,
            )
            session.add(row)
            session.flush()
            told = {} if dtype is None else {"dtype": dtype}
            # A listing cuts off what is long, so the digest stands last.
            detail = {"host": host, "pid": pid, "url": url, **told, "base": base_digest}
            add_event(session, row.actor, "server.started", server_subject(row.id), detail)
            return row.id

    def heartbeat(self, number: int) -> bool:
        """A server is still there; False where the registry knows of no such one that runs."""
        with self._sessions.write() as session:
            return _see(session, number)

    def record_loads(
        self, number: int, loaded: Sequence[tuple[str, str]], unloaded: Sequence[str] = ()
    ) -> bool:
        """A server has taken versions into memory and then put others out.

        Args:
            loaded: ref and digest of each; one that is held already is not told twice.
            unloaded: digests; one that is not held is passed over.

        Returns:
            Whether the registry knows of such a server that runs; if not, nothing is written.
        """
        with self._sessions.write() as session:
            if not _see(session, number):
                return False
            now = utc_now()
            held = set(
                session.scalars(
                    select(DeploymentLoad.digest).where(
                        DeploymentLoad.deployment_id == number,
                        DeploymentLoad.digest.in_([*(one for _, one in loaded), *unloaded]),
                        DeploymentLoad.unloaded.is_(None),
                    )
                )
            )
            for ref, digest in loaded:
                if digest not in held:
                    held.add(digest)
                    session.add(
                        DeploymentLoad(
                            deployment_id=number,
                            version=ref,
                            digest=digest,
                            loaded=now,
                            unloaded=None,
                        )
                    )
            session.flush()
            if gone := held.intersection(unloaded):
                _unload(session, number, now, gone)
            return True

    def stop(self, number: int, actor: str | None = None) -> None:
        """A server ends, and holds nothing from now on; a second time nothing happens."""
        with self._sessions.write() as session:
            now = utc_now()
            query = select(Deployment).where(Deployment.id == number).with_for_update()
            row = session.scalar(query)
            if row is None or row.stopped is not None:
                return
            row.stopped = now
            row.seen = _clock(session)
            _unload(session, number, now)
            add_event(session, actor or row.actor, "server.stopped", server_subject(number), {})

    def list(self, limit: int = 100, before: int | None = None) -> Sequence[DeploymentRecord]:
        """Servers, newest first.

        Args:
            before: only those that began before the one with this number, for the next page.
        """
        query = _deployments().order_by(Deployment.id.desc()).limit(limit)
        if before is not None:
            query = query.where(Deployment.id < max(0, min(before, _LAST)))
        with self._sessions.read() as session:
            now = _clock(session)
            return [_record(row, now) for row in session.execute(query)]

    def list_loads(
        self, digest: str, limit: int = 100, before: int | None = None
    ) -> Sequence[LoadRecord]:
        """When servers held a version, newest first.

        Args:
            before: only loads that are older than the one with this ``id``, for the next page.
        """
        query = (
            _deployments()
            .add_columns(DeploymentLoad)
            .join(DeploymentLoad, DeploymentLoad.deployment_id == Deployment.id)
            .where(DeploymentLoad.digest == digest)
            .order_by(DeploymentLoad.id.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(DeploymentLoad.id < max(0, min(before, _LAST)))
        with self._sessions.read() as session:
            now = _clock(session)
            return [
                LoadRecord(
                    id=row.DeploymentLoad.id,
                    version=row.DeploymentLoad.version,
                    digest=row.DeploymentLoad.digest,
                    loaded=row.DeploymentLoad.loaded,
                    unloaded=row.DeploymentLoad.unloaded,
                    server=_record(row, now),
                )
                for row in session.execute(query)
            ]

    def holders(self, digests: Collection[str] | None = None) -> Mapping[str, Sequence[str]]:
        """What servers that are alive hold in memory now.

        Args:
            digests: ask about these only; None for all.

        Returns:
            Digest → the servers that hold it, each as ``server/3 (http://…, process 812 on host)``;
            a digest that nobody holds is not in it.
        """
        asked = [None] if digests is None else list(_slices(sorted(digests)))
        found: dict[str, list[str]] = {}
        with self._sessions.read() as session:
            now = _clock(session)
            query = (
                _deployments()
                .add_columns(DeploymentLoad.digest)
                .join(DeploymentLoad, DeploymentLoad.deployment_id == Deployment.id)
                .where(
                    Deployment.stopped.is_(None),
                    Deployment.seen >= now - timedelta(seconds=ALIVE_SECONDS),
                    DeploymentLoad.unloaded.is_(None),
                )
                .order_by(DeploymentLoad.id)
            )
            for some in asked:
                narrowed = query if some is None else query.where(DeploymentLoad.digest.in_(some))
                for row in session.execute(narrowed):
                    server = _record(row, now)
                    if server.alive:
                        found.setdefault(row.digest, []).append(_named(server))
        return found


def server_subject(number: int) -> str:
    """What a server's events are filed under."""
    return f"server/{number}"


def process_lives(pid: int) -> bool:
    """Whether a process of this host runs; one that has ended and waits for its parent does not."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state not in ("Z", "X")


def _slices(digests: Sequence[str]) -> Sequence[Sequence[str]]:
    return [digests[start : start + _LIST] for start in range(0, len(digests), _LIST)]


def _clock(session: Session) -> datetime:
    """The database's time, which is the same for every host."""
    return session.execute(select(func.now(type_=UtcDateTime()))).scalar_one()


def _see(session: Session, number: int) -> bool:
    seen = (
        update(Deployment)
        .where(Deployment.id == number, Deployment.stopped.is_(None))
        .values(seen=_clock(session))
        .returning(Deployment.id)
    )
    return session.scalar(seen) is not None


def _unload(
    session: Session, number: int, now: datetime, digests: Collection[str] | None = None
) -> None:
    held = update(DeploymentLoad).where(
        DeploymentLoad.deployment_id == number, DeploymentLoad.unloaded.is_(None)
    )
    if digests is not None:
        held = held.where(DeploymentLoad.digest.in_(digests))
    session.execute(held.values(unloaded=now), execution_options={"synchronize_session": False})


def _deployments() -> Select[Deployment, str, str]:
    return select(Deployment, Base.name.label("base_name"), Base.digest.label("base_digest")).join(
        Base, Deployment.base_id == Base.id, isouter=True
    )


def _record(row: Row[*tuple[Any, ...]], now: datetime) -> DeploymentRecord:
    one: Deployment = row.Deployment
    late = now - one.seen > timedelta(seconds=ALIVE_SECONDS)
    gone = one.host == socket.gethostname() and not process_lives(one.pid)
    return DeploymentRecord(
        number=one.id,
        actor=one.actor,
        host=one.host,
        pid=one.pid,
        url=one.url,
        base_name=row.base_name,
        base_digest=row.base_digest,
        started=one.started,
        seen=one.seen,
        stopped=one.stopped,
        alive=one.stopped is None and not late and not gone,
    )


def _named(server: DeploymentRecord) -> str:
    where = f"{server.url}, " if server.url else ""
    return f"{server_subject(server.number)} ({where}process {server.pid} on {server.host})"

"""Servers: which serving processes run, and which versions each holds in memory.

Whether a server is alive is decided by the database's clock, so that hosts with different clocks
can share a registry. Start and stop are events; heartbeats and loads are only rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from trunkline.registry.actors import system_actor
from trunkline.registry.chain import add_event
from trunkline.registry.lookup import MAX_INT64, clamp, server_subject
from trunkline.registry.mapping import ALIVE_SECONDS, select_servers, server_record, to_record
from trunkline.registry.records import LoadRecord, ServerRecord
from trunkline.registry.session import Aggregate, pages
from trunkline.registry.tables import Base, Server, ServerLoad, UtcDateTime, utc_now


class Servers(Aggregate):
    """Records starts, heartbeats, loads and stops of servers, and lists them."""

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
        """Record that a server started, and return its number.

        Args:
            url: where it listens; empty where another program holds the socket.
            base_digest: of the base that it serves.
            dtype: in which the base computes, such as ``int8``; stored in the event.
        """
        with self._sessions.write() as session:
            now = _database_time(session)
            base = session.scalar(select(Base.id).where(Base.digest == base_digest))
            row = Server(
                actor=actor or system_actor(),
                host=host,
                pid=pid,
                url=url,
                base_id=base,
                started=now,
                last_seen=now,
                stopped=None,
            )
            session.add(row)
            session.flush()
            # A listing cuts long values off, so the digest comes last.
            detail = {
                "host": host,
                "pid": pid,
                "url": url,
                **({} if dtype is None else {"dtype": dtype}),
                "base": base_digest,
            }
            add_event(session, row.actor, "server.started", server_subject(row.id), detail)
            return row.id

    def heartbeat(self, number: int) -> bool:
        """Record that a server is alive; False if the registry has no such running server."""
        with self._sessions.write() as session:
            return _touch(session, number)

    def record_loads(
        self, number: int, loaded: Sequence[tuple[str, str]], unloaded: Sequence[str] = ()
    ) -> bool:
        """Record that a server loaded versions into memory and then unloaded others.

        Args:
            loaded: ref and digest of each; one that is resident already is skipped.
            unloaded: digests; one that is not resident is skipped.

        Returns:
            Whether the registry has such a running server; if not, nothing is written.
        """
        with self._sessions.write() as session:
            if not _touch(session, number):
                return False
            now = utc_now()
            resident = set(
                session.scalars(
                    select(ServerLoad.digest).where(
                        ServerLoad.server_id == number,
                        ServerLoad.digest.in_([*(digest for _, digest in loaded), *unloaded]),
                        ServerLoad.unloaded.is_(None),
                    )
                )
            )
            for ref, digest in loaded:
                if digest not in resident:
                    resident.add(digest)
                    session.add(
                        ServerLoad(
                            server_id=number,
                            version=ref,
                            digest=digest,
                            loaded=now,
                            unloaded=None,
                        )
                    )
            session.flush()
            if evicted := resident.intersection(unloaded):
                _unload(session, number, now, evicted)
            return True

    def stop(self, number: int, actor: str | None = None) -> None:
        """Record that a server stopped and holds nothing; stopping it again changes nothing."""
        with self._sessions.write() as session:
            now = utc_now()
            row = session.scalar(select(Server).where(Server.id == number).with_for_update())
            if row is None or row.stopped is not None:
                return
            row.stopped = now
            row.last_seen = _database_time(session)
            _unload(session, number, now)
            add_event(session, actor or row.actor, "server.stopped", server_subject(number), {})

    def list(self, limit: int = 100, before: int | None = None) -> Sequence[ServerRecord]:
        """Servers, newest first.

        Args:
            before: only servers older than the one with this number, for the next page.
        """
        query = select_servers().order_by(Server.id.desc()).limit(limit)
        if before is not None:
            query = query.where(Server.id < clamp(before, MAX_INT64))
        with self._sessions.read() as session:
            now = _database_time(session)
            return [server_record(row, now) for row in session.execute(query)]

    def list_loads(
        self, digest: str, limit: int = 100, before: int | None = None
    ) -> Sequence[LoadRecord]:
        """When servers held a version in memory, newest first.

        Args:
            before: only loads older than the one with this ``id``, for the next page.
        """
        query = (
            select_servers()
            .add_columns(ServerLoad)
            .join(ServerLoad, ServerLoad.server_id == Server.id)
            .where(ServerLoad.digest == digest)
            .order_by(ServerLoad.id.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(ServerLoad.id < clamp(before, MAX_INT64))
        with self._sessions.read() as session:
            now = _database_time(session)
            return [
                to_record(LoadRecord, row.ServerLoad, server=server_record(row, now))
                for row in session.execute(query)
            ]

    def holders(self, digests: Collection[str] | None = None) -> Mapping[str, Sequence[str]]:
        """Which servers that are alive hold which versions in memory now.

        Args:
            digests: only these; None for all.

        Returns:
            Digest → the servers that hold it, each as ``server/3 (http://…, process 812 on host)``;
            a digest that no server holds is left out.
        """
        holders: dict[str, list[str]] = {}
        with self._sessions.read() as session:
            now = _database_time(session)
            query = (
                select_servers()
                .add_columns(ServerLoad.digest)
                .join(ServerLoad, ServerLoad.server_id == Server.id)
                .where(
                    Server.stopped.is_(None),
                    Server.last_seen >= now - timedelta(seconds=ALIVE_SECONDS),
                    ServerLoad.unloaded.is_(None),
                )
                .order_by(ServerLoad.id)
            )
            queries = (
                [query]
                if digests is None
                else [query.where(ServerLoad.digest.in_(page)) for page in pages(sorted(digests))]
            )
            for one in queries:
                for row in session.execute(one):
                    server = server_record(row, now)
                    if server.alive:
                        holders.setdefault(row.digest, []).append(_describe(server))
        return holders


def _database_time(session: Session) -> datetime:
    """The database's time, which is the same for every host."""
    return session.execute(select(func.now(type_=UtcDateTime()))).scalar_one()


def _touch(session: Session, number: int) -> bool:
    heartbeat = (
        update(Server)
        .where(Server.id == number, Server.stopped.is_(None))
        .values(last_seen=_database_time(session))
        .returning(Server.id)
    )
    return session.scalar(heartbeat) is not None


def _unload(
    session: Session, number: int, now: datetime, digests: Collection[str] | None = None
) -> None:
    resident = update(ServerLoad).where(
        ServerLoad.server_id == number, ServerLoad.unloaded.is_(None)
    )
    if digests is not None:
        resident = resident.where(ServerLoad.digest.in_(digests))
    session.execute(resident.values(unloaded=now), execution_options={"synchronize_session": False})


def _describe(server: ServerRecord) -> str:
    where = f"{server.url}, " if server.url else ""
    return f"{server_subject(server.number)} ({where}process {server.pid} on {server.host})"

"""The rows of versions as the maintenance of an adapter store needs them.

Garbage collection, verification and the store itself ask here which numbers are reserved, which
folders and digests belong to a version, and which files a version has.

A reservation is a lease. On this host it ends with its process; on Linux the start time
distinguishes a process from a later one with the same pid. A process on another host can't be
checked, so its reservation expires after :data:`LEASE`. A process that publishes later than that
fails, and deletes its own files.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, Select, func, select, tuple_

from trunkline.refs import Ref
from trunkline.registry.actors import process_is_alive, process_start
from trunkline.registry.lookup import lock_version
from trunkline.registry.mapping import (
    select_versions,
    to_record,
    version_record,
    version_records,
)
from trunkline.registry.records import StoredVersion, VersionRecord
from trunkline.registry.session import PAGE, Aggregate, pages
from trunkline.registry.tables import Adapter, Version

LEASE = timedelta(hours=1)
"""How long a reservation by another host is valid."""

PATH_TAKEN = "the path holds files of another registry"
"""The reason of a version that was abandoned because its path in the store was taken. The files
there do not belong to it."""


def reservation_expired(
    reserved_by: Mapping[str, Any] | None, reserved: datetime, now: datetime
) -> bool:
    """Whether the process that holds a reservation can no longer publish.

    Args:
        reserved_by: from :func:`trunkline.registry.actors.current_process`.
        reserved, now: aware.
    """
    if reserved_by is None or reserved_by.get("host") != socket.gethostname():
        return now - reserved > LEASE
    pid = reserved_by.get("pid")
    if not isinstance(pid, int) or not process_is_alive(pid):
        return True
    started = process_start(pid)
    return started is not None and started != reserved_by.get("started")


class Artifacts(Aggregate):
    """Lists the rows of versions, whatever their status, and records their files."""

    def list_pending(self, *, after: int = 0, limit: int = PAGE) -> list[StoredVersion]:
        """Numbers that are reserved and not published, in the order of their reservation."""
        query = _select_stored().where(Version.status == "pending", Version.id > after)
        with self._sessions.read() as session:
            rows = session.execute(query.order_by(Version.id).limit(limit))
            return [_stored_record(row) for row in rows]

    def iter_visible(self, *, page: int = PAGE) -> Iterator[VersionRecord]:
        """The visible versions of all adapters, in the order of their reservation."""
        after = 0
        while True:
            query = select_versions().where(Version.id > after).order_by(Version.id).limit(page)
            with self._sessions.read() as session:
                rows = session.execute(query).all()
                records = version_records(session, rows)
                after = rows[-1][0].id if rows else after
            yield from records
            if len(rows) < page:
                return

    def count(self) -> int:
        """How many versions are visible."""
        query = select(func.count(Version.id)).where(Version.status == "visible")
        with self._sessions.read() as session:
            return session.scalar(query) or 0

    def find(
        self, numbers: Collection[tuple[str, str, int]]
    ) -> dict[tuple[str, str, int], StoredVersion]:
        """The rows of versions by domain, name and number; unknown ones are left out."""
        names = {(domain, name) for domain, name, _ in numbers}
        stored: dict[tuple[str, str, int], StoredVersion] = {}
        with self._sessions.read() as session:
            for page in pages(sorted(names)):
                wanted = {key[2] for key in numbers if key[:2] in page}
                query = _select_stored().where(
                    tuple_(Adapter.domain, Adapter.name).in_(page), Version.number.in_(wanted)
                )
                for record in map(_stored_record, session.execute(query)):
                    stored[record.domain, record.name, record.number] = record
        return {key: stored[key] for key in numbers if key in stored}

    def visible_digests(self, digests: Collection[str]) -> set[str]:
        """Those of the digests that a visible version has."""
        visible: set[str] = set()
        with self._sessions.read() as session:
            for page in pages(sorted(digests)):
                query = select(Version.digest).where(
                    Version.digest.in_(page), Version.status == "visible"
                )
                visible.update(digest for digest in session.scalars(query) if digest)
        return visible

    def record_file(
        self, ref: Ref, name: str, *, bytes: int, sha256: str, written: bool = True
    ) -> VersionRecord:
        """Record the new state of a file outside the identity of a visible version.

        Args:
            written: False before the file is written: the old state stays valid until then.

        Raises:
            NotFoundError: ``ref`` resolves to no visible version.
        """
        with self._sessions.write() as session:
            version = lock_version(session, ref)
            files = dict(version.files or {})
            old = files.get(name, {"bytes": 0, "sha256": ""})
            new = {"bytes": bytes, "sha256": sha256}
            if written:
                files[name] = new
                version.bytes = (version.bytes or 0) - old["bytes"] + bytes
            else:
                files[name] = {"bytes": old["bytes"], "sha256": old["sha256"], "next": new}
            version.files = files
            session.flush()
            return version_record(session, version)


def _select_stored() -> Select[Version, str, str]:
    return select(Version, Adapter.domain, Adapter.name).join(
        Adapter, Adapter.id == Version.adapter_id
    )


def _stored_record(row: Row[Version, str, str]) -> StoredVersion:
    version, domain, name = row
    return to_record(
        StoredVersion,
        version,
        domain=domain,
        name=name,
        reserved=version.created,
        reserved_by=version.reserved_by if version.status == "pending" else None,
    )

"""Taking versions away, and what upkeep asks: what is reserved, kept, removed, running.

Owns: the way from visible to removed, and the pages that a walk over the whole store reads.
Must not know: files; :mod:`trunkline.adapters.gc` takes them away after the row is invisible.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from sqlalchemy import Row, Select, func, select, tuple_

from trunkline.refs import Ref
from trunkline.registry.lookup import (
    version_records,
    visible_versions,
)
from trunkline.registry.records import StoredVersion, VersionRecord
from trunkline.registry.session import PAGE, Aggregate, pages
from trunkline.registry.tables import Adapter, Version
from trunkline.registry.versions import locked_version


class Artifacts(Aggregate):
    """Lists the rows of versions, whatever their status, and records their files."""

    def list_pending(self, *, after: int = 0, limit: int = PAGE) -> list[StoredVersion]:
        """Numbers that are reserved and not published, in the order in which they were given."""
        query = _stored().where(Version.status == "pending", Version.id > after)
        with self._sessions.read() as session:
            rows = session.execute(query.order_by(Version.id).limit(limit))
            return [_stored_record(row) for row in rows]

    def iter_visible(self) -> Iterator[VersionRecord]:
        """The visible versions of all adapters, in the order of their reservation, by pages."""
        after = 0
        while True:
            query = visible_versions().where(Version.id > after).order_by(Version.id).limit(PAGE)
            with self._sessions.read() as session:
                rows = session.execute(query).all()
                records = version_records(session, rows)
                after = rows[-1][0].id if rows else after
            yield from records
            if len(rows) < PAGE:
                return

    def count(self) -> int:
        """How many versions are visible."""
        query = select(func.count(Version.id)).where(Version.status == "visible")
        with self._sessions.read() as session:
            return session.scalar(query) or 0

    def find(
        self, numbers: Collection[tuple[str, str, int]]
    ) -> dict[tuple[str, str, int], StoredVersion]:
        """What is known of versions, by domain, name and number; unknown ones are left out."""
        names = {(domain, name) for domain, name, _ in numbers}
        found: dict[tuple[str, str, int], StoredVersion] = {}
        with self._sessions.read() as session:
            for page in pages(sorted(names)):
                wanted = {one[2] for one in numbers if one[:2] in page}
                query = _stored().where(
                    tuple_(Adapter.domain, Adapter.name).in_(page), Version.number.in_(wanted)
                )
                for one in map(_stored_record, session.execute(query)):
                    found[one.domain, one.name, one.number] = one
        return {key: found[key] for key in numbers if key in found}

    def visible_digests(self, digests: Collection[str]) -> set[str]:
        """Those of the digests that a visible version has."""
        found: set[str] = set()
        with self._sessions.read() as session:
            for page in pages(sorted(digests)):
                query = select(Version.digest).where(
                    Version.digest.in_(page), Version.status == "visible"
                )
                found.update(digest for digest in session.scalars(query) if digest)
        return found

    def record_file(
        self, ref: Ref, name: str, *, bytes: int, sha256: str, written: bool = True
    ) -> VersionRecord:
        """Keep what a file of a visible version is now; for those outside of its identity.

        Args:
            written: False before it is written: until then, what it was stands beside it.

        Raises:
            NotFoundError: no visible version answers ``ref``.
        """
        with self._sessions.write() as session:
            version = locked_version(session, ref)
            files = dict(version.files or {})
            was = files.get(name, {"bytes": 0, "sha256": ""})
            new = {"bytes": bytes, "sha256": sha256}
            if written:
                files[name] = new
                version.bytes = (version.bytes or 0) - was["bytes"] + bytes
            else:
                files[name] = {"bytes": was["bytes"], "sha256": was["sha256"], "next": new}
            version.files = files
            session.flush()
            row = session.execute(visible_versions().where(Version.id == version.id)).one()
            return version_records(session, [row])[0]


def _stored() -> Select[Version, str, str]:
    return select(Version, Adapter.domain, Adapter.name).join(
        Adapter, Adapter.id == Version.adapter_id
    )


def _stored_record(row: Row[Version, str, str]) -> StoredVersion:
    version, domain, name = row
    pending = version.status == "pending"
    return StoredVersion(
        id=version.id,
        domain=domain,
        name=name,
        number=version.number,
        status=version.status,
        digest=version.digest,
        path=version.path,
        reserved=version.created,
        removal=version.removal,
        publisher=version.publisher if pending else None,
    )

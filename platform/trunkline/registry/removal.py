"""Taking versions away, and what upkeep asks: what is reserved, kept, removed, running.

Owns: the way from visible to removed, and the pages that a walk over the whole store reads.
Must not know: files; :mod:`trunkline.adapters.upkeep` takes them away after the row is invisible.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeVar

from sqlalchemy import Row, Select, func, select, tuple_
from sqlalchemy.orm import Session

from trunkline.errors import NotFoundError, RefusedError, UsageError
from trunkline.refs import Ref
from trunkline.registry.database import Database, add_event, utc_now
from trunkline.registry.lookup import (
    find_adapter,
    find_version,
    version_records,
    visible_versions,
)
from trunkline.registry.records import StoredVersion, VersionRecord
from trunkline.registry.tables import Adapter, Run, Version
from trunkline.registry.tags import check_reason

Key = TypeVar("Key")

PAGE = 500
"""So many rows are asked for at a time."""


class Removal(Database):
    """Removes versions, and answers what the upkeep of a store asks."""

    def remove_version(
        self,
        ref: Ref,
        *,
        reason: str,
        actor: str | None = None,
        held: Mapping[str, Sequence[str]] | None = None,
    ) -> VersionRecord:
        """Make a visible version a tombstone: its row and lineage stay, nothing resolves to it.

        Args:
            ref: with a number or a digest, so that it is clear which is meant.
            reason: kept for good.
            held: digest → the running servers that hold it, from :meth:`Deployments.holders`.

        Raises:
            UsageError: no reason, or a ref that names no one version for good.
            NotFoundError: no visible version answers it.
            RefusedError: an alias or a running server holds it; nothing was changed.
        """
        if ref.number is None and ref.digest is None:
            raise UsageError(
                f"'{ref}' does not say for good which version is meant.",
                f"Write its number, as in {ref.adapter}@3; "
                f"`trunkline adapters show {ref.adapter}` lists them.",
            )
        if not (reason := check_reason(reason)):
            raise UsageError("A removal needs a reason.", 'Add --reason "…"; it is kept.')
        with self._write() as session:
            version = _locked(session, ref)
            row = session.execute(visible_versions().where(Version.id == version.id)).one()
            record = version_records(session, [row])[0]
            _check_free(record, held or {})
            version.status = "removed"
            version.removed, version.removal = utc_now(), reason
            detail = {
                "number": record.number,
                "digest": record.digest,
                "run": record.run,
                "reason": reason.strip(),
            }
            add_event(session, actor, "version.removed", ref.adapter, detail)
            return record

    def pending_versions(self, *, after: int = 0, limit: int = PAGE) -> list[StoredVersion]:
        """Numbers that are reserved and not published, in the order in which they were given."""
        query = _stored().where(Version.status == "pending", Version.id > after)
        with self._read() as session:
            rows = session.execute(query.order_by(Version.id).limit(limit))
            return [_stored_record(row) for row in rows]

    def every_version(self) -> Iterator[VersionRecord]:
        """The visible versions of all adapters, in the order of their reservation, by pages."""
        after = 0
        while True:
            query = visible_versions().where(Version.id > after).order_by(Version.id).limit(PAGE)
            with self._read() as session:
                rows = session.execute(query).all()
                records = version_records(session, rows)
                after = rows[-1][0].id if rows else after
            yield from records
            if len(rows) < PAGE:
                return

    def count_versions(self) -> int:
        """How many versions are visible."""
        query = select(func.count(Version.id)).where(Version.status == "visible")
        with self._read() as session:
            return session.scalar(query) or 0

    def stored_versions(
        self, numbers: Collection[tuple[str, str, int]]
    ) -> dict[tuple[str, str, int], StoredVersion]:
        """What is known of versions, by domain, name and number; unknown ones are left out."""
        names = {(domain, name) for domain, name, _ in numbers}
        found: dict[tuple[str, str, int], StoredVersion] = {}
        with self._read() as session:
            for page in _pages(sorted(names)):
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
        with self._read() as session:
            for page in _pages(sorted(digests)):
                query = select(Version.digest).where(
                    Version.digest.in_(page), Version.status == "visible"
                )
                found.update(digest for digest in session.scalars(query) if digest)
        return found

    def run_statuses(self, numbers: Collection[int]) -> dict[int, str]:
        """The status of runs by number; unknown ones are left out."""
        found: dict[int, str] = {}
        with self._read() as session:
            for page in _pages(sorted(numbers)):
                query = select(Run.id, Run.status).where(Run.id.in_(page))
                found.update((number, status) for number, status in session.execute(query))
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
        with self._write() as session:
            version = _locked(session, ref)
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


def _locked(session: Session, ref: Ref) -> Version:
    """The visible version that answers ``ref``; no alias of the adapter moves meanwhile."""
    find_adapter(session, ref, lock=True, gone=True)
    found = find_version(session, ref)[0][0]
    version = session.get_one(Version, found.id, with_for_update=True, populate_existing=True)
    if version.status != "visible":
        raise NotFoundError(
            f"There is no version '{ref}' any more.",
            f"See those that are left with: trunkline adapters show {ref.adapter}.",
        )
    return version


def _check_free(record: VersionRecord, held: Mapping[str, Sequence[str]]) -> None:
    if aliases := record.aliases:
        names = _and([f"'{alias}'" for alias in aliases])
        drop = _and([f"`trunkline adapters unalias {record.ref.adapter} {one}`" for one in aliases])
        one = len(aliases) == 1
        raise RefusedError(
            f"'{record.ref}' can't be removed: the "
            f"{'alias' if one else 'aliases'} {names} point{'s' if one else ''} at it.",
            f"Move {'it' if one else 'each'} with `trunkline adapters promote` or `trunkline "
            f"adapters rollback`, or drop {'it' if one else 'them'} with {drop}.",
        )
    if servers := held.get(record.digest):
        raise RefusedError(
            f"'{record.ref}' can't be removed: the running {servers[0]} holds it in memory.",
            "Stop that server, or let it unload the version: POST /admin/unload.",
        )


def _and(parts: Sequence[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def _pages(keys: Sequence[Key]) -> Iterator[Sequence[Key]]:
    for begin in range(0, len(keys), PAGE):
        yield keys[begin : begin + PAGE]

"""Adapters and their versions: reserve, publish, abandon, remove, resolve, list and search.

A number is reserved in one transaction and published in another. Nobody sees a version in between,
and a number that was reserved is never reused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import exists, select, tuple_, update
from sqlalchemy.orm import Session

from trunkline.errors import RefusedError, RegistryError, UsageError
from trunkline.refs import Ref, check_digest, shown
from trunkline.registry.actors import current_process
from trunkline.registry.chain import add_event
from trunkline.registry.free_text import stored_reason
from trunkline.registry.lookup import (
    clamp,
    find_adapter,
    find_base_id,
    find_version_row,
    lock_version,
    run_subject,
)
from trunkline.registry.mapping import (
    HAS_VISIBLE_VERSION,
    adapter_records,
    select_adapters,
    select_versions,
    version_record,
    version_records,
)
from trunkline.registry.records import AdapterRecord, Facets, VersionRecord
from trunkline.registry.runs import RUN_IMPORTED, adopt_evaluations, discard_imported_run
from trunkline.registry.scope import Scope, covered_adapters
from trunkline.registry.search import Page, find_removed, find_versions
from trunkline.registry.session import Aggregate, find_or_add
from trunkline.registry.tables import Adapter, Base, Event, Run, Version, VersionParent, utc_now

_PART = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+"
_RELATIVE_PATH = re.compile(rf"{_PART}(?:/{_PART})*", re.ASCII)

_PUBLISHING = ("version.published", "version.imported")
_MAX_CONTRIBUTORS = 100


class Versions(Aggregate):
    """Publishes, resolves, lists and removes versions."""

    def reserve(self, domain: str, name: str, *, task: str, run: int | None = None) -> int:
        """Reserve the next number of an adapter; it is invisible until it is published.

        The row stores which process reserved it, so that garbage collection can tell when that
        process has ended.

        Raises:
            RefusedError: the adapter exists and is for another task.
        """
        with self._sessions.write() as session:
            return reserve(session, Ref(domain, name), task, run)

    def publish(
        self,
        domain: str,
        name: str,
        number: int,
        *,
        digest: str,
        path: str,
        bytes: int,
        base_digest: str | None = None,
        dataset_id: int | None = None,
        files: Mapping[str, Any] | None = None,
        template_digest: str | None = None,
        actor: str | None = None,
        imported: Mapping[str, Any] | None = None,
        merge: Mapping[str, Any] | None = None,
    ) -> VersionRecord:
        """Make a reserved version visible, once its files are in place.

        Evaluations that its run recorded before become the version's.

        Args:
            digest: ``sha256:`` with 64 hex digits.
            path: of the folder, relative to ``adapters/``, with forward slashes.
            bytes: total size of the files.
            base_digest, dataset_id: by default those of the version's run.
            files: file name → ``{"bytes", "sha256"}``.
            template_digest: sha256 of the prompt template, in hex.
            imported: where an imported version comes from; recorded as an event of its own in the
                same transaction.
            merge: of a merged version, see :class:`~trunkline.adapters.provenance.MergeSection`.

        Raises:
            RegistryError: the number is not reserved.
            NotFoundError: the base was not recorded.
        """
        check_digest(digest)
        if not _RELATIVE_PATH.fullmatch(path):
            raise UsageError(
                f"{shown(path)} is not a path below adapters/.",
                f"Write it relative and with forward slashes: {domain}/{name}/{number}.",
            )
        with self._sessions.write() as session:
            version = _pending(session, Ref(domain, name, str(number)))
            run = None if version.run_id is None else session.get_one(Run, version.run_id)
            if base_digest is None and run is None:
                raise RegistryError(
                    f"The version '{domain}/{name}@{number}' has neither a run nor a base.",
                    "Pass the digest of its base.",
                )
            if base_digest is not None:
                version.base_id = find_base_id(session, base_digest)
            elif run is not None:
                version.base_id = run.base_id
            version.dataset_id = dataset_id or (run.dataset_id if run else None)
            version.status = "visible"
            version.digest, version.path, version.bytes = digest, path, bytes
            version.files = None if files is None else dict(files)
            version.template_digest = template_digest
            version.reserved_by = None
            version.created = utc_now()
            if run is not None:
                adopt_evaluations(session, run.id, version.id)
            detail: dict[str, Any] = {"number": number, "digest": digest, "run": version.run_id}
            if imported is not None:
                detail["imported"] = dict(imported)
            if merge is not None:
                add_merge(session, version, merge)
                detail["merge"] = dict(merge)
            add_event(session, actor, "version.published", f"{domain}/{name}", detail)
            if imported is not None:
                detail = {**imported, "number": number, "digest": digest}
                add_event(session, actor, "version.imported", f"{domain}/{name}", detail)
            session.flush()
            return version_record(session, version)

    def abandon(
        self,
        domain: str,
        name: str,
        number: int,
        *,
        reason: str | None = None,
        actor: str | None = None,
    ) -> None:
        """Mark a reserved version as failed; its number stays used.

        A run that was imported for this version alone is deleted.

        Raises:
            RegistryError: the number is not reserved.
        """
        with self._sessions.write() as session:
            version = _pending(session, Ref(domain, name, str(number)))
            version.status = "failed"
            version.reserved_by, version.removal_reason = None, reason
            detail: dict[str, Any] = {"number": number, "run": version.run_id}
            if reason is not None:
                detail["reason"] = reason
            add_event(session, actor, "version.abandoned", f"{domain}/{name}", detail)
            if version.run_id is not None:
                session.flush()
                discard_imported_run(session, version.run_id, actor)

    def remove(
        self,
        ref: Ref,
        *,
        reason: str,
        actor: str | None = None,
        held: Mapping[str, Sequence[str]] | None = None,
    ) -> VersionRecord:
        """Make a visible version a tombstone: its row and lineage stay, but no ref resolves to it.

        Args:
            ref: with a number or a digest, so that it names one version for good.
            reason: stored for good.
            held: digest → the running servers that hold it, from :meth:`Servers.holders`.

        Raises:
            UsageError: the reason is missing, or the ref has neither a number nor a digest.
            NotFoundError: ``ref`` resolves to no visible version.
            RefusedError: an alias points at it, a running server holds it, or a fusion needs it;
                nothing was changed.
        """
        if ref.number is None and ref.digest is None:
            raise UsageError(
                f"'{ref}' may name another version tomorrow.",
                f"Write the version's number, as in {ref.adapter}@3; "
                f"`trunkline adapters show {ref.adapter}` lists them.",
            )
        if not (reason := stored_reason(reason)):
            raise UsageError("A removal needs a reason.", 'Add --reason "…"; it is stored.')
        with self._sessions.write() as session:
            version = lock_version(session, ref)
            record = version_record(session, version)
            _check_unused(record, held or {})
            _check_no_fusion(session, record)
            version.status = "removed"
            version.removed, version.removal_reason = utc_now(), reason
            detail = {
                "number": record.number,
                "digest": record.digest,
                "run": record.run,
                "reason": reason,
            }
            add_event(session, actor, "version.removed", ref.adapter, detail)
            return record

    def resolve(self, ref: Ref, *, suggest: bool = True) -> tuple[VersionRecord, str]:
        """The visible version that ``ref`` names, and by what.

        The latter is ``number``, ``alias`` or ``digest``, or, without a selector, ``champion`` or
        ``newest``.

        Args:
            suggest: whether the error for an unknown adapter proposes the nearest name.

        Raises:
            NotFoundError: no visible version.
        """
        with self._sessions.read() as session:
            row, how = find_version_row(session, ref, suggest=suggest)
            return version_records(session, [row])[0], how

    def list(
        self,
        domain: str,
        name: str,
        *,
        limit: int = 100,
        before: int | None = None,
        scored: bool = False,
    ) -> Sequence[VersionRecord]:
        """The visible versions of an adapter, newest first.

        Args:
            before: only lower numbers, for the next page.
            scored: whether to add the score of each.

        Raises:
            NotFoundError: it has none.
        """
        with self._sessions.read() as session:
            adapter = find_adapter(session, Ref(domain, name))
            query = (
                select_versions()
                .where(Version.adapter_id == adapter.id)
                .order_by(Version.number.desc())
                .limit(limit)
            )
            if before is not None:
                query = query.where(Version.number < clamp(before))
            return version_records(session, session.execute(query).all(), scored=scored)

    def list_for_base(
        self, adapters: Sequence[Ref], *, base_digest: str, limit: int
    ) -> Mapping[Ref, Sequence[VersionRecord]]:
        """The visible versions of several adapters for one base, in two queries.

        Args:
            adapters: without selectors, a page of them at most.
            limit: of all versions together; :attr:`AdapterRecord.versions` is an upper bound.

        Returns:
            Adapter → its versions, newest first; one that has none for this base is left out.
        """
        names = [(adapter.domain, adapter.name) for adapter in adapters]
        query = (
            select_versions()
            .where(tuple_(Adapter.domain, Adapter.name).in_(names), Base.digest == base_digest)
            .order_by(Adapter.domain, Adapter.name, Version.number.desc())
            .limit(limit)
        )
        versions: dict[Ref, list[VersionRecord]] = {}
        with self._sessions.read() as session:
            for version in version_records(session, session.execute(query).all()):
                versions.setdefault(Ref(version.domain, version.name), []).append(version)
        return versions

    def search(
        self, where: str, *, limit: int = 100, after: Ref | None = None, scope: Scope = None
    ) -> Page:
        """The visible versions that match a search, newest first.

        Args:
            where: such as ``domain=NAME and test.accuracy>0.85``; see
                :mod:`trunkline.registry.search_syntax` for the grammar.
            after: the ``next`` of the page before; any version will do, even a removed one.
            scope: only versions of adapters that these patterns cover.

        Raises:
            UsageError: the search has a syntax error; the message has its position.
            NotFoundError: ``after`` names no version.
        """
        with self._sessions.read() as session:
            return find_versions(session, where, limit, after, scope)

    def list_removed(self, *, limit: int = 100, after: Ref | None = None) -> Page:
        """The tombstones of removed versions, those that were published last first.

        Raises:
            NotFoundError: ``after`` names no version.
        """
        with self._sessions.read() as session:
            return find_removed(session, limit, after)

    def contributors(self, version: VersionRecord) -> Sequence[str]:
        """The actors who started or resumed the version's run, published it or imported it.

        For an imported run, also the actor who started it elsewhere, according to its provenance;
        for a merged version, also those of its parents.
        """
        published = select(Event.actor).where(
            Event.subject.in_((version.ref.adapter, str(version.ref))),
            Event.kind.in_(_PUBLISHING),
            (Event.subject == str(version.ref))
            | (Event.detail["number"].as_integer() == version.number),
        )
        queries = [published]
        if version.run is not None:
            of_run = Event.subject == run_subject(version.run)
            ran = Event.kind.in_(("run.started", "run.resumed"))
            elsewhere = Event.detail["started_by"].as_string()
            imported = (Event.kind == RUN_IMPORTED, elsewhere.is_not(None))
            queries.append(select(Event.actor).where(of_run, ran))
            queries.append(select(elsewhere).where(of_run, *imported))
        with self._sessions.read() as session:
            actors = [session.scalars(query.limit(_MAX_CONTRIBUTORS)).all() for query in queries]
        merged = version.merge.parents if version.merge else ()
        actors += [
            self.contributors(parent) for one in merged if (parent := self.of_digest(one.digest))
        ]
        return sorted({actor for some in actors for actor in some})

    def of_digest(self, digest: str) -> VersionRecord | None:
        """A version with this digest: a visible one, else a removed one; None without any."""
        query = (
            select_versions(removed=True)
            .where(Version.digest == digest)
            .order_by(Version.status.desc(), Version.id.desc())
        )
        with self._sessions.read() as session:
            row = session.execute(query.limit(1)).first()
            return None if row is None else version_records(session, [row])[0]

    def trained(self, version: VersionRecord) -> VersionRecord | None:
        """The version if a run trained it; else the first such parent of a merged one, or None."""
        if version.run is not None:
            return version
        for one in version.merge.parents if version.merge else ():
            parent = self.of_digest(one.digest)
            if parent is not None and (trained := self.trained(parent)) is not None:
                return trained
        return None


class Adapters(Aggregate):
    """Lists adapters."""

    def list(
        self,
        *,
        domain: str | None = None,
        limit: int = 100,
        after: Ref | None = None,
        scored: bool = False,
        scope: Scope = None,
    ) -> Sequence[AdapterRecord]:
        """The adapters that have a visible version, by name.

        Args:
            after: the last one of the page before, whether or not it still exists.
            scored: whether to add the score of each newest version.
            scope: only adapters that these patterns cover.
        """
        query = select_adapters().order_by(Adapter.domain, Adapter.name).limit(limit)
        query = query.where(*covered_adapters(scope))
        if domain is not None:
            query = query.where(Adapter.domain == domain)
        if after is not None:
            follows = tuple_(Adapter.domain, Adapter.name) > tuple_(after.domain, after.name)
            query = query.where(follows)
        with self._sessions.read() as session:
            return adapter_records(session, session.execute(query).all(), scored=scored)

    def facets(self, *, scope: Scope = None, limit: int = 50) -> Facets:
        """The domains, tasks, bases and modalities of the listed adapters, each list sorted.

        Args:
            scope: only adapters that these patterns cover.
            limit: of each list.
        """
        covered = covered_adapters(scope)
        listed = HAS_VISIBLE_VERSION, *covered
        domains = select(Adapter.domain).where(*listed).distinct().order_by(Adapter.domain)
        tasks = select(Adapter.task).where(*listed).distinct().order_by(Adapter.task)
        used = exists().where(Version.base_id == Base.id, Version.status == "visible")
        if covered:
            used = used.where(Version.adapter_id == Adapter.id, *covered)
        bases = select(Base.name).where(used).distinct().order_by(Base.name)
        modalities = select(Base.modality).where(used).distinct().order_by(Base.modality)
        queries = (domains, tasks, bases, modalities)
        with self._sessions.read() as session:
            return Facets(*(tuple(session.scalars(query.limit(limit))) for query in queries))

    def get(self, domain: str, name: str) -> AdapterRecord:
        """One adapter.

        Raises:
            NotFoundError: it has no visible version.
        """
        with self._sessions.read() as session:
            adapter = find_adapter(session, Ref(domain, name))
            query = select_adapters().where(Adapter.id == adapter.id)
            return adapter_records(session, session.execute(query).all())[0]


def reserve(session: Session, ref: Ref, task: str, run: int | None) -> int:
    """Reserve the next number of an adapter; see :meth:`Versions.reserve`."""
    adapter = find_or_add(
        session,
        Adapter(domain=ref.domain, name=ref.name, task=task, last_number=0),
        Adapter.domain == ref.domain,
        Adapter.name == ref.name,
    )
    if adapter.task != task:
        raise RefusedError(
            f"The adapter '{ref}' is for {adapter.task}, not for {task}.",
            "Give the recipe another name.",
        )
    number = session.execute(
        update(Adapter)
        .where(Adapter.id == adapter.id)
        .values(last_number=Adapter.last_number + 1)
        .returning(Adapter.last_number)
    ).scalar_one()
    session.add(
        Version(
            adapter_id=adapter.id,
            number=number,
            status="pending",
            run_id=run,
            created=utc_now(),
            reserved_by=current_process(),
        )
    )
    return number


def add_merge(session: Session, version: Version, merge: Mapping[str, Any]) -> None:
    """Record how a version was merged, with its parents."""
    version.merge = {name: merge[name] for name in ("method", "density", "seed")}
    session.add_all(
        VersionParent(version_id=version.id, position=position, **parent)
        for position, parent in enumerate(merge["parents"])
    )


def _pending(session: Session, ref: Ref) -> Version:
    version = session.scalar(
        select(Version)
        .join(Adapter, Adapter.id == Version.adapter_id)
        .where(
            Adapter.domain == ref.domain,
            Adapter.name == ref.name,
            Version.number == ref.number,
            Version.status == "pending",
        )
        .with_for_update()
    )
    if version is None:
        raise RegistryError(
            f"The version '{ref}' is not reserved, or was published or abandoned already.",
            "Reserve a number first.",
        )
    return version


def _check_unused(record: VersionRecord, held: Mapping[str, Sequence[str]]) -> None:
    """Refuse a version that an alias points at or a running server holds."""
    if aliases := record.aliases:
        names = _enumerate([f"'{alias}'" for alias in aliases])
        drop = _enumerate(
            [f"`trunkline adapters unalias {record.ref.adapter} {alias}`" for alias in aliases]
        )
        single = len(aliases) == 1
        raise RefusedError(
            f"'{record.ref}' can't be removed: the "
            f"{'alias' if single else 'aliases'} {names} point{'s' if single else ''} at it.",
            f"Move {'it' if single else 'each'} with `trunkline adapters promote` or `trunkline "
            f"adapters rollback`, or drop {'it' if single else 'them'} with {drop}.",
        )
    if servers := held.get(record.digest):
        raise RefusedError(
            f"'{record.ref}' can't be removed: the running {servers[0]} holds it in memory.",
            "Stop that server, or unload the version from it: POST /admin/unload.",
        )


def _check_no_fusion(session: Session, record: VersionRecord) -> None:
    """Refuse the last version of an artifact that a visible fusion answers with."""
    others = select_versions().where(Version.digest == record.digest)
    if len(session.execute(others.limit(2)).all()) > 1:
        return
    children = select(VersionParent.version_id).where(VersionParent.digest == record.digest)
    query = select_versions().where(Version.id.in_(children), Base.modality == "text+image")
    if (row := session.execute(query.limit(1)).first()) is not None:
        fused = version_records(session, [row])[0].ref
        raise RefusedError(
            f"'{record.ref}' can't be removed: the fusion {fused} answers with it.",
            f"Remove {fused} first: `trunkline adapters rm {fused}`.",
        )


def _enumerate(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last

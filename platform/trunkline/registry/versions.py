"""Adapters and their versions: giving out numbers, publishing, resolving refs.

Owns: the states of a version.
Must not know: the artifact's files; the store writes them between reserving and publishing.

A number is reserved in one transaction and made visible in another. What is in between is seen
by nobody, and a number that was given out is never given out again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select, tuple_, update
from sqlalchemy.orm import Session

from trunkline.errors import NotFoundError, RefusedError, RegistryError, UsageError
from trunkline.refs import Ref, check_digest, shown
from trunkline.registry import finding
from trunkline.registry.evaluations import keep_scores
from trunkline.registry.lookup import (
    adapter_records,
    find_adapter,
    find_version,
    version_records,
    visible_adapters,
    visible_versions,
)
from trunkline.registry.origins import provenance_of_version
from trunkline.registry.publisher import this_process
from trunkline.registry.records import AdapterRecord, RestoredLineage, VersionRecord
from trunkline.registry.restoring import restore_lineage
from trunkline.registry.runs import take_back_restored
from trunkline.registry.session import RESTORED, Aggregate, add_event, find_or_add, utc_now
from trunkline.registry.sources import base_id
from trunkline.registry.tables import Adapter, Base, Evaluation, Event, Run, Version
from trunkline.registry.tags import check_reason

_PART = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+"
_RELATIVE_PATH = re.compile(rf"{_PART}(?:/{_PART})*", re.ASCII)

_LAST = 2**31 - 1
_PUBLISHING = ("version.published", "adapter.imported")
_MOST_CONTRIBUTORS = 100


class Versions(Aggregate):
    """Publishes versions and answers refs."""

    def reserve(self, domain: str, name: str, *, task: str, run: int | None = None) -> int:
        """Take the next number of an adapter, which nobody sees until it is published.

        The row keeps which process publishes, so that upkeep can tell when it has gone.

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
    ) -> VersionRecord:
        """Make a reserved version visible, its files being in place.

        Args:
            digest: ``sha256:`` with 64 hex digits.
            path: of the folder, relative to ``adapters/``, with forward slashes.
            bytes: size of the files together.
            base_digest, dataset_id: those of the version's run if not given.
            files: file name → ``{"bytes", "sha256"}``.
            template_digest: sha256 of the prompt template, in hex.
            imported: where a version that was not made here comes from; told in an event of its
                own, in the same transaction.

        Evaluations that the run recorded before are the version's from now on.

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
                    "Say which base it was made on.",
                )
            if base_digest is not None:
                version.base_id = base_id(session, base_digest)
            elif run is not None:
                version.base_id = run.base_id
            version.dataset_id = dataset_id or (run.dataset_id if run else None)
            version.status = "visible"
            version.digest, version.path, version.bytes = digest, path, bytes
            version.files = None if files is None else dict(files)
            version.template_digest = template_digest
            version.publisher = None
            version.created = utc_now()
            if run is not None:
                evaluated = session.scalars(
                    select(Evaluation)
                    .where(Evaluation.run_id == run.id, Evaluation.version_id.is_(None))
                    .order_by(Evaluation.id)
                )
                for evaluation in evaluated:
                    evaluation.version_id = version.id
                    keep_scores(session, evaluation)
            told: dict[str, Any] = {"number": number, "digest": digest, "run": version.run_id}
            if imported is not None:
                told["imported"] = dict(imported)
            add_event(session, actor, "version.published", f"{domain}/{name}", told)
            if imported is not None:
                came = {**imported, "number": number, "digest": digest}
                add_event(session, actor, "adapter.imported", f"{domain}/{name}", came)
            session.flush()
            row = session.execute(visible_versions().where(Version.id == version.id)).one()
            return version_records(session, [row])[0]

    def abandon(
        self,
        domain: str,
        name: str,
        number: int,
        *,
        reason: str | None = None,
        actor: str | None = None,
    ) -> None:
        """Mark a reserved version as failed, for a ``reason``; its number stays used.

        A run that was restored for this version alone is taken back.

        Raises:
            RegistryError: the number is not reserved.
        """
        with self._sessions.write() as session:
            version = _pending(session, Ref(domain, name, str(number)))
            version.status = "failed"
            version.publisher, version.removal = None, reason
            detail: dict[str, Any] = {"number": number, "run": version.run_id}
            if reason is not None:
                detail["reason"] = reason
            add_event(session, actor, "version.abandoned", f"{domain}/{name}", detail)
            if version.run_id is not None:
                session.flush()
                take_back_restored(session, version.run_id, actor)

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
            scored: whether the standing of each is wanted.

        Raises:
            NotFoundError: it has none.
        """
        with self._sessions.read() as session:
            adapter = find_adapter(session, Ref(domain, name))
            query = (
                visible_versions()
                .where(Version.adapter_id == adapter.id)
                .order_by(Version.number.desc())
                .limit(limit)
            )
            if before is not None:
                query = query.where(Version.number < max(0, min(before, _LAST)))
            return version_records(session, session.execute(query).all(), scored=scored)

    def list_for_base(
        self, adapters: Sequence[Ref], *, base_digest: str, limit: int
    ) -> Mapping[Ref, Sequence[VersionRecord]]:
        """The visible versions of several adapters that were made on one base, in two queries.

        Args:
            adapters: without selectors, a page of them at most.
            limit: of all versions together; :attr:`AdapterRecord.versions` tells how many
                there are at most.

        Returns:
            Adapter → its versions, newest first; one that has none on this base is left out.
        """
        names = [(adapter.domain, adapter.name) for adapter in adapters]
        query = (
            visible_versions()
            .where(tuple_(Adapter.domain, Adapter.name).in_(names), Base.digest == base_digest)
            .order_by(Adapter.domain, Adapter.name, Version.number.desc())
            .limit(limit)
        )
        found: dict[Ref, list[VersionRecord]] = {}
        with self._sessions.read() as session:
            for version in version_records(session, session.execute(query).all()):
                found.setdefault(Ref(version.domain, version.name), []).append(version)
        return found

    def resolve(self, ref: Ref, *, suggest: bool = True) -> tuple[VersionRecord, str]:
        """The version that answers ``ref``, and by what: ``number``, ``alias``, ``digest``, or,
        without a selector, ``champion`` or ``newest``.

        Args:
            suggest: whether an unknown adapter is worth looking for the nearest name.

        Raises:
            NotFoundError: no visible version answers it; the nearest name is given.
        """
        with self._sessions.read() as session:
            row, how = find_version(session, ref, suggest=suggest)
            return version_records(session, [row])[0], how

    def contributors(self, version: VersionRecord) -> Sequence[str]:
        """The actors who started or resumed the version's run, published it or imported it.

        Of a run that came from elsewhere, also who is said to have started it there.
        """
        published = select(Event.actor).where(
            Event.subject.in_((version.ref.adapter, str(version.ref))),
            Event.kind.in_(_PUBLISHING),
            (Event.subject == str(version.ref))
            | (Event.detail["number"].as_integer() == version.number),
        )
        queries = [published]
        if version.run is not None:
            run = Event.subject == f"run/{version.run}"
            queries.append(
                select(Event.actor).where(run, Event.kind.in_(("run.started", "run.resumed")))
            )
            there = Event.detail["started_by"].as_string()
            queries.append(select(there).where(run, Event.kind == RESTORED, there.is_not(None)))
        with self._sessions.read() as session:
            found = [session.scalars(query.limit(_MOST_CONTRIBUTORS)).all() for query in queries]
        return sorted({actor for actors in found for actor in actors})

    def search(self, where: str, *, limit: int = 100, after: Ref | None = None) -> finding.Page:
        """The visible versions that a search describes.

        Args:
            where: such as ``domain=NAME and test.accuracy>0.85``; see
                :mod:`trunkline.registry.search` for the grammar.
            after: the ``next`` of the page before; any version will do, a removed one too.

        Raises:
            UsageError: the search breaks the grammar; the message tells where.
            NotFoundError: ``after`` names no version.
        """
        with self._sessions.read() as session:
            return finding.search(session, where, limit, after)

    def list_removed(self, *, limit: int = 100, after: Ref | None = None) -> finding.Page:
        """The tombstones: versions that were removed, those that were published last first.

        Raises:
            NotFoundError: ``after`` names no version.
        """
        with self._sessions.read() as session:
            return finding.removed(session, limit, after)

    def remove(
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
            held: digest → the running servers that hold it, from :meth:`Servers.holders`.

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
        with self._sessions.write() as session:
            version = locked_version(session, ref)
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

    def reserve_imported(
        self,
        ref: Ref,
        *,
        task: str,
        provenance: Mapping[str, Any],
        actor: str | None = None,
    ) -> tuple[int, RestoredLineage]:
        """Take the next number of an adapter for a version that comes with its lineage.

        The base, dataset, plugin, run and evaluations behind it are recorded in the same
        transaction: if the version is never published, whoever gives the number up takes the run
        back as well. The run gets the next number here; its event says which it had and who
        started it. The evaluations stand under the run until
        :meth:`publish` makes them the version's own.

        Args:
            ref: of the adapter.
            task: its kind.
            provenance: in the form of ``provenance.json``, read strictly before.
            actor: who brings it.
        """
        with self._sessions.write() as session:
            made = restore_lineage(session, provenance, actor)
            return reserve(session, ref, task, made.run), made

    def provenance(self, ref: Ref) -> dict[str, Any]:
        """``base``, ``dataset``, ``run`` and ``evaluations`` of a version, as JSON has them.

        Raises:
            NotFoundError: no visible version answers ``ref``.
        """
        with self._sessions.read() as session:
            return provenance_of_version(session, find_version(session, ref)[0])


class Adapters(Aggregate):
    """Lists adapters."""

    def list(
        self,
        *,
        domain: str | None = None,
        limit: int = 100,
        after: Ref | None = None,
        scored: bool = False,
    ) -> Sequence[AdapterRecord]:
        """The adapters that have a visible version, by name.

        Args:
            after: the last one of the page before, whether or not it is there any more.
            scored: whether the standing of each newest version is wanted.
        """
        query = visible_adapters().order_by(Adapter.domain, Adapter.name).limit(limit)
        if domain is not None:
            query = query.where(Adapter.domain == domain)
        if after is not None:
            behind = tuple_(Adapter.domain, Adapter.name) > tuple_(after.domain, after.name)
            query = query.where(behind)
        with self._sessions.read() as session:
            return adapter_records(session, session.execute(query).all(), scored=scored)

    def get(self, domain: str, name: str) -> AdapterRecord:
        """One adapter.

        Raises:
            NotFoundError: it has no visible version.
        """
        ref = Ref(domain, name)
        with self._sessions.read() as session:
            adapter = find_adapter(session, ref)
            query = visible_adapters().where(Adapter.id == adapter.id)
            return adapter_records(session, session.execute(query).all())[0]


def reserve(session: Session, ref: Ref, task: str, run: int | None) -> int:
    """Take the next number of an adapter; see :meth:`Versions.reserve`."""
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
            publisher=this_process(),
        )
    )
    return number


def locked_version(session: Session, ref: Ref) -> Version:
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

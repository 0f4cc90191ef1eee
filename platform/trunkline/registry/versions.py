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

from trunkline.errors import RefusedError, RegistryError, UsageError
from trunkline.refs import Ref, check_digest, shown
from trunkline.registry.database import Database, add_event, find_or_add, utc_now
from trunkline.registry.evaluations import keep_scores
from trunkline.registry.lookup import (
    adapter_records,
    find_adapter,
    find_version,
    version_records,
    visible_adapters,
    visible_versions,
)
from trunkline.registry.publisher import this_process
from trunkline.registry.records import AdapterRecord, VersionRecord
from trunkline.registry.runs import take_back_restored
from trunkline.registry.sources import base_id
from trunkline.registry.tables import Adapter, Base, Evaluation, Run, Version

_PART = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+"
_RELATIVE_PATH = re.compile(rf"{_PART}(?:/{_PART})*", re.ASCII)

_LAST = 2**31 - 1


class Versions(Database):
    """Publishes versions and answers refs."""

    def reserve_version(self, domain: str, name: str, *, task: str, run: int | None = None) -> int:
        """Take the next number of an adapter, which nobody sees until it is published.

        The row keeps which process publishes, so that upkeep can tell when it has gone.

        Raises:
            RefusedError: the adapter exists and is for another task.
        """
        with self._write() as session:
            return reserve(session, Ref(domain, name), task, run)

    def publish_version(
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
        with self._write() as session:
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

    def abandon_version(
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
        with self._write() as session:
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

    def adapters(
        self,
        *,
        domain: str | None = None,
        limit: int = 100,
        after: Ref | None = None,
        scored: bool = False,
    ) -> list[AdapterRecord]:
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
        with self._read() as session:
            return adapter_records(session, session.execute(query).all(), scored=scored)

    def adapter(self, domain: str, name: str) -> AdapterRecord:
        """One adapter.

        Raises:
            NotFoundError: it has no visible version.
        """
        ref = Ref(domain, name)
        with self._read() as session:
            adapter = find_adapter(session, ref)
            query = visible_adapters().where(Adapter.id == adapter.id)
            return adapter_records(session, session.execute(query).all())[0]

    def versions(
        self,
        domain: str,
        name: str,
        *,
        limit: int = 100,
        before: int | None = None,
        scored: bool = False,
    ) -> list[VersionRecord]:
        """The visible versions of an adapter, newest first.

        Args:
            before: only lower numbers, for the next page.
            scored: whether the standing of each is wanted.

        Raises:
            NotFoundError: it has none.
        """
        with self._read() as session:
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

    def versions_of(
        self, adapters: Sequence[Ref], *, base_digest: str, limit: int
    ) -> dict[Ref, list[VersionRecord]]:
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
        with self._read() as session:
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
        with self._read() as session:
            row, how = find_version(session, ref, suggest=suggest)
            return version_records(session, [row])[0], how


def reserve(session: Session, ref: Ref, task: str, run: int | None) -> int:
    """Take the next number of an adapter; see :meth:`Versions.reserve_version`."""
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

"""Lineage: from an answer, a version or a run back to everything that it came from.

Owns: putting together what stands behind something; :class:`Lineage` is the whole account.
Must not know: how it is printed, and the artifact's files.

Each part is bounded: of evaluations, moves, loads, events and notes there are the newest
:data:`MOST`, and ``cut`` names the parts of which there are more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from trunkline.errors import NotFoundError, UsageError
from trunkline.refs import BASE, Ref, check_digest
from trunkline.registry.alias_moves import record_of, told_moves
from trunkline.registry.evaluations import Evaluations
from trunkline.registry.events import Events, is_note
from trunkline.registry.lookup import (
    CHAMPION,
    VersionRow,
    find_version,
    known_versions,
    version_records,
)
from trunkline.registry.records import (
    AliasMoveRecord,
    BaseRecord,
    DatasetRecord,
    EvaluationRecord,
    EventRecord,
    LoadRecord,
    RequestRecord,
    RunRecord,
    VersionRecord,
)
from trunkline.registry.requests import Requests
from trunkline.registry.runs import Runs
from trunkline.registry.servers import Servers
from trunkline.registry.session import Aggregate, Sessions, event_record, run_subject
from trunkline.registry.sources import base_record, dataset_record
from trunkline.registry.tables import AliasMove, Base, Dataset, Event, Version
from trunkline.registry.tags import tags_of

MOST = 50
"""So many of each kind are told; the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What stands behind a request, a version or a run; None or empty where nothing is known.

    Attributes:
        request: the answer that was asked about.
        let_live: the move by which the alias that the request asked for pointed at the version at
            that time, by the clock.
        version: the version; a removed one too.
        same: refs of other versions that are the very same artifact.
        base, dataset, run: what the version was made on, from and by.
        evaluations: of the version, or of the run where it has none; newest first.
        moves: of aliases to the version and away from it, newest first.
        loads: when servers held the version in memory, newest first.
        history: events of the version and of its run, newest first.
        tags: subject → key → value, of the request, version, adapter, run, dataset and base.
        notes: on the same, but for the adapter, newest first.
        cut: names of the parts of which there are more than are given.
    """

    request: RequestRecord | None = None
    let_live: AliasMoveRecord | None = None
    version: VersionRecord | None = None
    same: tuple[str, ...] = ()
    base: BaseRecord | None = None
    dataset: DatasetRecord | None = None
    run: RunRecord | None = None
    evaluations: tuple[EvaluationRecord, ...] = ()
    moves: tuple[AliasMoveRecord, ...] = ()
    loads: tuple[LoadRecord, ...] = ()
    history: tuple[EventRecord, ...] = ()
    tags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[EventRecord, ...] = ()
    cut: tuple[str, ...] = ()


class Tracer(Aggregate):
    """Traces requests, versions, digests and runs back to their sources."""

    def __init__(
        self,
        sessions: Sessions,
        *,
        runs: Runs,
        evaluations: Evaluations,
        events: Events,
        requests: Requests,
        servers: Servers,
    ) -> None:
        super().__init__(sessions)
        self._runs = runs
        self._evaluations = evaluations
        self._events = events
        self._requests = requests
        self._servers = servers

    def of_version(self, ref: Ref) -> Lineage:
        """Everything behind the version that answers ``ref``; a removed one by number or digest.

        Raises:
            NotFoundError: no version answers it.
        """
        with self._sessions.read() as session:
            row = find_version(session, ref, gone=True)[0]
        return self._of_version(row)

    def of_digest(self, digest: str) -> Lineage:
        """Everything behind the artifact with this digest.

        Raises:
            UsageError: it is not ``sha256:`` with 64 hex digits.
            NotFoundError: no version has or had it.
        """
        row = self._with_digest(check_digest(digest))
        if row is None:
            raise NotFoundError(
                f"This registry knows no version with the digest '{digest}'.",
                "It may be another workspace's; see the versions with: trunkline adapters list.",
            )
        return self._of_version(row)

    def of_run(self, number: int) -> Lineage:
        """Everything behind a run, and how what it made was evaluated.

        Raises:
            NotFoundError: no run has this number.
        """
        run = self._runs.get(number)
        found = self._evaluations.list(run=number, limit=MOST + 1)
        with self._sessions.read() as session:
            base = session.scalars(select(Base).where(Base.digest == run.base_digest)).one()
            dataset = session.get_one(Dataset, run.dataset_id)
            lineage = Lineage(run=run, base=base_record(base), dataset=dataset_record(dataset))
            lineage = _with_words(session, lineage)
            events = _events_of(session, run_subject(number))
        return _cut(lineage, evaluations=found, history=events, notes=lineage.notes)

    def of_request(self, id: str) -> Lineage:
        """Everything behind the answer of a request.

        The digest in the log decides which version that was, whatever its name says today. The id
        may be as an answer's body words it, ``chatcmpl-…`` or ``cmpl-…``.

        Raises:
            NotFoundError: there is no such request.
        """
        request = self._request(id)
        row = None
        if request.version not in (None, BASE) and request.digest is not None:
            row = self._with_digest(request.digest, request.version)
        lineage = Lineage(request=request)
        if row is None:
            with self._sessions.read() as session:
                if request.version == BASE and request.digest is not None:
                    base = session.scalar(select(Base).where(Base.digest == request.digest))
                    known = None if base is None else base_record(base)
                    lineage = replace(lineage, base=known)
                return _with_words(session, lineage)
        lineage = self._of_version(row, request)
        with self._sessions.read() as session:
            return replace(lineage, let_live=_let_live(session, request, row))

    def _request(self, id: str) -> RequestRecord:
        try:
            return self._requests.get(id)
        except NotFoundError:
            kind, dash, rest = id.partition("-")
            if not dash or kind not in ("chatcmpl", "cmpl"):
                raise
        return self._requests.get(rest)

    def _with_digest(self, digest: str, name: str | None = None) -> VersionRow | None:
        """The version with a digest: the one of this name if it has it, a visible one if any."""
        with self._sessions.read() as session:
            rows = session.execute(
                known_versions()
                .where(Version.digest == digest)
                .order_by(Version.status.desc(), Version.id.desc())
                .limit(MOST)
            ).all()
        named = [row for row in rows if f"{row[1].domain}/{row[1].name}@{row[0].number}" == name]
        return next(iter([*named, *rows]), None)

    def _of_version(self, row: VersionRow, request: RequestRecord | None = None) -> Lineage:
        version, _, base, dataset = row
        with self._sessions.read() as session:
            record = version_records(session, [row])[0]
            moves = _moves(session, version)
            twins = session.execute(
                known_versions()
                .where(Version.digest == version.digest, Version.id != version.id)
                .order_by(Version.id.desc())
                .limit(MOST)
            ).all()
            lineage = Lineage(
                request=request,
                version=record,
                same=tuple(f"{one.domain}/{one.name}@{twin.number}" for twin, one, *_ in twins),
                base=base_record(base),
                dataset=None if dataset is None else dataset_record(dataset),
                run=None if version.run_id is None else self._runs.get(version.run_id),
            )
            lineage = _with_words(session, lineage)
            run = lineage.run
            begun = [] if run is None else _events_of(session, run_subject(run.number))
        told = self._events.history(record.ref, limit=MOST + 1)
        evaluations = self._evaluations.list(version=record.ref, limit=MOST + 1)
        loads = self._servers.list_loads(record.digest, MOST + 1)
        history = sorted([*told, *begun], key=lambda event: -event.seq)
        return _cut(
            lineage,
            evaluations=evaluations,
            moves=moves,
            loads=loads,
            history=history,
            notes=lineage.notes,
        )


def _cut(lineage: Lineage, **parts: Sequence[Any]) -> Lineage:
    """The lineage with these parts, each as long as it may be."""
    bounded: dict[str, Any] = {name: tuple(part[:MOST]) for name, part in parts.items()}
    cut = tuple(name for name, part in parts.items() if len(part) > MOST)
    return replace(lineage, **bounded, cut=cut)


def _with_words(session: Session, lineage: Lineage) -> Lineage:
    """The lineage with the tags and notes of what is in it.

    An adapter's own notes are left to its history: it has too many events to look through here.
    """
    subjects = subjects_of(lineage)
    noted = [subject for subject, part in subjects.items() if part != "adapter"]
    notes = (
        select(Event)
        .where(Event.subject.in_(noted), is_note())
        .order_by(Event.seq.desc())
        .limit(MOST + 1)
    )
    return replace(
        lineage,
        tags=tags_of(session, subjects),
        notes=tuple(event_record(row) for row in session.scalars(notes)),
    )


def subjects_of(lineage: Lineage) -> dict[str, str]:
    """subject → what part it is: ``request``, ``version``, ``adapter``, ``run``, …"""
    found: dict[str, str] = {}
    if lineage.request is not None:
        found[f"request/{lineage.request.id}"] = "request"
    if lineage.version is not None:
        found[str(lineage.version.ref)] = "version"
        found[lineage.version.ref.adapter] = "adapter"
    if lineage.run is not None:
        found[run_subject(lineage.run.number)] = "run"
    if lineage.dataset is not None:
        found[f"dataset/{lineage.dataset.id}"] = "dataset"
    if lineage.base is not None:
        found[f"base/{lineage.base.digest}"] = "base"
    return found


def _moves(session: Session, version: Version) -> list[AliasMoveRecord]:
    of_adapter = AliasMove.adapter_id == version.adapter_id
    to_or_from = or_(
        AliasMove.version_id == version.id,
        and_(of_adapter, AliasMove.old_version_id == version.id),
    )
    return _told(session, to_or_from, MOST + 1)


def _let_live(session: Session, request: RequestRecord, row: VersionRow) -> AliasMoveRecord | None:
    """The move that was in force for the alias that was asked, if it led to this version."""
    try:
        asked = Ref.parse(request.asked)
    except UsageError:
        return None
    alias = CHAMPION if asked.selector is None else asked.alias
    if alias is None or (asked.domain, asked.name) != (row[1].domain, row[1].name):
        return None
    in_force = _told(
        session,
        and_(
            AliasMove.adapter_id == row[1].id,
            AliasMove.alias == alias,
            AliasMove.at <= request.at,
        ),
        1,
    )
    return next((move for move in in_force if move.new == row[0].number), None)


def _told(session: Session, which: ColumnElement[bool], limit: int) -> list[AliasMoveRecord]:
    query = told_moves().where(which).order_by(AliasMove.id.desc()).limit(limit)
    return [record_of(row) for row in session.execute(query)]


def _events_of(session: Session, subject: str) -> list[EventRecord]:
    query = select(Event).where(Event.subject == subject).order_by(Event.seq.desc())
    return [event_record(row) for row in session.scalars(query.limit(MOST + 1))]

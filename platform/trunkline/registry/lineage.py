"""Lineage: from an answer, a version or a run back to its sources; and the diff of two lineages.

Every part is bounded: :data:`MAX_PART` of the newest evaluations, moves, loads, events and notes;
``truncated`` names the parts of which there are more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from trunkline.errors import NotFoundError, UsageError
from trunkline.refs import BASE, Ref, check_digest
from trunkline.registry.events import Events, is_note
from trunkline.registry.lookup import CHAMPION, find_version_row, run_subject
from trunkline.registry.mapping import (
    VersionRow,
    move_records,
    select_versions,
    to_record,
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
from trunkline.registry.runs import Evaluations, Runs
from trunkline.registry.servers import Servers
from trunkline.registry.session import Aggregate, Sessions
from trunkline.registry.tables import AliasMove, Base, Dataset, Event, Version, VersionParent
from trunkline.registry.tags import tags_of

MAX_PART = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """The sources of a request, a version or a run; None or empty where nothing is recorded.

    Attributes:
        request: whose answer is traced.
        alias_move: the move by which the requested alias pointed to the version at that time.
        version: may be a removed one.
        duplicates: refs of other versions of the same artifact.
        merged_into: refs of versions that were merged from it, newest first.
        base, dataset, run: what the version was trained on, from and by.
        evaluations: of the version, or of the run if it has none; newest first.
        moves: of aliases to the version and away from it, newest first.
        loads: when servers held the version in memory, newest first.
        history: events on the version and on its run, newest first.
        tags: subject → key → value, of the request, version, adapter, run, dataset and base.
        notes: on the same subjects except the adapter, newest first.
        truncated: names of the parts of which there are more.
    """

    request: RequestRecord | None = None
    alias_move: AliasMoveRecord | None = None
    version: VersionRecord | None = None
    duplicates: tuple[str, ...] = ()
    merged_into: tuple[str, ...] = ()
    base: BaseRecord | None = None
    dataset: DatasetRecord | None = None
    run: RunRecord | None = None
    evaluations: tuple[EvaluationRecord, ...] = ()
    moves: tuple[AliasMoveRecord, ...] = ()
    loads: tuple[LoadRecord, ...] = ()
    history: tuple[EventRecord, ...] = ()
    tags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[EventRecord, ...] = ()
    truncated: tuple[str, ...] = ()


class LineageTracer(Aggregate):
    """Traces requests, versions, digests and runs to their sources."""

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
        """The lineage of a version; of a removed one by number or digest.

        Raises:
            NotFoundError: ``ref`` resolves to no version.
        """
        with self._sessions.read() as session:
            row = find_version_row(session, ref, include_removed=True)[0]
        return self._of_version(row)

    def of_digest(self, digest: str) -> Lineage:
        """The lineage of the artifact with this digest.

        Raises:
            UsageError: it is not ``sha256:`` with 64 hex digits.
            NotFoundError: no visible or removed version has it.
        """
        row = self._by_digest(check_digest(digest))
        if row is None:
            raise NotFoundError(
                f"This registry has no version with the digest '{digest}'.",
                "It may belong to another workspace; list versions with: trunkline adapters list.",
            )
        return self._of_version(row)

    def of_run(self, number: int) -> Lineage:
        """The lineage of a run, with the evaluations that were recorded under it.

        Raises:
            NotFoundError: no run has this number.
        """
        run = self._runs.get(number)
        evaluations = self._evaluations.list(run=number, limit=MAX_PART + 1)
        with self._sessions.read() as session:
            base = session.scalars(select(Base).where(Base.digest == run.base_digest)).one()
            dataset = session.get_one(Dataset, run.dataset_id)
            lineage = Lineage(
                run=run,
                base=to_record(BaseRecord, base),
                dataset=to_record(DatasetRecord, dataset),
            )
            lineage = _with_tags_and_notes(session, lineage)
            events = _events_of_run(session, number)
        return _truncate(lineage, evaluations=evaluations, history=events, notes=lineage.notes)

    def of_request(self, id: str) -> Lineage:
        """The lineage of a request's answer.

        The logged digest decides which version that was, whatever its name resolves to today.

        Args:
            id: may have the prefix of an answer's body, ``chatcmpl-…`` or ``cmpl-…``.

        Raises:
            NotFoundError: there is no such request.
        """
        request = self._find_request(id)
        row = None
        if request.version not in (None, BASE) and request.digest is not None:
            row = self._by_digest(request.digest, request.version)
        lineage = Lineage(request=request)
        if row is None:
            with self._sessions.read() as session:
                if request.version == BASE and request.digest is not None:
                    base = session.scalar(select(Base).where(Base.digest == request.digest))
                    record = None if base is None else to_record(BaseRecord, base)
                    lineage = replace(lineage, base=record)
                return _with_tags_and_notes(session, lineage)
        lineage = self._of_version(row, request)
        with self._sessions.read() as session:
            return replace(lineage, alias_move=_alias_move(session, request, row))

    def _find_request(self, id: str) -> RequestRecord:
        try:
            return self._requests.get(id)
        except NotFoundError:
            prefix, dash, rest = id.partition("-")
            if not dash or prefix not in ("chatcmpl", "cmpl"):
                raise
        return self._requests.get(rest)

    def _by_digest(self, digest: str, name: str | None = None) -> VersionRow | None:
        """A version with a digest: preferably the one of this name, then a visible one."""
        with self._sessions.read() as session:
            rows = session.execute(
                select_versions(removed=True)
                .where(Version.digest == digest)
                .order_by(Version.status.desc(), Version.id.desc())
                .limit(MAX_PART)
            ).all()
        named = [row for row in rows if f"{row[1].domain}/{row[1].name}@{row[0].number}" == name]
        return next(iter([*named, *rows]), None)

    def _of_version(self, row: VersionRow, request: RequestRecord | None = None) -> Lineage:
        version, _, base, dataset = row
        run = None if version.run_id is None else self._runs.get(version.run_id)
        with self._sessions.read() as session:
            record = version_records(session, [row])[0]
            moves = move_records(
                session,
                or_(
                    AliasMove.version_id == version.id,
                    and_(
                        AliasMove.adapter_id == version.adapter_id,
                        AliasMove.old_version_id == version.id,
                    ),
                ),
                limit=MAX_PART + 1,
            )
            duplicates = _refs(session, Version.digest == version.digest, Version.id != version.id)
            parents = select(VersionParent.version_id)
            children = parents.where(VersionParent.digest == version.digest)
            lineage = Lineage(
                request=request,
                version=record,
                duplicates=duplicates,
                merged_into=_refs(session, Version.id.in_(children)),
                base=to_record(BaseRecord, base),
                dataset=None if dataset is None else to_record(DatasetRecord, dataset),
                run=run,
            )
            lineage = _with_tags_and_notes(session, lineage)
            run_events = [] if run is None else _events_of_run(session, run.number)
        events = self._events.history(record.ref, limit=MAX_PART + 1)
        return _truncate(
            lineage,
            evaluations=self._evaluations.list(version=record.ref, limit=MAX_PART + 1),
            moves=moves,
            loads=self._servers.list_loads(record.digest, MAX_PART + 1),
            history=sorted([*events, *run_events], key=lambda event: -event.seq),
            notes=lineage.notes,
        )


def subjects_of(lineage: Lineage) -> dict[str, str]:
    """subject → which part it is: ``request``, ``version``, ``adapter``, ``run``, …"""
    subjects: dict[str, str] = {}
    if lineage.request is not None:
        subjects[f"request/{lineage.request.id}"] = "request"
    if lineage.version is not None:
        subjects[str(lineage.version.ref)] = "version"
        subjects[lineage.version.ref.adapter] = "adapter"
    if lineage.run is not None:
        subjects[run_subject(lineage.run.number)] = "run"
    if lineage.dataset is not None:
        subjects[f"dataset/{lineage.dataset.id}"] = "dataset"
    if lineage.base is not None:
        subjects[f"base/{lineage.base.digest}"] = "base"
    return subjects


def _refs(session: Session, *where: ColumnElement[bool]) -> tuple[str, ...]:
    """The refs of the newest matching versions, also of removed ones."""
    query = select_versions(removed=True).where(*where).order_by(Version.id.desc())
    return tuple(
        f"{adapter.domain}/{adapter.name}@{version.number}"
        for version, adapter, *_ in session.execute(query.limit(MAX_PART))
    )


def _truncate(lineage: Lineage, **parts: Sequence[Any]) -> Lineage:
    """The lineage with these parts, each at most :data:`MAX_PART` long."""
    bounded: dict[str, Any] = {name: tuple(part[:MAX_PART]) for name, part in parts.items()}
    truncated = tuple(name for name, part in parts.items() if len(part) > MAX_PART)
    return replace(lineage, **bounded, truncated=truncated)


def _with_tags_and_notes(session: Session, lineage: Lineage) -> Lineage:
    """The lineage with the tags and notes on its subjects.

    Notes on the adapter are left to its history: it has too many events to search here.
    """
    subjects = subjects_of(lineage)
    noted = [subject for subject, part in subjects.items() if part != "adapter"]
    notes = (
        select(Event)
        .where(Event.subject.in_(noted), is_note())
        .order_by(Event.seq.desc())
        .limit(MAX_PART + 1)
    )
    return replace(
        lineage,
        tags=tags_of(session, subjects),
        notes=tuple(to_record(EventRecord, row) for row in session.scalars(notes)),
    )


def _alias_move(
    session: Session, request: RequestRecord, row: VersionRow
) -> AliasMoveRecord | None:
    """The move in force for the requested alias at that time, if it led to this version."""
    try:
        ref = Ref.parse(request.model)
    except UsageError:
        return None
    alias = CHAMPION if ref.selector is None else ref.alias
    if alias is None or (ref.domain, ref.name) != (row[1].domain, row[1].name):
        return None
    in_force = move_records(
        session,
        AliasMove.adapter_id == row[1].id,
        AliasMove.alias == alias,
        AliasMove.at <= request.at,
        limit=1,
    )
    return next((move for move in in_force if move.new == row[0].number), None)


def _events_of_run(session: Session, number: int) -> list[EventRecord]:
    of_run = select(Event).where(Event.subject == run_subject(number)).order_by(Event.seq.desc())
    return [to_record(EventRecord, row) for row in session.scalars(of_run.limit(MAX_PART + 1))]


# ----------------------------------------------------------------------------------------- diff

_RUN_FIELDS = ("recipe", "status", "plugin", "seed", "error")
_TIMES = ("seconds", "train_seconds")


@dataclass(frozen=True, slots=True)
class FieldDifference:
    """A field that differs; None where a side does not have it."""

    name: str
    left: Any
    right: Any


@dataclass(frozen=True, slots=True)
class MetricDifference:
    """A metric on both sides.

    Attributes:
        name: ``split.metric``.
        left, right: its values; None where a side has none.
        difference: right minus left.
        same_rows: whether both were computed on the same rows of the same split.
    """

    name: str
    left: float | None
    right: float | None
    difference: float | None
    same_rows: bool


@dataclass(frozen=True, slots=True)
class LineageDiff:
    """Two versions or runs side by side; ``left`` and ``right`` name them."""

    left: str
    right: str
    fields: tuple[FieldDifference, ...]
    metrics: tuple[MetricDifference, ...]


def diff(left: Lineage, right: Lineage) -> LineageDiff:
    """Every field in which two versions, or two runs, differ, and all their metrics."""
    ours, theirs = dict(_fields_of(left)), dict(_fields_of(right))
    differences = tuple(
        FieldDifference(name, ours.get(name), theirs.get(name))
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name)
    )
    return LineageDiff(_name_of(left), _name_of(right), differences, _diff_metrics(left, right))


def _name_of(lineage: Lineage) -> str:
    if lineage.version is not None:
        return str(lineage.version.ref)
    return "-" if lineage.run is None else run_subject(lineage.run.number)


def _fields_of(lineage: Lineage) -> Iterator[tuple[str, Any]]:
    """Dotted name → value, in the order in which they are shown."""
    if (version := lineage.version) is not None:
        yield from _flatten(
            "version",
            {
                "digest": version.digest,
                "task": version.task,
                "bytes": version.bytes,
                "template": version.template_digest,
                "run": version.run,
                "removed": version.removal_reason if version.removed else None,
            },
        )
    if (base := lineage.base) is not None:
        yield from _flatten("base", {"name": base.name, "digest": base.digest, "dtype": base.dtype})
    if (dataset := lineage.dataset) is not None:
        yield from _flatten(
            "dataset",
            {
                "name": dataset.name,
                "rows": dataset.fingerprint,
                "split": dataset.split_fingerprint,
                "count": dataset.rows,
                "license": dataset.license,
                "source": dataset.source,
                "counts": dataset.counts,
            },
        )
    if (run := lineage.run) is not None:
        yield from _flatten("run", {name: getattr(run, name) for name in _RUN_FIELDS})
        yield from _flatten("settings", run.settings)
        yield from _flatten("specification", run.specification or {})
        yield from _flatten("environment", run.environment)
        report = {name: one for name, one in (run.report or {}).items() if name not in _TIMES}
        report.pop("data", None)
        yield from _flatten("report", report)


def _flatten(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(f"{prefix}.{name}", value)
        elif value is not None:
            yield f"{prefix}.{name}", value


def _diff_metrics(left: Lineage, right: Lineage) -> tuple[MetricDifference, ...]:
    ours, theirs = _newest_by_split(left.evaluations), _newest_by_split(right.evaluations)
    differences = []
    for split in dict.fromkeys([*ours, *theirs]):
        one, other = ours.get(split), theirs.get(split)
        same_rows = one is not None and other is not None and _rows_of(one) == _rows_of(other)
        scores, other_scores = _scores(one), _scores(other)
        for metric in dict.fromkeys([*scores, *other_scores]):
            a, b = scores.get(metric), other_scores.get(metric)
            delta = None if a is None or b is None else b - a
            differences.append(MetricDifference(f"{split}.{metric}", a, b, delta, same_rows))
    return tuple(differences)


def _newest_by_split(evaluations: tuple[EvaluationRecord, ...]) -> dict[str, EvaluationRecord]:
    return {evaluation.split: evaluation for evaluation in reversed(evaluations)}


def _rows_of(evaluation: EvaluationRecord) -> tuple[str, str]:
    return evaluation.dataset_fingerprint, evaluation.split_fingerprint


def _scores(evaluation: EvaluationRecord | None) -> dict[str, float | None]:
    scores = {} if evaluation is None else evaluation.results.get("scores", {})
    return {
        name: score.get("value") for name, score in scores.items() if isinstance(score, Mapping)
    }

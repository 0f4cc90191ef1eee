"""Provenance documents and rows: ``provenance.json`` of a version from its rows, and back.

A version that is imported brings its provenance, and a lost registry is rebuilt from those of its
artifacts. The documents that arrive here were validated before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import PurePath
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from trunkline.errors import RefusedError
from trunkline.refs import Ref
from trunkline.registry.chain import add_event
from trunkline.registry.lookup import find_base_id, find_version_row, run_subject
from trunkline.registry.mapping import version_record
from trunkline.registry.records import RebuildCounts, RecordedProvenance, RecoveredVersion
from trunkline.registry.runs import RUN_IMPORTED, store_scores
from trunkline.registry.session import Aggregate, find_or_add
from trunkline.registry.tables import (
    Adapter,
    Base,
    ChainHead,
    Dataset,
    Evaluation,
    Event,
    Plugin,
    Run,
    Table,
    Version,
    utc_now,
)
from trunkline.registry.versions import add_merge, reserve

MAX_EVALUATIONS = 1000
"""A document has at most this many evaluations, the newest."""

IMPORTED = "imported"
"""Marks the results of an evaluation that comes from a document, so that no gate accepts it as an
evaluation made here."""

_BASE_FIELDS = ("digest", "name", "source", "architecture", "parameters", "dtype", "modality")
_DATASET_KEY = ("name", "fingerprint", "split_fingerprint")
_DATASET_FIELDS = (*_DATASET_KEY, "rows", "license", "source", "counts")
_RUN_FIELDS = ("recipe", "status", "seed", "settings", "environment", "specification", "report")
_OWN_FILES = ("file", "validation", "test")
_PLUGIN_KEY = ("distribution", "version", "domain")
_PLUGIN_FIELDS = ("distribution", "version", "api", "domain")


class Provenance(Aggregate):
    """Writes provenance documents from rows, and records rows from documents."""

    def of_version(self, ref: Ref) -> dict[str, Any]:
        """``base``, ``dataset``, ``run``, ``merge`` and ``evaluations`` of a version, as JSON.

        Raises:
            NotFoundError: ``ref`` resolves to no visible version.
        """
        with self._sessions.read() as session:
            version, _, base, dataset = find_version_row(session, ref)[0]
            run = None if version.run_id is None else session.get_one(Run, version.run_id)
            evaluations = _evaluations(session, Evaluation.version_id == version.id)
            merge = version_record(session, version).merge
            return {
                **_document(session, base, dataset, run, evaluations),
                "merge": None if merge is None else asdict(merge),
            }

    def of_run(self, number: int) -> dict[str, Any]:
        """As :meth:`of_version`, for a run that has no version yet."""
        with self._sessions.read() as session:
            run = session.get_one(Run, number)
            base = session.get_one(Base, run.base_id)
            dataset = session.get_one(Dataset, run.dataset_id)
            evaluations = _evaluations(session, Evaluation.run_id == run.id)
            return _document(session, base, dataset, run, evaluations)

    def reserve(
        self,
        ref: Ref,
        *,
        task: str,
        provenance: Mapping[str, Any],
        actor: str | None = None,
    ) -> tuple[int, RecordedProvenance]:
        """Reserve the next number of an adapter for a version that brings its provenance.

        Base, dataset, plugin, run and evaluations are recorded in the same transaction; abandoning
        the number deletes the run again. The run gets a new number; its event has the old one and
        who started it. :meth:`Versions.publish` gives the evaluations to the version.

        Args:
            ref: of the adapter.
            provenance: as in ``provenance.json``, validated.
            actor: who imports it.
        """
        with self._sessions.write() as session:
            recorded = _record(session, provenance, actor)
            return reserve(session, ref, task, recorded.run), recorded

    def rebuild(
        self, versions: Sequence[RecoveredVersion], *, actor: str | None = None
    ) -> RebuildCounts:
        """Fill an empty registry with versions that were read from artifacts, in one transaction.

        Runs keep their numbers; if two different runs claim one number, that of the later version
        gets a new one. An adapter's next number follows its highest version.

        Raises:
            RefusedError: the registry holds rows.
        """
        ordered = sorted(versions, key=lambda version: (version.created, str(version.ref)))
        with self._sessions.write() as session:
            session.scalars(select(ChainHead).with_for_update()).all()
            self._check_empty(session)
            runs: dict[tuple[Any, ...], int] = {}
            numbers = [int(run["number"]) for one in versions if (run := one.provenance["run"])]
            for version in ordered:
                recorded = _record_sources(session, version.provenance)
                run_id = None
                if run := version.provenance["run"]:
                    claim = (run["number"], run["recipe"], run["started"], recorded.dataset_id)
                    if claim not in runs:
                        number = int(run["number"])
                        if session.get(Run, number) is not None:
                            number = max(numbers) + 1
                            numbers.append(number)
                        runs[claim] = _add_run(session, version.provenance, recorded, number).id
                        _add_run_event(session, run, runs[claim], actor)
                    run_id = runs[claim]
                _add_version(session, version, recorded, run_id)
            if runs:
                _advance_run_sequence(session)
            counts = {
                "bases": _count(session, Base),
                "datasets": _count(session, Dataset),
                "runs": _count(session, Run),
                "versions": _count(session, Version),
            }
            add_event(session, actor, "registry.rebuilt", "registry", counts)
            return RebuildCounts(**counts)

    def check_empty(self) -> None:
        """Raise :class:`RefusedError` if the registry holds rows."""
        with self._sessions.read() as session:
            self._check_empty(session)

    def _check_empty(self, session: Session) -> None:
        for table in Table.metadata.sorted_tables:
            if table.name == ChainHead.__tablename__:
                continue
            if session.execute(select(1).select_from(table).limit(1)).first() is not None:
                raise RefusedError(
                    f"The registry '{self._sessions.engines.where}' is not empty: its table "
                    f"'{table.name}' holds rows.",
                    "Rebuild a lost registry only. Restore a damaged one with "
                    "`trunkline db restore FILE`, or move it away first.",
                )


# ----------------------------------------------------------------------------- rows to documents


def _document(
    session: Session,
    base: Base,
    dataset: Dataset | None,
    run: Run | None,
    evaluations: Sequence[Evaluation],
) -> dict[str, Any]:
    return {
        "base": _columns(base, _BASE_FIELDS),
        "dataset": None if dataset is None else _columns(dataset, _DATASET_FIELDS),
        "run": None if run is None else _run_document(session, run),
        "evaluations": [
            {
                "split": evaluation.split,
                "results": {
                    name: value for name, value in evaluation.results.items() if name != IMPORTED
                },
                "created": _isoformat(evaluation.created),
            }
            for evaluation in evaluations
        ],
    }


def _without_folders(specification: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A run's specification with the names of the user's own files, without their folders."""
    config = (specification or {}).get("config") or {}
    if specification is None or not (data := config.get("data")):
        return specification
    names = {name: PurePath(data[name]).name for name in _OWN_FILES if name in data}
    return {**specification, "config": {**config, "data": {**data, **names}}}


def _run_document(session: Session, run: Run) -> dict[str, Any]:
    plugin = None if run.plugin_id is None else session.get_one(Plugin, run.plugin_id)
    return {
        "number": run.id,
        **_columns(run, _RUN_FIELDS),
        "specification": _without_folders(run.specification),
        "started": _isoformat(run.started),
        "finished": _isoformat(run.finished),
        "plugin": None if plugin is None else _columns(plugin, _PLUGIN_FIELDS),
        "actor": _starter(session, run.id),
    }


def _columns(row: Table, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def _evaluations(session: Session, where: ColumnElement[bool]) -> list[Evaluation]:
    """The newest, oldest first."""
    query = select(Evaluation).where(where).order_by(Evaluation.id.desc())
    return list(session.scalars(query.limit(MAX_EVALUATIONS)))[::-1]


def _starter(session: Session, run: int) -> str | None:
    """Who started the run, here or in the workspace from which it was imported."""
    query = select(Event).where(
        Event.subject == run_subject(run), Event.kind.in_(("run.started", RUN_IMPORTED))
    )
    first = session.scalars(query.order_by(Event.seq).limit(1)).first()
    if first is None:
        return None
    starter = first.detail.get("started_by") if first.kind == RUN_IMPORTED else first.actor
    return starter if isinstance(starter, str) else None


def _isoformat(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


# ----------------------------------------------------------------------------- documents to rows


def _record(
    session: Session, provenance: Mapping[str, Any], actor: str | None
) -> RecordedProvenance:
    recorded = _record_sources(session, provenance)
    if provenance["run"] is None:
        return recorded
    run = _add_run(session, provenance, recorded)
    _add_evaluations(session, provenance, recorded, run)
    _add_run_event(session, provenance["run"], run.id, actor)
    return RecordedProvenance(recorded.base_digest, recorded.dataset_id, run.id)


def _record_sources(session: Session, provenance: Mapping[str, Any]) -> RecordedProvenance:
    base, dataset = provenance["base"], provenance["dataset"]
    find_or_add(session, Base(**base, first_seen=utc_now()), Base.digest == base["digest"])
    if dataset is None:
        return RecordedProvenance(base["digest"], None, None)
    row = find_or_add(
        session,
        Dataset(**{name: dataset[name] for name in _DATASET_FIELDS}, first_seen=utc_now()),
        *(getattr(Dataset, name) == dataset[name] for name in _DATASET_KEY),
    )
    return RecordedProvenance(base["digest"], row.id, None)


def _add_run(
    session: Session,
    provenance: Mapping[str, Any],
    recorded: RecordedProvenance,
    number: int | None = None,
) -> Run:
    """Add the run, by default under the next number; without a start time, the version's counts."""
    document = provenance["run"]
    created = datetime.fromisoformat(provenance["version"]["created"])
    status = "interrupted" if document["status"] == "running" else document["status"]
    run = Run(
        recipe=document["recipe"],
        status=status,
        base_id=find_base_id(session, recorded.base_digest),
        dataset_id=recorded.dataset_id,
        plugin_id=_record_plugin(session, document["plugin"]),
        seed=document["seed"],
        settings=dict(document["settings"]),
        environment=dict(document["environment"]),
        specification=document["specification"],
        report=document["report"],
        started=_parse_time(document["started"]) or created,
        finished=_parse_time(document["finished"]),
    )
    if number is not None:
        run.id = number
    session.add(run)
    session.flush()
    return run


def _add_evaluations(
    session: Session,
    provenance: Mapping[str, Any],
    recorded: RecordedProvenance,
    run: Run | None,
    version: int | None = None,
    recipe: str = "",
) -> None:
    """Add the evaluations of a run, or of a version that was merged under the name ``recipe``."""
    for document in provenance["evaluations"]:
        row = Evaluation(
            version_id=version,
            run_id=None if run is None else run.id,
            recipe=recipe if run is None else run.recipe,
            dataset_id=recorded.dataset_id,
            split=document["split"],
            base_id=find_base_id(session, recorded.base_digest),
            results={**document["results"], IMPORTED: True},
            created=_parse_time(document["created"]) or utc_now(),
        )
        session.add(row)
        session.flush()
        if version is not None:
            store_scores(session, row)
            session.flush()


def _add_version(
    session: Session, recovered: RecoveredVersion, recorded: RecordedProvenance, run: int | None
) -> None:
    ref = recovered.ref
    adapter = find_or_add(
        session,
        Adapter(domain=ref.domain, name=ref.name, task=recovered.task, last_number=0),
        Adapter.domain == ref.domain,
        Adapter.name == ref.name,
    )
    number = ref.number or 0
    adapter.last_number = max(adapter.last_number, number)
    version = Version(
        adapter_id=adapter.id,
        number=number,
        status="visible",
        digest=recovered.digest,
        path=recovered.path,
        bytes=recovered.bytes,
        base_id=find_base_id(session, recorded.base_digest),
        dataset_id=recorded.dataset_id,
        run_id=run,
        created=recovered.created,
        files=dict(recovered.files),
        template_digest=recovered.template_digest,
    )
    session.add(version)
    session.flush()
    merge = recovered.provenance["merge"]
    if merge is not None:
        add_merge(session, version, merge)
    row = None if run is None else session.get_one(Run, run)
    if row is not None or merge is not None:
        _add_evaluations(session, recovered.provenance, recorded, row, version.id, ref.adapter)


def _record_plugin(session: Session, plugin: Mapping[str, Any] | None) -> int | None:
    if plugin is None:
        return None
    return find_or_add(
        session,
        Plugin(**plugin, first_seen=utc_now()),
        *(getattr(Plugin, name) == plugin[name] for name in _PLUGIN_KEY),
    ).id


def _add_run_event(
    session: Session, run: Mapping[str, Any], number: int, actor: str | None
) -> None:
    detail = {"recipe": run["recipe"], "number": run["number"], "started_by": run["actor"]}
    add_event(session, actor, RUN_IMPORTED, run_subject(number), detail)


def _advance_run_sequence(session: Session) -> None:
    """Let the next run's number follow the highest; SQLite does so by itself."""
    if session.get_bind().dialect.name == "postgresql":
        highest = select(func.max(Run.id)).scalar_subquery()
        sequence = func.pg_get_serial_sequence(Run.__tablename__, "id")
        last = func.nextval(sequence)
        session.execute(select(func.setval(sequence, func.greatest(highest, last))))


def _count(session: Session, table: type[Table]) -> int:
    return session.scalar(select(func.count()).select_from(table)) or 0


def _parse_time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)

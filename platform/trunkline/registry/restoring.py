"""Lineage that comes from outside: with a version of another workspace, or out of the artifacts
of a registry that was lost.

Owns: the rows that are made from what ``provenance.json`` says, and the rebuilding of an empty
registry. Must not know: files; what was read is handed over in the file's form, already checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from trunkline.errors import RefusedError
from trunkline.registry.evaluations import keep_scores
from trunkline.registry.records import FoundVersion, Rebuilt, RestoredLineage
from trunkline.registry.session import (
    RESTORED,
    Sessions,
    add_event,
    find_or_add,
    run_subject,
    utc_now,
)
from trunkline.registry.tables import (
    Adapter,
    Base,
    ChainHead,
    Dataset,
    Evaluation,
    Plugin,
    Run,
    Table,
    Version,
)

REBUILT = "registry.rebuilt"
TOLD = "restored"
"""Marks the results of an evaluation that only a version's files tell of, so that no gate takes
them for a evaluation made here."""


def rebuild(sessions: Sessions, found: Sequence[FoundVersion], actor: str | None = None) -> Rebuilt:
    """Fill an empty registry with the versions that were found, in one transaction.

    Runs keep their numbers; of two different runs that claim one number, the later version's
    gets a new one. An adapter's next number follows the highest that was found.

    Raises:
        RefusedError: the registry holds rows.
    """
    ordered = sorted(found, key=lambda one: (one.created, str(one.ref)))
    with sessions.write() as session:
        session.scalars(select(ChainHead).with_for_update()).all()
        _check_empty(session, sessions)
        runs: dict[tuple[Any, ...], int] = {}
        numbers = [int(run["number"]) for one in found if (run := one.provenance["run"])]
        for one in ordered:
            made = _base_and_dataset(session, one.provenance)
            run_id = None
            if said := one.provenance["run"]:
                claim = (said["number"], said["recipe"], said["started"], made.dataset_id)
                if claim not in runs:
                    number = int(said["number"])
                    if session.get(Run, number) is not None:
                        number = max(numbers) + 1
                        numbers.append(number)
                    runs[claim] = _add_run(session, one.provenance, made, number).id
                    _tell_run(session, said, runs[claim], actor)
                run_id = runs[claim]
            _add_version(session, one, made, run_id)
        if runs:
            _settle_numbers(session)
        count = {
            "bases": _count(session, Base),
            "datasets": _count(session, Dataset),
            "runs": _count(session, Run),
            "versions": _count(session, Version),
        }
        add_event(session, actor, REBUILT, "registry", count)
        return Rebuilt(**count)


def check_empty(sessions: Sessions) -> None:
    """Raise :class:`RefusedError` if the registry holds rows."""
    with sessions.read() as session:
        _check_empty(session, sessions)


def _check_empty(session: Session, sessions: Sessions) -> None:
    for table in Table.metadata.sorted_tables:
        if table.name == ChainHead.__tablename__:
            continue
        if session.execute(select(1).select_from(table).limit(1)).first() is not None:
            raise RefusedError(
                f"The registry '{sessions.engines.where}' is not empty: its table "
                f"'{table.name}' holds rows.",
                "A rebuild is for a registry that was lost. Bring a damaged one back with "
                "`trunkline db restore FILE`, or move it away first.",
            )


def _base_and_dataset(session: Session, provenance: Mapping[str, Any]) -> RestoredLineage:
    base, dataset = provenance["base"], provenance["dataset"]
    find_or_add(session, Base(**base, first_seen=utc_now()), Base.digest == base["digest"])
    if dataset is None:
        return RestoredLineage(base["digest"], None, None)
    columns = ("name", "fingerprint", "split_fingerprint", "rows", "license", "source", "counts")
    row = find_or_add(
        session,
        Dataset(**{name: dataset[name] for name in columns}, first_seen=utc_now()),
        *(getattr(Dataset, name) == dataset[name] for name in columns[:3]),
    )
    return RestoredLineage(base["digest"], row.id, None)


def _add_run(
    session: Session, provenance: Mapping[str, Any], made: RestoredLineage, number: int = 0
) -> Run:
    """The run's row; ``number`` 0 takes the next. One that says no time began with the version."""
    said = provenance["run"]
    created = datetime.fromisoformat(provenance["version"]["created"])
    status = "interrupted" if said["status"] == "running" else said["status"]
    run = Run(
        recipe=said["recipe"],
        status=status,
        base_id=_base_id(session, made),
        dataset_id=made.dataset_id,
        plugin_id=_plugin_id(session, said["plugin"]),
        seed=said["seed"],
        settings=dict(said["settings"]),
        environment=dict(said["environment"]),
        specification=said["specification"],
        report=said["report"],
        started=_time(said["started"]) or created,
        finished=_time(said["finished"]),
    )
    if number:
        run.id = number
    session.add(run)
    session.flush()
    return run


def restore_lineage(
    session: Session, provenance: Mapping[str, Any], actor: str | None
) -> RestoredLineage:
    """Add the base, dataset, plugin, run and evaluations of a provenance."""
    made = _base_and_dataset(session, provenance)
    said = provenance["run"]
    if said is None:
        return made
    run = _add_run(session, provenance, made)
    _add_evaluations(session, provenance, made, run)
    _tell_run(session, said, run.id, actor)
    return RestoredLineage(made.base_digest, made.dataset_id, run.id)


def _add_evaluations(
    session: Session,
    provenance: Mapping[str, Any],
    made: RestoredLineage,
    run: Run,
    version: int | None = None,
) -> None:
    for said in provenance["evaluations"]:
        row = Evaluation(
            version_id=version,
            run_id=run.id,
            recipe=run.recipe,
            dataset_id=made.dataset_id,
            split=said["split"],
            base_id=_base_id(session, made),
            results={**said["results"], TOLD: True},
            created=_time(said["created"]) or utc_now(),
        )
        session.add(row)
        session.flush()
        if version is not None:
            keep_scores(session, row)
            session.flush()


def _add_version(
    session: Session, found: FoundVersion, made: RestoredLineage, run: int | None
) -> None:
    ref = found.ref
    adapter = find_or_add(
        session,
        Adapter(domain=ref.domain, name=ref.name, task=found.task, last_number=0),
        Adapter.domain == ref.domain,
        Adapter.name == ref.name,
    )
    number = ref.number or 0
    adapter.last_number = max(adapter.last_number, number)
    version = Version(
        adapter_id=adapter.id,
        number=number,
        status="visible",
        digest=found.digest,
        path=found.path,
        bytes=found.bytes,
        base_id=_base_id(session, made),
        dataset_id=made.dataset_id,
        run_id=run,
        created=found.created,
        files=dict(found.files),
        template_digest=found.template_digest,
    )
    session.add(version)
    session.flush()
    if run is not None:
        row = session.get_one(Run, run)
        _add_evaluations(session, found.provenance, made, row, version.id)


def _plugin_id(session: Session, said: Mapping[str, Any] | None) -> int | None:
    if said is None:
        return None
    names = ("distribution", "version", "domain")
    return find_or_add(
        session,
        Plugin(**said, first_seen=utc_now()),
        *(getattr(Plugin, name) == said[name] for name in names),
    ).id


def _base_id(session: Session, made: RestoredLineage) -> int:
    return session.scalars(select(Base.id).where(Base.digest == made.base_digest)).one()


def _tell_run(session: Session, said: Mapping[str, Any], number: int, actor: str | None) -> None:
    detail = {"recipe": said["recipe"], "number": said["number"], "started_by": said["actor"]}
    add_event(session, actor, RESTORED, run_subject(number), detail)


def _settle_numbers(session: Session) -> None:
    """Let the next run's number follow the highest; SQLite does so by itself."""
    if session.get_bind().dialect.name == "postgresql":
        highest = select(func.max(Run.id)).scalar_subquery()
        sequence = func.pg_get_serial_sequence(Run.__tablename__, "id")
        last = func.nextval(sequence)
        session.execute(select(func.setval(sequence, func.greatest(highest, last))))


def _count(session: Session, table: type[Table]) -> int:
    return session.scalar(select(func.count()).select_from(table)) or 0


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)

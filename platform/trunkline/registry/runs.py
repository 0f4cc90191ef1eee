"""Runs: executions of recipes, with their metrics over time.

Owns: the run's row from start to end, and what may follow what.
Must not know: how training works.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, Select, delete, insert, select, update
from sqlalchemy.orm import Session

from trunkline.errors import NotFoundError, RegistryError
from trunkline.registry.engine import storable
from trunkline.registry.origins import provenance_of_run
from trunkline.registry.records import MetricRecord, RunRecord
from trunkline.registry.session import RESTORED, Aggregate, add_event, pages, run_subject, utc_now
from trunkline.registry.sources import base_id
from trunkline.registry.tables import (
    Adapter,
    Base,
    Dataset,
    Evaluation,
    Event,
    Plugin,
    Run,
    RunMetric,
    Version,
)

_LAST = 2**31 - 1

ENDS = ("finished", "failed", "interrupted")

RunRow = Row[Run, Base, Dataset, Plugin]
"""The plugin may be None, though an outer join can't say so in its type."""


class Runs(Aggregate):
    """Starts, follows and ends runs."""

    def start(
        self,
        *,
        recipe: str,
        base_digest: str,
        dataset_id: int,
        plugin_id: int | None = None,
        seed: int,
        settings: Mapping[str, Any],
        environment: Mapping[str, Any],
        specification: Mapping[str, Any] | None = None,
        actor: str | None = None,
    ) -> int:
        """Record a run as ``running``; gives its number, which the database hands out.

        Raises:
            NotFoundError: the base was not recorded.
        """
        with self._sessions.write() as session:
            run = Run(
                recipe=recipe,
                status="running",
                base_id=base_id(session, base_digest),
                dataset_id=dataset_id,
                plugin_id=plugin_id,
                seed=seed,
                settings=dict(settings),
                environment=dict(environment),
                specification=None if specification is None else dict(specification),
                started=utc_now(),
            )
            session.add(run)
            session.flush()
            add_event(session, actor, "run.started", run_subject(run.id), {"recipe": recipe})
            return run.id

    def log_metrics(self, run: int, step: int, values: Mapping[str, float]) -> None:
        """Store figures of an optimizer step; the same step and name again replaces them."""
        if not values:
            return
        rows = [
            {
                "run_id": run,
                "step": step,
                "name": name,
                "value": None if math.isnan(value) else float(value),
            }
            for name, value in values.items()
        ]
        with self._sessions.write() as session:
            _run(session, run)
            session.execute(
                delete(RunMetric).where(
                    RunMetric.run_id == run, RunMetric.step == step, RunMetric.name.in_(values)
                )
            )
            session.execute(insert(RunMetric), rows)

    def finish(
        self,
        run: int,
        status: str,
        *,
        report: Mapping[str, Any] | None = None,
        error: str | None = None,
        actor: str | None = None,
    ) -> None:
        """End a running run as ``finished``, ``failed`` or ``interrupted``.

        Raises:
            RegistryError: it has ended already, or ``status`` is none of these.
        """
        if status not in ENDS:
            raise RegistryError(
                f"A run can't end as {status!r}.", f"It ends as one of: {', '.join(ENDS)}."
            )
        with self._sessions.write() as session:
            row = _run(session, run, lock=True)
            if row.status != "running":
                raise RegistryError(
                    f"Run {run} has ended already: it is {row.status}.",
                    f"See it with: trunkline runs show {run}.",
                )
            row.status = status
            row.report = None if report is None else dict(report)
            row.error = error and storable(error)
            row.finished = utc_now()
            detail = {"recipe": row.recipe} | ({} if error is None else {"error": error})
            add_event(session, actor, f"run.{status}", run_subject(run), detail)

    def resume(self, run: int, *, actor: str | None = None) -> None:
        """Set a run that did not finish to ``running`` again; one killed outright still says so.

        Raises:
            RegistryError: it has finished.
        """
        with self._sessions.write() as session:
            row = _run(session, run, lock=True)
            if row.status == "finished":
                raise RegistryError(
                    f"Run {run} has finished, so there is nothing to resume.",
                    f"Train anew with: trunkline train {row.recipe}.",
                )
            detail = {"recipe": row.recipe, "was": row.status}
            row.status, row.error, row.finished = "running", None, None
            add_event(session, actor, "run.resumed", run_subject(run), detail)

    def list(
        self, *, recipe: str | None = None, limit: int = 100, before: int | None = None
    ) -> Sequence[RunRecord]:
        """Runs, newest first; ``before`` a number, for the next page."""
        query = _runs().order_by(Run.id.desc()).limit(limit)
        if recipe is not None:
            query = query.where(Run.recipe == recipe)
        if before is not None:
            query = query.where(Run.id < max(0, min(before, _LAST)))
        with self._sessions.read() as session:
            return _records(session, session.execute(query).all())

    def get(self, number: int) -> RunRecord:
        """One run.

        Raises:
            NotFoundError: no run has this number.
        """
        with self._sessions.read() as session:
            _run(session, number)
            return _records(session, session.execute(_runs().where(Run.id == number)).all())[0]

    def metrics(
        self, run: int, *, name: str | None = None, limit: int = 10_000, offset: int = 0
    ) -> Sequence[MetricRecord]:
        """The figures of a run, by step and name."""
        query = (
            select(RunMetric)
            .where(RunMetric.run_id == run)
            .order_by(RunMetric.step, RunMetric.name)
            .limit(limit)
            .offset(offset)
        )
        if name is not None:
            query = query.where(RunMetric.name == name)
        with self._sessions.read() as session:
            _run(session, run)
            return [
                MetricRecord(
                    step=row.step,
                    name=row.name,
                    value=math.nan if row.value is None else row.value,
                )
                for row in session.scalars(query)
            ]

    def statuses(self, numbers: Collection[int]) -> dict[int, str]:
        """The status of runs by number; unknown ones are left out."""
        found: dict[int, str] = {}
        with self._sessions.read() as session:
            for page in pages(sorted(numbers)):
                query = select(Run.id, Run.status).where(Run.id.in_(page))
                found.update((number, status) for number, status in session.execute(query))
        return found

    def provenance(self, run: int) -> dict[str, Any]:
        """``base``, ``dataset``, ``run`` and ``evaluations`` of a run, as JSON has them."""
        with self._sessions.read() as session:
            return provenance_of_run(session, run)


def take_back_restored(session: Session, number: int, actor: str | None) -> None:
    """Take away a run that was restored for a version which could not be published, with its
    evaluations.

    Its number is not given again; the event of its restoration stands. A run that began here, or
    that a visible or removed version came from, is left alone.
    """
    restored = (Event.subject == run_subject(number)) & (Event.kind == RESTORED)
    of_run = Version.run_id == number
    kept = of_run & Version.status.in_(("visible", "removed"))
    run = session.get(Run, number)
    if (
        run is None
        or session.scalar(select(Event.seq).where(restored).limit(1)) is None
        or session.scalar(select(Version.id).where(kept).limit(1)) is not None
    ):
        return
    session.execute(update(Version).where(of_run).values(run_id=None))
    session.execute(delete(Evaluation).where(Evaluation.run_id == number))
    session.delete(run)
    detail = {"recipe": run.recipe, "reason": "its version could not be published"}
    add_event(session, actor, "run.taken-back", run_subject(number), detail)


def _run(session: Session, number: int, *, lock: bool = False) -> Run:
    row = session.get(Run, number, with_for_update=lock) if 0 < number <= _LAST else None
    if row is None:
        raise NotFoundError(f"There is no run {number}.", "See them with: trunkline runs list.")
    return row


def _runs() -> Select[Run, Base, Dataset, Plugin]:
    return (
        select(Run, Base, Dataset, Plugin)
        .join(Base, Base.id == Run.base_id)
        .join(Dataset, Dataset.id == Run.dataset_id)
        .outerjoin(Plugin, Plugin.id == Run.plugin_id)
    )


def _records(session: Session, rows: Sequence[RunRow]) -> Sequence[RunRecord]:
    made: dict[int | None, list[str]] = {}
    query = (
        select(Version.run_id, Adapter.domain, Adapter.name, Version.number)
        .join(Adapter, Adapter.id == Version.adapter_id)
        .where(Version.run_id.in_([row[0].id for row in rows]), Version.status == "visible")
        .order_by(Version.id)
    )
    for run_id, domain, name, number in session.execute(query):
        made.setdefault(run_id, []).append(f"{domain}/{name}@{number}")
    return [
        RunRecord(
            number=run.id,
            recipe=run.recipe,
            status=run.status,
            base_name=base.name,
            base_digest=base.digest,
            dataset=dataset.name,
            dataset_id=dataset.id,
            dataset_fingerprint=dataset.fingerprint,
            split_fingerprint=dataset.split_fingerprint,
            plugin=None if plugin is None else f"{plugin.distribution} {plugin.version}",
            seed=run.seed,
            settings=run.settings,
            environment=run.environment,
            report=run.report,
            error=run.error,
            started=run.started,
            finished=run.finished,
            versions=tuple(made.get(run.id, ())),
            specification=run.specification,
        )
        for run, base, dataset, plugin in rows
    ]

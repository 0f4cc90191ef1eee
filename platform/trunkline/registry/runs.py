"""Runs of recipes with their metrics over time, and evaluations with their predictions."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session, aliased

from trunkline.errors import NotFoundError, RegistryError
from trunkline.redaction import redact
from trunkline.refs import Ref
from trunkline.registry.chain import add_event
from trunkline.registry.engine import storable
from trunkline.registry.lookup import (
    CHAMPION,
    clamp,
    find_base_id,
    find_run,
    find_version,
    run_subject,
)
from trunkline.registry.mapping import (
    evaluation_record,
    run_records,
    select_evaluations,
    select_runs,
    select_versions,
    version_records,
)
from trunkline.registry.records import (
    EvaluationRecord,
    MetricRecord,
    PredictionRecord,
    RunRecord,
    VersionRecord,
)
from trunkline.registry.scope import Scope, covered_adapters, covered_names
from trunkline.registry.session import Aggregate, pages
from trunkline.registry.tables import (
    Adapter,
    Alias,
    Evaluation,
    Event,
    Prediction,
    Run,
    RunMetric,
    Score,
    Version,
    asks_for_two_persons,
    utc_now,
)

RUN_IMPORTED = "run.imported"
"""Kind of the event of a run that came with a version of another workspace, or from its files."""

END_STATUSES = ("finished", "failed", "interrupted")


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
        """Record a run as ``running`` and return its number, which the database assigns.

        Raises:
            NotFoundError: the base was not recorded.
        """
        with self._sessions.write() as session:
            run = Run(
                recipe=recipe,
                status="running",
                base_id=find_base_id(session, base_digest),
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
        """Store metrics of an optimizer step; the same step and name replace earlier values."""
        if not values:
            return
        now = utc_now()
        rows = [
            {
                "run_id": run,
                "step": step,
                "name": name,
                "value": None if math.isnan(value) else float(value),
                "at": now,
            }
            for name, value in values.items()
        ]
        with self._sessions.write() as session:
            find_run(session, run)
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
        if status not in END_STATUSES:
            raise RegistryError(
                f"A run can't end as {status!r}.", f"Use one of: {', '.join(END_STATUSES)}."
            )
        with self._sessions.write() as session:
            row = find_run(session, run, lock=True)
            if row.status != "running":
                raise RegistryError(
                    f"Run {run} has ended already: its status is {row.status}.",
                    f"See it with: trunkline runs show {run}.",
                )
            row.status = status
            row.report = None if report is None else dict(report)
            error = error and redact(storable(error))
            row.error = error
            row.finished = utc_now()
            detail = {"recipe": row.recipe} | ({} if error is None else {"error": error})
            add_event(session, actor, f"run.{status}", run_subject(run), detail)

    def resume(self, run: int, *, actor: str | None = None) -> None:
        """Set an unfinished run to ``running`` again; a killed one still has that status.

        Raises:
            RegistryError: it has finished.
        """
        with self._sessions.write() as session:
            row = find_run(session, run, lock=True)
            if row.status == "finished":
                raise RegistryError(
                    f"Run {run} has finished, so there is nothing to resume.",
                    f"Start a new one with: trunkline train {row.recipe}.",
                )
            detail = {"recipe": row.recipe, "previous_status": row.status}
            row.status, row.error, row.finished = "running", None, None
            add_event(session, actor, "run.resumed", run_subject(run), detail)

    def record_stop_request(self, run: int, *, actor: str | None = None) -> None:
        """Record that someone asked the process that trains a run to stop."""
        with self._sessions.write() as session:
            row = find_run(session, run)
            detail = {"recipe": row.recipe}
            add_event(session, actor, "run.stop_requested", run_subject(run), detail)

    def list(
        self,
        *,
        recipe: str | None = None,
        status: str | None = None,
        limit: int = 100,
        before: int | None = None,
        scope: Scope = None,
    ) -> Sequence[RunRecord]:
        """Runs, newest first.

        Args:
            recipe, status: only runs of this recipe, or with this status.
            before: only runs with a lower number, for the next page.
            scope: only runs of recipes that these patterns cover.
        """
        query = select_runs().order_by(Run.id.desc()).limit(limit)
        query = query.where(*covered_names(Run.recipe, scope))
        if status is not None:
            query = query.where(Run.status == status)
        if recipe is not None:
            query = query.where(Run.recipe == recipe)
        if before is not None:
            query = query.where(Run.id < clamp(before))
        with self._sessions.read() as session:
            return run_records(session, session.execute(query).all())

    def get(self, number: int) -> RunRecord:
        """One run.

        Raises:
            NotFoundError: no run has this number.
        """
        with self._sessions.read() as session:
            find_run(session, number)
            rows = session.execute(select_runs().where(Run.id == number)).all()
            return run_records(session, rows)[0]

    def metrics(
        self, run: int, *, name: str | None = None, limit: int = 10_000, offset: int = 0
    ) -> Sequence[MetricRecord]:
        """The logged metrics of a run, by step and name."""
        query = (
            select(RunMetric.step, RunMetric.name, RunMetric.value, RunMetric.at)
            .where(RunMetric.run_id == run)
            .order_by(RunMetric.step, RunMetric.name)
            .limit(limit)
            .offset(offset)
        )
        if name is not None:
            query = query.where(RunMetric.name == name)
        with self._sessions.read() as session:
            find_run(session, run)
            return [
                MetricRecord(
                    step=step, name=name, value=math.nan if value is None else value, at=at
                )
                for step, name, value, at in session.execute(query)
            ]

    def progress(self, run: int) -> tuple[str, int]:
        """The status of a run and its last step with a metric; 0 before the first.

        Raises:
            NotFoundError: no run has this number.
        """
        with self._sessions.read() as session:
            last = select(func.max(RunMetric.step)).where(RunMetric.run_id == run)
            return find_run(session, run).status, session.scalar(last) or 0

    def statuses(self, numbers: Collection[int]) -> dict[int, str]:
        """The status of runs by number; unknown numbers are left out."""
        statuses: dict[int, str] = {}
        with self._sessions.read() as session:
            for page in pages(sorted(numbers)):
                query = select(Run.id, Run.status).where(Run.id.in_(page))
                statuses.update((number, status) for number, status in session.execute(query))
        return statuses


class Evaluations(Aggregate):
    """Records evaluations and lists them.

    Predictions are stored by row id, so that two versions can be compared row by row.
    """

    def record(
        self,
        *,
        recipe: str,
        base_digest: str,
        dataset_id: int,
        split: str,
        results: Mapping[str, Any],
        predictions: Iterable[PredictionRecord] = (),
        version: Ref | None = None,
        run: int | None = None,
    ) -> int:
        """Store scores and predictions together and return the evaluation's id.

        Args:
            version: what was evaluated, if it is published. An evaluation under a ``run`` becomes
                the version's when the run's version is published; neither means the bare base.

        Raises:
            NotFoundError: ``version`` resolves to no visible version, or the base is not recorded.
        """
        with self._sessions.write() as session:
            row = Evaluation(
                version_id=None if version is None else find_version(session, version).id,
                run_id=run,
                recipe=recipe,
                dataset_id=dataset_id,
                split=split,
                base_id=find_base_id(session, base_digest),
                results=dict(results),
                created=utc_now(),
            )
            session.add(row)
            session.flush()
            stored = [_prediction_values(row.id, one) for one in predictions]
            if stored:
                session.execute(insert(Prediction), stored)
            if row.version_id is not None:
                store_scores(session, row)
            return row.id

    def list(
        self,
        *,
        version: Ref | None = None,
        recipe: str | None = None,
        run: int | None = None,
        limit: int = 100,
        offset: int = 0,
        before: int | None = None,
    ) -> Sequence[EvaluationRecord]:
        """Evaluations of a version, a recipe or a run, newest first.

        Args:
            version: may be a removed one, by number or digest.
            before: only evaluations older than the one with this id, for the next page.

        Raises:
            NotFoundError: ``version`` resolves to no version.
        """
        query = select_evaluations().order_by(Evaluation.id.desc()).limit(limit).offset(offset)
        if recipe is not None:
            query = query.where(Evaluation.recipe == recipe)
        if run is not None:
            query = query.where(Evaluation.run_id == run)
        if before is not None:
            query = query.where(Evaluation.id < clamp(before))
        with self._sessions.read() as session:
            if version is not None:
                row = find_version(session, version, include_removed=True)
                query = query.where(Evaluation.version_id == row.id)
            return [evaluation_record(row) for row in session.execute(query)]

    def unpromoted(
        self,
        *,
        two_persons: bool = False,
        scope: Scope = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Sequence[tuple[VersionRecord, EvaluationRecord]]:
        """Versions that may follow their champion, each with its newest evaluation on test rows.

        These are the newest version of each adapter, unless its champion points there; the newest
        first.

        Args:
            two_persons: only those whose recorded gate asks for a second person.
            scope: only adapters that these patterns cover.
        """
        later = aliased(Version)
        newer = select(later.id).where(
            later.adapter_id == Version.adapter_id,
            later.status == "visible",
            later.number > Version.number,
        )
        live = select(Alias.id).where(Alias.version_id == Version.id, Alias.alias == CHAMPION)
        other = aliased(Evaluation)
        tested = select(func.max(other.id)).where(
            other.version_id == Version.id, other.split == "test"
        )
        query = (
            select(Version.id, Evaluation.id)
            .join(Adapter, Adapter.id == Version.adapter_id)
            .join(Evaluation, Evaluation.id == tested.scalar_subquery())
            .where(Version.status == "visible", ~newer.exists(), ~live.exists())
            .where(*covered_adapters(scope))
            .order_by(Version.id.desc())
            .limit(limit)
            .offset(offset)
        )
        with self._sessions.read() as session:
            if two_persons:
                indexed = asks_for_two_persons(session.get_bind().dialect.name)
                rare = select(Evaluation.version_id).where(indexed)
                query = query.where(
                    Version.id.in_(rare), Evaluation.results["gate"]["two_persons"].as_boolean()
                )
            ids = {evaluation: version for version, evaluation in session.execute(query)}
            versions = select_versions().where(Version.id.in_(ids.values()))
            rows = session.execute(versions.order_by(Version.id.desc())).all()
            evaluations = select_evaluations().where(Evaluation.id.in_(ids))
            by_version = {
                ids[row[0].id]: evaluation_record(row) for row in session.execute(evaluations)
            }
            records = version_records(session, rows, scored=True)
            return [
                (record, by_version[row[0].id]) for record, row in zip(records, rows, strict=True)
            ]

    def predictions(
        self, evaluation: int, *, limit: int | None = None, offset: int = 0
    ) -> Sequence[PredictionRecord]:
        """The predictions of an evaluation by row id; all of them without a ``limit``.

        Raises:
            NotFoundError: there is no such evaluation.
        """
        query = (
            select(
                Prediction.row_id,
                Prediction.group_name,
                Prediction.target,
                Prediction.prediction,
                Prediction.confidence,
                Prediction.baseline_prediction,
            )
            .where(Prediction.evaluation_id == evaluation)
            .order_by(Prediction.row_id)
            .limit(limit)
            .offset(offset)
        )
        with self._sessions.read() as session:
            if session.get(Evaluation, evaluation) is None:
                raise NotFoundError(
                    f"There is no evaluation {evaluation}.",
                    "See a version's with: trunkline adapters show.",
                )
            return [
                PredictionRecord(
                    row_id=row_id,
                    group=group,
                    target=target,
                    prediction=prediction,
                    confidence=confidence,
                    baseline_prediction=baseline,
                )
                for row_id, group, target, prediction, confidence, baseline in session.execute(
                    query
                )
            ]


def _prediction_values(evaluation: int, prediction: PredictionRecord) -> dict[str, Any]:
    baseline = prediction.baseline_prediction
    return {
        "evaluation_id": evaluation,
        "row_id": prediction.row_id,
        "group_name": prediction.group,
        "target": storable(prediction.target),
        "prediction": storable(prediction.prediction),
        "confidence": prediction.confidence,
        "baseline_prediction": baseline and storable(baseline),
    }


def adopt_evaluations(session: Session, run: int, version: int) -> None:
    """Give the evaluations of a run to the version that it published."""
    of_run = (Evaluation.run_id == run, Evaluation.version_id.is_(None))
    for evaluation in session.scalars(select(Evaluation).where(*of_run).order_by(Evaluation.id)):
        evaluation.version_id = version
        store_scores(session, evaluation)


def store_scores(session: Session, evaluation: Evaluation) -> None:
    """Replace the searchable scores of a version's split with those of this evaluation."""
    scores = evaluation.results.get("scores")
    if not isinstance(scores, Mapping):
        return
    of_split = (Score.version_id == evaluation.version_id, Score.split == evaluation.split)
    session.execute(delete(Score).where(*of_split))
    session.add_all(
        Score(
            version_id=evaluation.version_id,
            split=evaluation.split,
            metric=metric,
            value=score.get("value"),
            low=score.get("low"),
            high=score.get("high"),
            evaluation_id=evaluation.id,
        )
        for metric, score in scores.items()
        if isinstance(score, Mapping)
    )


def discard_imported_run(session: Session, number: int, actor: str | None) -> None:
    """Delete a run that was imported for a version which could not be published.

    Its evaluations are deleted too. Its number is not reused, and the event of its import stays. A
    run that was started here, or that a visible or removed version came from, is left alone.
    """
    imported = (Event.subject == run_subject(number)) & (Event.kind == RUN_IMPORTED)
    of_run = Version.run_id == number
    in_use = of_run & Version.status.in_(("visible", "removed"))
    run = session.get(Run, number)
    if (
        run is None
        or session.scalar(select(Event.seq).where(imported).limit(1)) is None
        or session.scalar(select(Version.id).where(in_use).limit(1)) is not None
    ):
        return
    session.execute(update(Version).where(of_run).values(run_id=None))
    session.execute(delete(Evaluation).where(Evaluation.run_id == number))
    session.delete(run)
    detail = {"recipe": run.recipe, "reason": "its version could not be published"}
    add_event(session, actor, "run.discarded", run_subject(number), detail)

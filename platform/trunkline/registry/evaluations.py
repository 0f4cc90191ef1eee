"""Evaluations: figures on a split, with the prediction of every row.

Owns: their rows; predictions are kept by row id, so that versions can be compared row by row.
Must not know: how a figure is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from trunkline.errors import NotFoundError
from trunkline.refs import Ref
from trunkline.registry.engine import storable
from trunkline.registry.lookup import find_version
from trunkline.registry.records import EvaluationRecord, PredictionRecord
from trunkline.registry.session import Aggregate, utc_now
from trunkline.registry.sources import base_id
from trunkline.registry.tables import (
    Adapter,
    Base,
    Dataset,
    Evaluation,
    Prediction,
    Score,
    Version,
)

_LAST = 2**31 - 1


class Evaluations(Aggregate):
    """Records evaluations and gives them back."""

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
        """Store figures and predictions together; gives the evaluation's id.

        Args:
            version: what was evaluated, if it is published. One that is recorded under a ``run``
                before its version is published becomes the version's when that happens; neither
                means the bare base.

        Raises:
            NotFoundError: no visible version answers ``version``, or the base is not recorded.
        """
        with self._sessions.write() as session:
            row = Evaluation(
                version_id=None if version is None else find_version(session, version)[0][0].id,
                run_id=run,
                recipe=recipe,
                dataset_id=dataset_id,
                split=split,
                base_id=base_id(session, base_digest),
                results=dict(results),
                created=utc_now(),
            )
            session.add(row)
            session.flush()
            answers = [
                {
                    "evaluation_id": row.id,
                    "row_id": answer.row_id,
                    "group_name": answer.group,
                    "target": storable(answer.target),
                    "prediction": storable(answer.prediction),
                    "confidence": answer.confidence,
                    "baseline_prediction": answer.baseline_prediction
                    and storable(answer.baseline_prediction),
                }
                for answer in predictions
            ]
            if answers:
                session.execute(insert(Prediction), answers)
            if row.version_id is not None:
                keep_scores(session, row)
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
        """Evaluations, newest first, of a version, a recipe or a run.

        Args:
            version: a removed one answers to its number and digest too.
            before: only what is older than the evaluation with this id, for the next page.

        Raises:
            NotFoundError: no version answers ``version``.
        """
        query = (
            select(Evaluation, Dataset, Base.digest, Adapter, Version.number)
            .join(Dataset, Dataset.id == Evaluation.dataset_id)
            .join(Base, Base.id == Evaluation.base_id)
            .outerjoin(Version, Version.id == Evaluation.version_id)
            .outerjoin(Adapter, Adapter.id == Version.adapter_id)
            .order_by(Evaluation.id.desc())
            .limit(limit)
            .offset(offset)
        )
        if recipe is not None:
            query = query.where(Evaluation.recipe == recipe)
        if run is not None:
            query = query.where(Evaluation.run_id == run)
        if before is not None:
            query = query.where(Evaluation.id < max(0, min(before, _LAST)))
        with self._sessions.read() as session:
            if version is not None:
                row = find_version(session, version, gone=True)[0][0]
                query = query.where(Evaluation.version_id == row.id)
            return [
                EvaluationRecord(
                    id=row.id,
                    version=f"{adapter.domain}/{adapter.name}@{number}" if adapter else None,
                    run=row.run_id,
                    recipe=row.recipe,
                    dataset=dataset.name,
                    dataset_fingerprint=dataset.fingerprint,
                    split_fingerprint=dataset.split_fingerprint,
                    split=row.split,
                    base_digest=digest,
                    results=row.results,
                    created=row.created,
                )
                for row, dataset, digest, adapter, number in session.execute(query)
            ]

    def predictions(
        self, evaluation: int, *, limit: int | None = None, offset: int = 0
    ) -> Sequence[PredictionRecord]:
        """The predictions of an evaluation by row id; all of them unless ``limit`` is given.

        Raises:
            NotFoundError: there is no such evaluation.
        """
        query = (
            select(Prediction)
            .where(Prediction.evaluation_id == evaluation)
            .order_by(Prediction.row_id)
            .limit(limit)
            .offset(offset)
        )
        with self._sessions.read() as session:
            _check_exists(session, evaluation)
            return [
                PredictionRecord(
                    row_id=row.row_id,
                    group=row.group_name,
                    target=row.target,
                    prediction=row.prediction,
                    confidence=row.confidence,
                    baseline_prediction=row.baseline_prediction,
                )
                for row in session.scalars(query)
            ]


def keep_scores(session: Session, evaluation: Evaluation) -> None:
    """Let the figures of a version's evaluation stand for its split, in place of older ones."""
    figures = evaluation.results.get("scores")
    if not isinstance(figures, Mapping):
        return
    of_split = (Score.version_id == evaluation.version_id, Score.split == evaluation.split)
    session.execute(delete(Score).where(*of_split))
    session.add_all(
        Score(
            version_id=evaluation.version_id,
            split=evaluation.split,
            metric=metric,
            value=figure.get("value"),
            low=figure.get("low"),
            high=figure.get("high"),
            evaluation_id=evaluation.id,
        )
        for metric, figure in figures.items()
        if isinstance(figure, Mapping)
    )


def _check_exists(session: Session, evaluation: int) -> None:
    if session.get(Evaluation, evaluation) is None:
        raise NotFoundError(
            f"There is no evaluation {evaluation}.",
            "See a version's with: trunkline adapters show.",
        )

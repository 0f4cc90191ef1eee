"""What the registry knows of a version's origin, in the form of ``provenance.json``.

Owns: the reading that :mod:`trunkline.registry.restoring` turns back into rows.
Must not know: files.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from trunkline.registry.lookup import VersionRow
from trunkline.registry.restoring import TOLD
from trunkline.registry.session import RESTORED, run_subject
from trunkline.registry.tables import Base, Dataset, Evaluation, Event, Plugin, Run

MOST_EVALUATIONS = 1000
"""So many of a version's evaluations are told, the newest."""


def provenance_of_version(session: Session, row: VersionRow) -> dict[str, Any]:
    """``base``, ``dataset``, ``run`` and ``evaluations`` of a version."""
    version, _, base, dataset = row
    run = None if version.run_id is None else session.get_one(Run, version.run_id)
    return _provenance(
        session, base, dataset, run, _evaluations(session, Evaluation.version_id == version.id)
    )


def provenance_of_run(session: Session, number: int) -> dict[str, Any]:
    """The same of a run, which has no version yet."""
    run = session.get_one(Run, number)
    base = session.get_one(Base, run.base_id)
    dataset = session.get_one(Dataset, run.dataset_id)
    return _provenance(
        session, base, dataset, run, _evaluations(session, Evaluation.run_id == run.id)
    )


def _provenance(
    session: Session,
    base: Base,
    dataset: Dataset | None,
    run: Run | None,
    evaluations: Sequence[Evaluation],
) -> dict[str, Any]:
    return {
        "base": _base(base),
        "dataset": None if dataset is None else _dataset(dataset),
        "run": None if run is None else _run(session, run),
        "evaluations": [
            {
                "split": one.split,
                "results": {name: told for name, told in one.results.items() if name != TOLD},
                "created": _text(one.created),
            }
            for one in evaluations
        ],
    }


def _evaluations(session: Session, which: ColumnElement[bool]) -> list[Evaluation]:
    """The newest, oldest first."""
    query = select(Evaluation).where(which).order_by(Evaluation.id.desc())
    return list(session.scalars(query.limit(MOST_EVALUATIONS)))[::-1]


def _base(row: Base) -> dict[str, Any]:
    names = ("digest", "name", "source", "architecture", "parameters", "dtype")
    return {name: getattr(row, name) for name in names}


def _dataset(row: Dataset) -> dict[str, Any]:
    names = ("name", "fingerprint", "split_fingerprint", "rows", "license", "source", "counts")
    return {name: getattr(row, name) for name in names}


def _run(session: Session, row: Run) -> dict[str, Any]:
    plugin = None if row.plugin_id is None else session.get_one(Plugin, row.plugin_id)
    names = ("recipe", "status", "seed", "settings", "environment", "specification", "report")
    return {
        "number": row.id,
        **{name: getattr(row, name) for name in names},
        "started": _text(row.started),
        "finished": _text(row.finished),
        "plugin": None if plugin is None else _plugin(plugin),
        "actor": _starter(session, row.id),
    }


def _plugin(row: Plugin) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("distribution", "version", "api", "domain")}


def _starter(session: Session, run: int) -> str | None:
    """Who began the run: here, or where it was taken over from."""
    query = select(Event).where(
        Event.subject == run_subject(run), Event.kind.in_(("run.started", RESTORED))
    )
    first = session.scalars(query.order_by(Event.seq).limit(1)).first()
    if first is None:
        return None
    said = first.detail.get("started_by") if first.kind == RESTORED else first.actor
    return said if isinstance(said, str) else None


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()

"""From rows to records: the joins that a record needs, and the one mapper that builds it.

:func:`to_record` copies the columns that have a field's name. The other functions add what comes
from other tables, for a page of rows in one query each.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

from sqlalchemy import (
    ColumnElement,
    Integer,
    Row,
    Select,
    and_,
    column,
    func,
    select,
    values,
)
from sqlalchemy.orm import Session, aliased

from trunkline.registry.actors import process_is_alive
from trunkline.registry.records import (
    AdapterRecord,
    AliasMoveRecord,
    EvaluationRecord,
    KeyRecord,
    MergeRecord,
    ParentRecord,
    RequestRecord,
    RunRecord,
    ScoreSummary,
    ServerRecord,
    VersionRecord,
)
from trunkline.registry.tables import (
    Adapter,
    Alias,
    AliasMove,
    ApiKey,
    Base,
    Dataset,
    Evaluation,
    LoggedRequest,
    Plugin,
    Run,
    Score,
    Server,
    Table,
    Version,
    VersionParent,
)

ALIVE_SECONDS = 90
"""A server without a heartbeat for this long is not alive."""

Record = TypeVar("Record")

VersionRow = Row[Version, Adapter, Base, Dataset]
"""The dataset may be None, though the type of an outer join can't express it."""

AdapterRow = Row[Adapter, int, int]
"""An adapter, its newest visible number, and how many versions are visible."""

RunRow = Row[Run, Base, Dataset, Plugin]
"""The plugin may be None, though the type of an outer join can't express it."""


def to_record(kind: type[Record], row: Table, **given: Any) -> Record:
    """Build a record of ``given`` fields and, for all others, the row's columns of that name."""
    names = _FIELDS.get(kind)
    if names is None:
        names = _FIELDS[kind] = tuple(field.name for field in fields(cast(Any, kind)))
    columns = {name: getattr(row, name) for name in names if name not in given}
    return kind(**columns, **given)


_FIELDS: dict[type[Any], tuple[str, ...]] = {}


# ---------------------------------------------------------------------------- adapters, versions


def _has_versions(*statuses: str) -> ColumnElement[bool]:
    return (
        select(Version.id)
        .where(Version.adapter_id == Adapter.id, Version.status.in_(statuses))
        .correlate(Adapter)
        .exists()
    )


HAS_VISIBLE_VERSION = _has_versions("visible")
"""An adapter without a visible version is not listed."""

HAD_VISIBLE_VERSION = _has_versions("visible", "removed")


def select_adapters() -> Select[Adapter, int, int]:
    """Every listed adapter as an :data:`AdapterRow`."""
    visible = (Version.adapter_id == Adapter.id, Version.status == "visible")
    newest = select(func.max(Version.number)).where(*visible).scalar_subquery()
    count = select(func.count(Version.id)).where(*visible).scalar_subquery()
    return select(Adapter, newest, count).where(HAS_VISIBLE_VERSION)


def select_versions(*, removed: bool = False) -> Select[Version, Adapter, Base, Dataset]:
    """Every visible version, and with ``removed`` every removed one, as a :data:`VersionRow`."""
    statuses = Version.status.in_(("visible", "removed"))
    return (
        select(Version, Adapter, Base, Dataset)
        .join(Adapter, Adapter.id == Version.adapter_id)
        .join(Base, Base.id == Version.base_id)
        .outerjoin(Dataset, Dataset.id == Version.dataset_id)
        .where(statuses if removed else Version.status == "visible")
    )


def version_ids(session: Session, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Pairs of an adapter's id and a number → the version's id, where there is one.

    The pairs are a table of their own, so that each is looked up by the index; SQLite would scan
    the index for ``(adapter_id, number) IN (…)``.
    """
    if not pairs:
        return {}
    wanted = (
        values(column("adapter_id", Integer), column("number", Integer), name="wanted")
        .data(list(pairs))
        .cte("wanted")
    )
    query = select(Version.adapter_id, Version.number, Version.id).join(
        wanted,
        and_(Version.adapter_id == wanted.c.adapter_id, Version.number == wanted.c.number),
    )
    return {(adapter, number): id for adapter, number, id in session.execute(query)}


def adapter_records(
    session: Session, rows: Sequence[AdapterRow], *, scored: bool = False
) -> list[AdapterRecord]:
    """The adapters with their aliases and, if ``scored``, the newest versions' scores."""
    aliases: dict[int, dict[str, int]] = {}
    query = (
        select(Alias.adapter_id, Alias.alias, Version.number)
        .join(Version, Version.id == Alias.version_id)
        .where(Alias.adapter_id.in_([row[0].id for row in rows]))
        .order_by(Alias.alias)
    )
    for adapter_id, alias, number in session.execute(query):
        aliases.setdefault(adapter_id, {})[alias] = number
    newest_ids = version_ids(session, [(adapter.id, newest) for adapter, newest, _ in rows])
    scores = _score_summaries(session, list(newest_ids.values()) if scored else [])
    of_newest = (
        select(Version.id, Base.name, Base.modality)
        .join(Base, Base.id == Version.base_id)
        .where(Version.id.in_(newest_ids.values()))
    )
    bases = {id: {"base": name, "modality": kind} for id, name, kind in session.execute(of_newest)}
    return [
        to_record(
            AdapterRecord,
            adapter,
            newest=newest,
            versions=count,
            aliases=aliases.get(adapter.id, {}),
            score=scores.get(newest_ids.get((adapter.id, newest), 0)),
            **bases[newest_ids[adapter.id, newest]],
        )
        for adapter, newest, count in rows
    ]


def version_records(
    session: Session, rows: Sequence[VersionRow], *, scored: bool = False
) -> list[VersionRecord]:
    """The versions with the aliases that point at each and, if ``scored``, their scores."""
    ids = [row[0].id for row in rows]
    aliases: dict[int, list[str]] = {}
    query = select(Alias.version_id, Alias.alias).where(Alias.version_id.in_(ids))
    for version_id, alias in session.execute(query.order_by(Alias.alias)):
        aliases.setdefault(version_id, []).append(alias)
    scores = _score_summaries(session, ids if scored else [])
    merges = _merge_records(session, [row[0] for row in rows])
    return [
        to_record(
            VersionRecord,
            version,
            domain=adapter.domain,
            name=adapter.name,
            task=adapter.task,
            digest=version.digest or "",
            path=version.path or "",
            bytes=version.bytes or 0,
            base_name=base.name,
            base_digest=base.digest,
            modality=base.modality,
            dataset=None if dataset is None else dataset.name,
            dataset_fingerprint=None if dataset is None else dataset.fingerprint,
            split_fingerprint=None if dataset is None else dataset.split_fingerprint,
            run=version.run_id,
            aliases=tuple(aliases.get(version.id, ())),
            score=scores.get(version.id),
            merge=merges.get(version.id),
        )
        for version, adapter, base, dataset in rows
    ]


def _merge_records(session: Session, versions: Sequence[Version]) -> dict[int, MergeRecord]:
    """Version id → how it was merged, for those that were."""
    methods = {version.id: version.merge for version in versions if version.merge is not None}
    if not methods:
        return {}
    parents: dict[int, list[ParentRecord]] = {}
    query = select(VersionParent).where(VersionParent.version_id.in_(methods))
    for row in session.scalars(query.order_by(VersionParent.version_id, VersionParent.position)):
        parents.setdefault(row.version_id, []).append(to_record(ParentRecord, row))
    return {
        id: MergeRecord(parents=tuple(parents.get(id, ())), **method)
        for id, method in methods.items()
    }


def version_record(session: Session, version: Version) -> VersionRecord:
    """A visible version's record."""
    row = session.execute(select_versions().where(Version.id == version.id)).one()
    return version_records(session, [row])[0]


def _score_summaries(session: Session, versions: Sequence[int]) -> dict[int, ScoreSummary]:
    """Version id → its deciding test score, if it has one, in one query."""
    if not versions:
        return {}
    deciding = Evaluation.results["metric"].as_string()
    query = (
        select(
            Score,
            Evaluation.results["verdict"].as_string(),
            Evaluation.results["best_baseline"].as_string(),
            Evaluation.results["baselines"],
        )
        .join(Evaluation, Evaluation.id == Score.evaluation_id)
        .where(
            Score.version_id.in_(versions),
            Score.split == "test",
            Score.metric == deciding,
            Score.value.is_not(None),
        )
    )
    return {
        score.version_id: to_record(
            ScoreSummary,
            score,
            low=math.nan if score.low is None else score.low,
            high=math.nan if score.high is None else score.high,
            verdict=verdict or "-",
            baseline=baseline,
            baseline_value=_baseline_value(baselines, baseline, score.metric),
        )
        for score, verdict, baseline, baselines in session.execute(query)
    }


def _baseline_value(baselines: Any, baseline: str | None, metric: str) -> float | None:
    """The score of a baseline in an evaluation, which may be imported and of any form."""
    value: Any = baselines
    for name in (baseline, metric, "value"):
        value = value.get(name) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


# ---------------------------------------------------------------------------------- alias moves

_New, _Old = aliased(Version), aliased(Version)


def select_moves() -> Select[AliasMove, str, str, int | None, int | None]:
    """Every alias move with its adapter's domain and name, and the new and old numbers."""
    return (
        select(AliasMove, Adapter.domain, Adapter.name, _New.number, _Old.number)
        .join(Adapter, Adapter.id == AliasMove.adapter_id)
        .outerjoin(_New, _New.id == AliasMove.version_id)
        .outerjoin(_Old, _Old.id == AliasMove.old_version_id)
    )


def move_records(
    session: Session, *where: ColumnElement[bool], limit: int | None = None
) -> list[AliasMoveRecord]:
    """The alias moves that match ``where``, newest first."""
    query = select_moves().where(*where).order_by(AliasMove.id.desc()).limit(limit)
    return [
        to_record(AliasMoveRecord, move, adapter=f"{domain}/{name}", new=new, old=old)
        for move, domain, name, new, old in session.execute(query)
    ]


# --------------------------------------------------------------------------- runs, evaluations


def select_runs() -> Select[Run, Base, Dataset, Plugin]:
    """Every run as a :data:`RunRow`."""
    return (
        select(Run, Base, Dataset, Plugin)
        .join(Base, Base.id == Run.base_id)
        .join(Dataset, Dataset.id == Run.dataset_id)
        .outerjoin(Plugin, Plugin.id == Run.plugin_id)
    )


def run_records(session: Session, rows: Sequence[RunRow]) -> list[RunRecord]:
    """The runs with the visible versions that each published."""
    published: dict[int | None, list[str]] = {}
    query = (
        select(Version.run_id, Adapter.domain, Adapter.name, Version.number)
        .join(Adapter, Adapter.id == Version.adapter_id)
        .where(Version.run_id.in_([row[0].id for row in rows]), Version.status == "visible")
        .order_by(Version.id)
    )
    for run_id, domain, name, number in session.execute(query):
        published.setdefault(run_id, []).append(f"{domain}/{name}@{number}")
    return [
        to_record(
            RunRecord,
            run,
            number=run.id,
            base_name=base.name,
            base_digest=base.digest,
            dataset=dataset.name,
            dataset_fingerprint=dataset.fingerprint,
            split_fingerprint=dataset.split_fingerprint,
            plugin=None if plugin is None else f"{plugin.distribution} {plugin.version}",
            versions=tuple(published.get(run.id, ())),
        )
        for run, base, dataset, plugin in rows
    ]


def select_evaluations() -> Select[Evaluation, Dataset, str, Adapter, int]:
    """Every evaluation with its dataset, base digest, and, if it has a version, the latter."""
    return (
        select(Evaluation, Dataset, Base.digest, Adapter, Version.number)
        .join(Dataset, Dataset.id == Evaluation.dataset_id)
        .join(Base, Base.id == Evaluation.base_id)
        .outerjoin(Version, Version.id == Evaluation.version_id)
        .outerjoin(Adapter, Adapter.id == Version.adapter_id)
    )


def evaluation_record(row: Row[Evaluation, Dataset, str, Adapter, int]) -> EvaluationRecord:
    """A row of :func:`select_evaluations` as a record."""
    evaluation, dataset, base_digest, adapter, number = row
    return to_record(
        EvaluationRecord,
        evaluation,
        version=f"{adapter.domain}/{adapter.name}@{number}" if adapter else None,
        run=evaluation.run_id,
        dataset=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        split_fingerprint=dataset.split_fingerprint,
        base_digest=base_digest,
    )


# -------------------------------------------------------------------- servers, keys, requests


def select_servers() -> Select[Server, str, str]:
    """Every server with the name and digest of its base, if recorded."""
    return select(Server, Base.name.label("base_name"), Base.digest.label("base_digest")).join(
        Base, Server.base_id == Base.id, isouter=True
    )


def server_record(row: Row[*tuple[Any, ...]], now: datetime) -> ServerRecord:
    """A row of :func:`select_servers` as a record; ``now`` is the database's time."""
    server: Server = row.Server
    late = now - server.last_seen > timedelta(seconds=ALIVE_SECONDS)
    dead = server.host == socket.gethostname() and not process_is_alive(server.pid)
    return to_record(
        ServerRecord,
        server,
        number=server.id,
        base_name=row.base_name,
        base_digest=row.base_digest,
        alive=server.stopped is None and not late and not dead,
    )


def key_record(row: ApiKey) -> KeyRecord:
    """A key's row as a record."""
    return to_record(KeyRecord, row, adapters=tuple(row.adapters))


def request_record(row: LoggedRequest) -> RequestRecord:
    """A row of the request log as a record."""
    return to_record(RequestRecord, row, key=row.key_id)

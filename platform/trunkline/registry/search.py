"""Searching versions: a search as a query, a page at a time.

A page is scanned from the newest version to older ones, with an index lookup for each condition,
and ends when it is full or after :data:`SCAN_LIMIT` versions: so no query grows with the table. If
few versions meet a required condition, they are collected first and only they are scanned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import eq, ge, gt, le, lt
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    and_,
    cast,
    exists,
    func,
    literal,
    not_,
    or_,
    select,
)
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from trunkline.refs import Ref
from trunkline.registry.lookup import find_version
from trunkline.registry.mapping import select_versions, version_ids, version_records
from trunkline.registry.records import VersionRecord
from trunkline.registry.scope import Scope, covered_adapters
from trunkline.registry.search_syntax import (
    And,
    Condition,
    FieldCondition,
    Not,
    Or,
    ScoreCondition,
    TagCondition,
    parse,
)
from trunkline.registry.tables import Adapter, Alias, Base, Dataset, Score, Tag, Version

PREFETCH_LIMIT = 1000
"""If at most this many versions meet a required condition, they are collected first."""

SCAN_LIMIT = 10_000
"""The most versions that are scanned for one page."""

_OPERATORS = {"=": eq, "<": lt, "<=": le, ">": gt, ">=": ge}
_NAME = Adapter.domain + "/" + Adapter.name
_REF = _NAME + "@" + cast(Version.number, String)
_COLUMNS: dict[str, InstrumentedAttribute[Any]] = {
    "domain": Adapter.domain,
    "name": Adapter.name,
    "task": Adapter.task,
    "version": Version.number,
    "digest": Version.digest,
    "base": Base.name,
    "modality": Base.modality,
    "dataset": Dataset.name,
    "license": Dataset.license,
    "rows": Dataset.fingerprint,
    "run": Version.run_id,
    "bytes": Version.bytes,
    "created": Version.created,
}
_SUBJECT = re.compile(r"([a-z][a-z0-9-]*)/([a-z][a-z0-9-]*)(?:@([0-9]{1,9}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of matching versions.

    Attributes:
        versions: newest first, with their scores.
        next: the ``after`` of the next page; None on the last one. A page may hold fewer versions
            than its limit, even none, and still have a next one.
    """

    versions: tuple[VersionRecord, ...]
    next: Ref | None


def find_versions(
    session: Session, where: str, limit: int, after: Ref | None, scope: Scope = None
) -> Page:
    """The visible versions that match a search, of the adapters in a scope."""
    condition = parse(where)
    matching = _matching(condition).where(*covered_adapters(scope))
    return _page(session, matching, _prefetch(session, condition), limit, after, scope)


def find_removed(session: Session, limit: int, after: Ref | None) -> Page:
    """The removed versions, those that were published last first."""
    query = select(Version.id).where(Version.status == "removed")
    return _page(session, query, None, limit, after)


def _page(
    session: Session,
    matching: Select[int],
    candidates: list[int] | None,
    limit: int,
    after: Ref | None,
    scope: Scope = None,
) -> Page:
    """The newest matches that follow ``after``."""
    before = None if after is None else find_version(session, after, include_removed=True).id
    lowest = 0
    if candidates is not None:
        matching = matching.where(Version.id.in_(candidates))
    else:
        newest = session.scalar(select(func.max(Version.id))) or 0
        lowest = max(0, (newest + 1 if before is None else before) - SCAN_LIMIT)
        matching = matching.where(Version.id >= lowest)
    if before is not None:
        matching = matching.where(Version.id < before)
    ids = session.scalars(matching.order_by(Version.id.desc()).limit(limit + 1)).all()
    rows = session.execute(
        select_versions(removed=True).where(Version.id.in_(ids[:limit])).order_by(Version.id.desc())
    ).all()
    records = tuple(version_records(session, rows, scored=True))
    if len(ids) > limit:
        return Page(records, records[-1].ref)
    return Page(records, _last_scanned(session, lowest, scope))


def _matching(condition: Condition) -> Select[int]:
    """Ids of the visible versions that meet a condition."""
    return (
        select(Version.id)
        .join(Adapter, Adapter.id == Version.adapter_id)
        .outerjoin(Base, Base.id == Version.base_id)
        .outerjoin(Dataset, Dataset.id == Version.dataset_id)
        .where(Version.status == "visible", _expression(condition))
    )


def _last_scanned(session: Session, lowest: int, scope: Scope) -> Ref | None:
    """The oldest version in scope that was scanned, if there are older ones."""
    listed = Version.status.in_(("visible", "removed"))
    if session.scalar(select(Version.id).where(Version.id < lowest, listed).limit(1)) is None:
        return None
    query = select_versions(removed=True).where(*covered_adapters(scope))
    row = session.execute(
        query.where(Version.id >= lowest).order_by(Version.id).limit(1)
    ).one_or_none()
    if row is None:  # none of those scanned is in scope; the oldest of all leads on
        row = session.execute(
            query.where(Version.id < lowest).order_by(Version.id.desc()).limit(1)
        ).one_or_none()
    if row is None:
        return None
    return Ref(row[1].domain, row[1].name, str(row[0].number))


def _prefetch(session: Session, condition: Condition) -> list[int] | None:
    """Ids of the versions that meet a required condition, if an index shows that they are few."""
    scores: dict[tuple[str, str], list[ColumnElement[bool]]] = {}
    for part in _required(condition):
        if isinstance(part, ScoreCondition):
            if part.bound != "value" or part.operator == "!=":
                continue
            scores.setdefault((part.split, part.metric), []).extend(_compare_score(part))
            continue
        ids = _ids_by_index(session, part)
        if ids is not None and len(ids) <= PREFETCH_LIMIT:
            return ids
    for conditions in scores.values():
        query = select(Score.version_id).where(*conditions).limit(PREFETCH_LIMIT + 1)
        ids = list(session.scalars(query))
        if len(ids) <= PREFETCH_LIMIT:
            return ids
    return None


def _required(condition: Condition) -> Iterator[Condition]:
    """Conditions that every match meets."""
    if isinstance(condition, And):
        for part in condition.of:
            yield from _required(part)
    elif not isinstance(condition, Not | Or):
        yield condition


def _ids_by_index(session: Session, condition: Condition) -> list[int] | None:
    """Ids of at most ``PREFETCH_LIMIT + 1`` versions that meet it; None without an index for it."""
    match condition:
        case TagCondition(operator="="):
            return _ids_by_tag(session, condition)
        case FieldCondition(field="adapter" | "domain" | "name", operator="="):
            owned = select(Adapter.id).where(_expression(condition)).limit(PREFETCH_LIMIT)
            adapters = session.scalars(owned).all()
            if len(adapters) == PREFETCH_LIMIT:
                return None
            query = select(Version.id).where(Version.adapter_id.in_(adapters))
        case FieldCondition(field="alias", operator="="):
            query = select(Alias.version_id).where(Alias.alias == condition.value)
        case FieldCondition(field="digest" | "run", operator="="):
            query = select(Version.id).where(_expression(condition))
        case _:
            return None
    return list(session.scalars(query.limit(PREFETCH_LIMIT + 1)))


def _ids_by_tag(session: Session, condition: TagCondition) -> list[int] | None:
    """Ids of the versions that have such a tag themselves, or whose adapter has it."""
    query = select(Tag.subject).where(Tag.key == condition.key, _compare_text(Tag.value, condition))
    subjects = session.scalars(query.limit(PREFETCH_LIMIT + 1)).all()
    if len(subjects) > PREFETCH_LIMIT:
        return None
    parts = [match.groups() for text in subjects if (match := _SUBJECT.fullmatch(text))]
    candidates = select(Adapter.id, Adapter.domain, Adapter.name).where(
        Adapter.domain.in_({domain for domain, _, _ in parts}),
        Adapter.name.in_({name for _, name, _ in parts}),
    )
    adapters = {(domain, name): id for id, domain, name in session.execute(candidates)}
    tagged_adapters, tagged_versions = [], []
    for domain, name, number in parts:
        adapter = adapters.get((domain, name))
        if adapter is not None and number is None:
            tagged_adapters.append(adapter)
        elif adapter is not None:
            tagged_versions.append((adapter, int(number)))
    ids = list(version_ids(session, tagged_versions).values())
    if tagged_adapters:
        every = select(Version.id).where(Version.adapter_id.in_(tagged_adapters))
        ids += session.scalars(every.limit(PREFETCH_LIMIT + 1))
    return ids


def _expression(condition: Condition) -> ColumnElement[bool]:
    """The condition over a version, its adapter, base and dataset; never NULL."""
    match condition:
        case And(of):
            return and_(*(_expression(part) for part in of))
        case Or(of):
            return or_(*(_expression(part) for part in of))
        case Not(of):
            return not_(_expression(of))
        case (
            ScoreCondition(operator="!=")
            | TagCondition(operator="!=")
            | FieldCondition(operator="!=")
        ):
            return not_(_expression(replace(condition, operator="=")))
        case ScoreCondition():
            return exists().where(Score.version_id == Version.id, *_compare_score(condition))
        case TagCondition():
            tag = Tag.key == condition.key, _compare_text(Tag.value, condition)
            return or_(*(exists().where(Tag.subject == name, *tag) for name in (_REF, _NAME)))
        case FieldCondition(field="newest"):
            return _is_newest() if condition.value else not_(_is_newest())
        case FieldCondition(field="alias"):
            points_here = Alias.version_id == Version.id
            return exists().where(points_here, _compare_text(Alias.alias, condition))
        case FieldCondition(field="adapter"):
            return _compare_adapter(condition)
    column = _COLUMNS[condition.field]
    if isinstance(condition.value, str):
        comparison = _compare_text(column, condition)
    else:
        comparison = _OPERATORS[condition.operator](column, condition.value)
    return and_(column.is_not(None), comparison)


def _is_newest() -> ColumnElement[bool]:
    later = aliased(Version)
    return not_(
        exists().where(
            later.adapter_id == Version.adapter_id,
            later.status == "visible",
            later.number > Version.number,
        )
    )


def _compare_adapter(condition: FieldCondition) -> ColumnElement[bool]:
    domain, slash, name = str(condition.value).partition("/")
    if condition.operator == "=" and slash:
        return and_(Adapter.domain == domain, Adapter.name == name)
    return _compare_text(_NAME, condition)


def _compare_score(condition: ScoreCondition) -> tuple[ColumnElement[bool], ...]:
    column = {"value": Score.value, "low": Score.low, "high": Score.high}[condition.bound]
    return (
        Score.metric == condition.metric,
        Score.split == condition.split,
        column.is_not(None),
        _OPERATORS[condition.operator](column, condition.value),
    )


def _compare_text(column: Any, condition: FieldCondition | TagCondition) -> ColumnElement[bool]:
    """Equality, or, for ``~``, "contains" ignoring case."""
    if condition.operator == "~":
        return func.lower(column).contains(str(condition.value).lower(), autoescape=True)
    return column == literal(condition.value)

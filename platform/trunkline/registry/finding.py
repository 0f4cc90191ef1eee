"""Finding versions: a search as a query, in pages.

Owns: what each condition means in SQL, and from which side a search begins.
Must not know: the grammar (:mod:`trunkline.registry.search`).

A page is walked from the newest version to older ones, each condition being a look-up by an index,
and ends where enough is found or :data:`FAR` versions were looked at: so no query grows with the
table. Where a condition that must hold is met by few versions, these are collected first, and only
they are looked at.
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
from trunkline.registry.lookup import (
    find_version,
    known_versions,
    numbered,
    version_records,
)
from trunkline.registry.records import VersionRecord
from trunkline.registry.search import Both, Condition, Either, Figure, Not, Plain, Tagged, parse
from trunkline.registry.tables import Adapter, Alias, Base, Dataset, Score, Tag, Version

FEW = 1000
"""If so many versions at most meet a condition, a search begins with them."""

FAR = 10_000
"""So many versions are looked at for one page."""

_COMPARE = {"=": eq, "<": lt, "<=": le, ">": gt, ">=": ge}
_NAME = Adapter.domain + "/" + Adapter.name
_REF = _NAME + "@" + cast(Version.number, String)
_COLUMNS: dict[str, InstrumentedAttribute[Any]] = {
    "domain": Adapter.domain,
    "name": Adapter.name,
    "task": Adapter.task,
    "version": Version.number,
    "digest": Version.digest,
    "base": Base.name,
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
    """Versions that were found.

    Attributes:
        versions: newest first, with their standing.
        next: the ``after`` of the next page; None where this is the last one. A page may hold less
            than was wanted, even nothing, and still have a next one.
    """

    versions: tuple[VersionRecord, ...]
    next: Ref | None


def search(session: Session, where: str, limit: int, after: Ref | None) -> Page:
    """The visible versions that meet a search."""
    condition = parse(where)
    return _page(session, _matching(condition), _few(session, condition), limit, after)


def removed(session: Session, limit: int, after: Ref | None) -> Page:
    """The removed versions, those that were published last first."""
    query = select(Version.id).where(Version.status == "removed")
    return _page(session, query, None, limit, after)


def _page(
    session: Session, matching: Select[int], few: list[int] | None, limit: int, after: Ref | None
) -> Page:
    """The newest of what matches and comes behind ``after``."""
    before = None if after is None else find_version(session, after, gone=True)[0][0].id
    baseline = 0
    if few is not None:
        matching = matching.where(Version.id.in_(few))
    else:
        newest = session.scalar(select(func.max(Version.id))) or 0
        baseline = max(0, (newest + 1 if before is None else before) - FAR)
        matching = matching.where(Version.id >= baseline)
    if before is not None:
        matching = matching.where(Version.id < before)
    ids = session.scalars(matching.order_by(Version.id.desc()).limit(limit + 1)).all()
    rows = session.execute(
        known_versions().where(Version.id.in_(ids[:limit])).order_by(Version.id.desc())
    ).all()
    records = tuple(version_records(session, rows, scored=True))
    if len(ids) > limit:
        return Page(records, records[-1].ref)
    return Page(records, _earlier(session, baseline))


def _matching(condition: Condition) -> Select[int]:
    """Ids of the visible versions that meet a condition."""
    return (
        select(Version.id)
        .join(Adapter, Adapter.id == Version.adapter_id)
        .outerjoin(Base, Base.id == Version.base_id)
        .outerjoin(Dataset, Dataset.id == Version.dataset_id)
        .where(Version.status == "visible", _holds(condition))
    )


def _earlier(session: Session, baseline: int) -> Ref | None:
    """The first version from which on was looked, if there are others before it."""
    known = Version.status.in_(("visible", "removed"))
    if session.scalar(select(Version.id).where(Version.id < baseline, known).limit(1)) is None:
        return None
    row = session.execute(
        known_versions().where(Version.id >= baseline).order_by(Version.id).limit(1)
    ).one()
    return Ref(row[1].domain, row[1].name, str(row[0].number))


def _few(session: Session, condition: Condition) -> list[int] | None:
    """The ids that meet some condition which must hold, if an index shows that they are few."""
    figures: dict[tuple[str, str], list[ColumnElement[bool]]] = {}
    for needed in _needed(condition):
        if isinstance(needed, Figure):
            if needed.bound != "value" or needed.operator == "!=":
                continue
            figures.setdefault((needed.split, needed.metric), []).extend(_figure(needed))
            continue
        ids = _collected(session, needed)
        if ids is not None and len(ids) <= FEW:
            return ids
    for conditions in figures.values():
        query = select(Score.version_id).where(*conditions).limit(FEW + 1)
        ids = list(session.scalars(query))
        if len(ids) <= FEW:
            return ids
    return None


def _needed(condition: Condition) -> Iterator[Condition]:
    """Conditions without which the whole does not hold."""
    if isinstance(condition, Both):
        for part in condition.of:
            yield from _needed(part)
    elif not isinstance(condition, Not | Either):
        yield condition


def _collected(session: Session, condition: Condition) -> list[int] | None:
    """Ids of at most ``FEW + 1`` versions that meet it, where an index leads to them; else None."""
    match condition:
        case Tagged(operator="="):
            return _tagged(session, condition)
        case Plain(field="adapter" | "domain" | "name", operator="="):
            owned = select(Adapter.id).where(_holds(condition)).limit(FEW)
            adapters = session.scalars(owned).all()
            if len(adapters) == FEW:
                return None
            query = select(Version.id).where(Version.adapter_id.in_(adapters))
        case Plain(field="alias", operator="="):
            query = select(Alias.version_id).where(Alias.alias == condition.value)
        case Plain(field="digest" | "run", operator="="):
            query = select(Version.id).where(_holds(condition))
        case _:
            return None
    return list(session.scalars(query.limit(FEW + 1)))


def _tagged(session: Session, condition: Tagged) -> list[int] | None:
    """Ids of the versions that have such a tag themselves, or whose adapter has it."""
    query = select(Tag.subject).where(Tag.key == condition.key, _text(Tag.value, condition))
    subjects = session.scalars(query.limit(FEW + 1)).all()
    if len(subjects) > FEW:
        return None
    parts = [match.groups() for text in subjects if (match := _SUBJECT.fullmatch(text))]
    near = select(Adapter.id, Adapter.domain, Adapter.name).where(
        Adapter.domain.in_({domain for domain, _, _ in parts}),
        Adapter.name.in_({name for _, name, _ in parts}),
    )
    adapters = {(domain, name): id for id, domain, name in session.execute(near)}
    owned, pairs = [], []
    for domain, name, number in parts:
        adapter = adapters.get((domain, name))
        if adapter is not None and number is None:
            owned.append(adapter)
        elif adapter is not None:
            pairs.append((adapter, int(number)))
    found = list(numbered(session, pairs).values())
    if owned:
        all_of = select(Version.id).where(Version.adapter_id.in_(owned))
        found += session.scalars(all_of.limit(FEW + 1))
    return found


def _holds(condition: Condition) -> ColumnElement[bool]:
    """The condition over a version, its adapter, base and dataset; never NULL."""
    match condition:
        case Both(of):
            return and_(*(_holds(part) for part in of))
        case Either(of):
            return or_(*(_holds(part) for part in of))
        case Not(of):
            return not_(_holds(of))
        case Figure(operator="!=") | Tagged(operator="!=") | Plain(operator="!="):
            return not_(_holds(replace(condition, operator="=")))
        case Figure():
            return exists().where(Score.version_id == Version.id, *_figure(condition))
        case Tagged():
            said = Tag.key == condition.key, _text(Tag.value, condition)
            return or_(*(exists().where(Tag.subject == name, *said) for name in (_REF, _NAME)))
        case Plain(field="newest"):
            return _is_newest() if condition.value else not_(_is_newest())
        case Plain(field="alias"):
            pointing = Alias.version_id == Version.id
            return exists().where(pointing, _text(Alias.alias, condition))
        case Plain(field="adapter"):
            return _adapter(condition)
    column = _COLUMNS[condition.field]
    if isinstance(condition.value, str):
        compared = _text(column, condition)
    else:
        compared = _COMPARE[condition.operator](column, condition.value)
    return and_(column.is_not(None), compared)


def _is_newest() -> ColumnElement[bool]:
    later = aliased(Version)
    return not_(
        exists().where(
            later.adapter_id == Version.adapter_id,
            later.status == "visible",
            later.number > Version.number,
        )
    )


def _adapter(condition: Plain) -> ColumnElement[bool]:
    domain, slash, name = str(condition.value).partition("/")
    if condition.operator == "=" and slash:
        return and_(Adapter.domain == domain, Adapter.name == name)
    return _text(_NAME, condition)


def _figure(condition: Figure) -> tuple[ColumnElement[bool], ...]:
    column = {"value": Score.value, "low": Score.low, "high": Score.high}[condition.bound]
    return (
        Score.metric == condition.metric,
        Score.split == condition.split,
        column.is_not(None),
        _COMPARE[condition.operator](column, condition.value),
    )


def _text(column: Any, condition: Plain | Tagged) -> ColumnElement[bool]:
    """Equal, or, with ``~``, containing it whatever the case."""
    if condition.operator == "~":
        return func.lower(column).contains(str(condition.value).lower(), autoescape=True)
    return column == literal(condition.value)

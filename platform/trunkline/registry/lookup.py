"""Looking up adapters and versions: what is visible, and which version answers a ref.

Owns: the queries over adapters, versions and aliases that reading and writing share.
Must not know: transactions; each function works in its caller's session.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Integer, Row, Select, and_, column, func, select, values
from sqlalchemy.orm import Session

from trunkline.errors import NotFoundError
from trunkline.refs import Ref
from trunkline.registry.records import AdapterRecord, Standing, VersionRecord
from trunkline.registry.tables import (
    Adapter,
    Alias,
    Base,
    Dataset,
    Evaluation,
    Score,
    Version,
)

CHAMPION = "champion"
"""The alias that answers a ref without a selector."""

NAMES_COMPARED = 2000
"""So many names at most are looked through for the nearest one to an unknown name."""


def _has_versions(*statuses: str) -> ColumnElement[bool]:
    return (
        select(Version.id)
        .where(Version.adapter_id == Adapter.id, Version.status.in_(statuses))
        .correlate(Adapter)
        .exists()
    )


HAS_VERSIONS = _has_versions("visible")
"""Whether an adapter has a visible version; one that has none is not listed."""

_HAD_VERSIONS = _has_versions("visible", "removed")

VersionRow = Row[Version, Adapter, Base, Dataset]
"""The dataset may be None, though an outer join can't say so in its type."""


def find_version(
    session: Session, ref: Ref, *, suggest: bool = True, gone: bool = False
) -> tuple[VersionRow, str]:
    """The version that answers ``ref``, and by what; see :meth:`Versions.resolve`.

    Args:
        suggest: whether an unknown adapter is worth looking for the nearest name.
        gone: whether a removed version answers to its number and its digest too.
    """
    adapter = find_adapter(session, ref, suggest=suggest, gone=True)
    known = known_versions().where(Version.adapter_id == adapter.id).limit(1)
    newest = known.where(Version.status == "visible").order_by(Version.number.desc())

    def aliased(alias: str) -> VersionRow | None:
        pointing = select(Alias.version_id).where(
            Alias.adapter_id == adapter.id, Alias.alias == alias
        )
        by_id = visible_versions().where(Version.id == session.scalar(pointing))
        return session.execute(by_id).one_or_none()

    if ref.selector is None:
        if (champion := aliased(CHAMPION)) is not None:
            return champion, CHAMPION
        if (row := session.execute(newest).one_or_none()) is not None:
            return row, "newest"
        row = session.execute(known.order_by(Version.number.desc())).one()
        raise _removed(ref.at(row[0].number), row[0])
    if ref.number is not None:
        row, how = session.execute(known.where(Version.number == ref.number)).first(), "number"
    elif ref.digest is not None:
        row, how = session.execute(_of_digest(adapter, ref.digest)).first(), "digest"
    else:
        row, how = aliased(ref.selector), "alias"
    if row is not None:
        if row[0].status == "removed" and not gone:
            raise _removed(ref, row[0])
        return row, how
    look = f"See them with: trunkline adapters show {ref.adapter}."
    if how == "alias":
        set_here = session.scalars(select(Alias.alias).where(Alias.adapter_id == adapter.id))
        raise NotFoundError.named(
            "version", str(ref), [f"{ref.adapter}@{alias}" for alias in set_here], look
        )
    last = session.execute(newest).one_or_none()
    hint = f"The newest is {ref.adapter}@{last[0].number}. {look}" if last is not None else look
    raise NotFoundError(f"There is no version '{ref}'.", hint)


def _of_digest(adapter: Adapter, digest: str) -> Select[Version, Adapter, Base, Dataset]:
    """An adapter's versions with a digest, visible ones and then the newest first.

    The sum keeps the adapter's index out of it: few versions have one digest, and an adapter may
    have many versions.
    """
    return (
        known_versions()
        .where(Version.digest == digest, Version.adapter_id + 0 == adapter.id)
        .order_by(Version.status.desc(), Version.number.desc())
        .limit(1)
    )


def _removed(ref: Ref, version: Version) -> NotFoundError:
    on = f" on {version.removed:%Y-%m-%d}" if version.removed is not None else ""
    why = f", because: {version.removal.rstrip('.')}" if version.removal else ""
    return NotFoundError(
        f"The version '{ref}' was removed{on}{why}.",
        f"Its lineage is kept: trunkline lineage {ref}.",
    )


def find_adapter(
    session: Session, ref: Ref, *, lock: bool = False, suggest: bool = True, gone: bool = False
) -> Adapter:
    """The adapter's row, if it has a visible version, or, with ``gone``, had one."""
    query = select(Adapter).where(
        Adapter.domain == ref.domain,
        Adapter.name == ref.name,
        _HAD_VERSIONS if gone else HAS_VERSIONS,
    )
    found = session.scalar(query.with_for_update() if lock else query)
    if found is None:
        near = (Adapter.domain == ref.domain).desc()
        names = select(Adapter.domain, Adapter.name).where(HAS_VERSIONS).order_by(near)
        known = session.execute(names.limit(NAMES_COMPARED)).all() if suggest else []
        raise NotFoundError.named(
            "adapter",
            ref.adapter,
            [f"{domain}/{name}" for domain, name in known],
            "See them with: trunkline adapters list.",
        )
    return found


def visible_versions() -> Select[Version, Adapter, Base, Dataset]:
    """Every visible version with its adapter, base and, where known, dataset."""
    return _versions().where(Version.status == "visible")


def known_versions() -> Select[Version, Adapter, Base, Dataset]:
    """As :func:`visible_versions`, with those that were removed."""
    return _versions().where(Version.status.in_(("visible", "removed")))


def _versions() -> Select[Version, Adapter, Base, Dataset]:
    return (
        select(Version, Adapter, Base, Dataset)
        .join(Adapter, Adapter.id == Version.adapter_id)
        .join(Base, Base.id == Version.base_id)
        .outerjoin(Dataset, Dataset.id == Version.dataset_id)
    )


def visible_adapters() -> Select[Adapter, int, int]:
    """Every adapter with its newest visible number and how many are visible."""
    of_this = (Version.adapter_id == Adapter.id, Version.status == "visible")
    newest = select(func.max(Version.number)).where(*of_this).scalar_subquery()
    count = select(func.count(Version.id)).where(*of_this).scalar_subquery()
    return select(Adapter, newest, count).where(HAS_VERSIONS)


def numbered(session: Session, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Pairs of an adapter's id and a number → the version's id, where there is one.

    The pairs are a table of their own, so that each is looked up by the index; SQLite would go
    through the whole index for ``(adapter_id, number) IN (…)``.
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


def _aliases(session: Session, adapters: Sequence[int]) -> dict[int, dict[str, tuple[int, int]]]:
    """adapter id → alias → (version id, number), the aliases sorted."""
    query = (
        select(Alias.adapter_id, Alias.alias, Version.id, Version.number)
        .join(Version, Version.id == Alias.version_id)
        .where(Alias.adapter_id.in_(adapters))
        .order_by(Alias.alias)
    )
    found: dict[int, dict[str, tuple[int, int]]] = {}
    for adapter_id, alias, version_id, number in session.execute(query):
        found.setdefault(adapter_id, {})[alias] = (version_id, number)
    return found


def adapter_records(
    session: Session, rows: Sequence[Row[Adapter, int, int]], *, scored: bool = False
) -> list[AdapterRecord]:
    """The rows of :func:`visible_adapters` as records, with their aliases.

    Args:
        scored: whether the standing of each newest version is wanted.
    """
    aliases = _aliases(session, [row[0].id for row in rows])
    newest_of = [(adapter.id, newest) for adapter, newest, _ in rows if scored]
    ids = numbered(session, newest_of)
    standings = _standings(session, list(ids.values()))
    return [
        AdapterRecord(
            domain=adapter.domain,
            name=adapter.name,
            task=adapter.task,
            newest=newest,
            versions=count,
            aliases={alias: at[1] for alias, at in aliases.get(adapter.id, {}).items()},
            standing=standings.get(ids.get((adapter.id, newest), 0)),
        )
        for adapter, newest, count in rows
    ]


def version_records(
    session: Session, rows: Sequence[VersionRow], *, scored: bool = False
) -> list[VersionRecord]:
    """The rows as records, with the aliases that point at each.

    Args:
        scored: whether the standing of each is wanted.
    """
    ids = [row[0].id for row in rows]
    pointing: dict[int, list[str]] = {}
    query = select(Alias.version_id, Alias.alias).where(Alias.version_id.in_(ids))
    for version_id, alias in session.execute(query.order_by(Alias.alias)):
        pointing.setdefault(version_id, []).append(alias)
    standings = _standings(session, ids if scored else [])
    return [
        VersionRecord(
            domain=adapter.domain,
            name=adapter.name,
            number=version.number,
            task=adapter.task,
            digest=version.digest or "",
            path=version.path or "",
            bytes=version.bytes or 0,
            base_name=base.name,
            base_digest=base.digest,
            dataset=None if dataset is None else dataset.name,
            dataset_fingerprint=None if dataset is None else dataset.fingerprint,
            split_fingerprint=None if dataset is None else dataset.split_fingerprint,
            run=version.run_id,
            created=version.created,
            aliases=tuple(pointing.get(version.id, ())),
            files=version.files,
            template_digest=version.template_digest,
            removed=version.removed,
            removal=version.removal,
            standing=standings.get(version.id),
        )
        for version, adapter, base, dataset in rows
    ]


def _standings(session: Session, versions: Sequence[int]) -> dict[int, Standing]:
    """Version id → its standing, of those that have one, in one query."""
    if not versions:
        return {}
    deciding = Evaluation.results["metric"].as_string()
    query = (
        select(Score, Evaluation.results["verdict"].as_string())
        .join(Evaluation, Evaluation.id == Score.evaluation_id)
        .where(
            Score.version_id.in_(versions),
            Score.split == "test",
            Score.metric == deciding,
            Score.value.is_not(None),
        )
    )
    nan = math.nan
    return {
        score.version_id: Standing(
            metric=score.metric,
            value=score.value,
            low=nan if score.low is None else score.low,
            high=nan if score.high is None else score.high,
            verdict=verdict or "-",
        )
        for score, verdict in session.execute(query)
    }

"""Looking up adapters and versions: what is visible, and which version answers a ref.

Owns: the queries over adapters, versions and aliases that reading and writing share.
Must not know: transactions; each function works in its caller's session.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session

from trunkline.errors import NotFoundError
from trunkline.refs import Ref
from trunkline.registry.records import AdapterRecord, VersionRecord
from trunkline.registry.tables import Adapter, Alias, Base, Dataset, Version

CHAMPION = "champion"
"""The alias that answers a ref without a selector."""

NAMES_COMPARED = 2000
"""So many names at most are looked through for the nearest one to an unknown name."""

HAS_VERSIONS = (
    select(Version.id)
    .where(Version.adapter_id == Adapter.id, Version.status == "visible")
    .correlate(Adapter)
    .exists()
)
"""Whether an adapter has a visible version; one that has none is not listed."""

VersionRow = Row[Version, Adapter, Base, Dataset]
"""The dataset may be None, though an outer join can't say so in its type."""


def find_version(session: Session, ref: Ref, *, suggest: bool = True) -> tuple[VersionRow, str]:
    """The visible version that answers ``ref``, and by what; see :meth:`Versions.resolve`."""
    adapter = find_adapter(session, ref, suggest=suggest)
    query = visible_versions().where(Version.adapter_id == adapter.id)
    newest = query.order_by(Version.number.desc()).limit(1)

    def aliased(alias: str) -> VersionRow | None:
        return session.execute(
            query.join(Alias, Alias.version_id == Version.id).where(Alias.alias == alias)
        ).one_or_none()

    if ref.selector is None:
        champion = aliased(CHAMPION)
        if champion is not None:
            return champion, CHAMPION
        return session.execute(newest).one(), "newest"
    if ref.number is not None:
        row = session.execute(query.where(Version.number == ref.number)).one_or_none()
        how = "number"
    elif ref.digest is not None:
        row = session.execute(newest.where(Version.digest == ref.digest)).one_or_none()
        how = "digest"
    else:
        row = aliased(ref.selector)
        how = "alias"
    if row is not None:
        return row, how
    look = f"See them with: trunkline adapters show {ref.adapter}."
    if how == "alias":
        known = session.scalars(select(Alias.alias).where(Alias.adapter_id == adapter.id))
        raise NotFoundError.named(
            "version", str(ref), [f"{ref.adapter}@{alias}" for alias in known], look
        )
    last = session.execute(newest).one()[0].number
    raise NotFoundError(
        f"There is no version '{ref}'.", f"The newest is {ref.adapter}@{last}. {look}"
    )


def find_adapter(
    session: Session, ref: Ref, *, lock: bool = False, suggest: bool = True
) -> Adapter:
    """The adapter's row, if it has a visible version."""
    query = select(Adapter).where(
        Adapter.domain == ref.domain, Adapter.name == ref.name, HAS_VERSIONS
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
    return (
        select(Version, Adapter, Base, Dataset)
        .join(Adapter, Adapter.id == Version.adapter_id)
        .join(Base, Base.id == Version.base_id)
        .outerjoin(Dataset, Dataset.id == Version.dataset_id)
        .where(Version.status == "visible")
    )


def visible_adapters() -> Select[Adapter, int, int]:
    """Every adapter with its newest visible number and how many are visible."""
    of_this = (Version.adapter_id == Adapter.id, Version.status == "visible")
    newest = select(func.max(Version.number)).where(*of_this).scalar_subquery()
    count = select(func.count(Version.id)).where(*of_this).scalar_subquery()
    return select(Adapter, newest, count).where(HAS_VERSIONS)


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
    session: Session, rows: Sequence[Row[Adapter, int, int]]
) -> list[AdapterRecord]:
    """The rows of :func:`visible_adapters` as records, with their aliases."""
    aliases = _aliases(session, [row[0].id for row in rows])
    return [
        AdapterRecord(
            domain=adapter.domain,
            name=adapter.name,
            task=adapter.task,
            newest=newest,
            versions=count,
            aliases={alias: at[1] for alias, at in aliases.get(adapter.id, {}).items()},
        )
        for adapter, newest, count in rows
    ]


def version_records(session: Session, rows: Sequence[VersionRow]) -> list[VersionRecord]:
    """The rows as records, with the aliases that point at each."""
    pointing: dict[int, list[str]] = {}
    for aliases in _aliases(session, [row[1].id for row in rows]).values():
        for alias, (version_id, _) in aliases.items():
            pointing.setdefault(version_id, []).append(alias)
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
        )
        for version, adapter, base, dataset in rows
    ]

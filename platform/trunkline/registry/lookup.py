"""Resolve names inside a transaction: adapters, versions, runs, bases and subjects.

A subject names anything that events, tags and notes refer to: ``run/3``, ``key/<id>``,
``server/<number>``, ``dataset/<id>``, ``base/<digest>``, ``request/<id>``; any other text is an
adapter or a version of one.
"""

from __future__ import annotations

import re

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import Session

from trunkline.errors import NotFoundError, UsageError
from trunkline.refs import Ref, shown
from trunkline.registry.mapping import (
    HAD_VISIBLE_VERSION,
    HAS_VISIBLE_VERSION,
    VersionRow,
    select_versions,
)
from trunkline.registry.tables import (
    Adapter,
    Alias,
    ApiKey,
    Base,
    Dataset,
    LoggedRequest,
    Run,
    Server,
    Version,
)

CHAMPION = "champion"
"""The alias that a ref without a selector resolves to."""

MAX_SUGGESTIONS = 2000
"""The nearest name to an unknown one is searched among this many names."""

SUBJECT_KINDS = ("run", "key", "server", "dataset", "base", "request")

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1

_NUMBER = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,80}", re.ASCII)


def clamp(number: int, highest: int = MAX_INT32) -> int:
    """A number from outside, within what a column can be compared with."""
    return max(0, min(number, highest))


# ---------------------------------------------------------------------------- adapters, versions


def find_adapter(
    session: Session,
    ref: Ref,
    *,
    lock: bool = False,
    suggest: bool = True,
    include_removed: bool = False,
) -> Adapter:
    """The adapter's row, if it has a visible version, or, with ``include_removed``, had one.

    Raises:
        NotFoundError: there is none; with ``suggest``, it proposes the nearest name.
    """
    query = select(Adapter).where(
        Adapter.domain == ref.domain,
        Adapter.name == ref.name,
        HAD_VISIBLE_VERSION if include_removed else HAS_VISIBLE_VERSION,
    )
    adapter = session.scalar(query.with_for_update() if lock else query)
    if adapter is None:
        same_domain_first = (Adapter.domain == ref.domain).desc()
        names = select(Adapter.domain, Adapter.name).where(HAS_VISIBLE_VERSION)
        names = names.order_by(same_domain_first).limit(MAX_SUGGESTIONS)
        candidates = session.execute(names).all() if suggest else []
        raise NotFoundError.named(
            "adapter",
            ref.adapter,
            [f"{domain}/{name}" for domain, name in candidates],
            "List them with: trunkline adapters list.",
        )
    return adapter


def find_version_row(
    session: Session, ref: Ref, *, suggest: bool = True, include_removed: bool = False
) -> tuple[VersionRow, str]:
    """The version that ``ref`` resolves to, and by what; see :meth:`Versions.resolve`.

    Args:
        suggest: whether to search the nearest name to an unknown adapter.
        include_removed: whether a number or digest may name a removed version.

    Raises:
        NotFoundError: no such version.
    """
    adapter = find_adapter(session, ref, suggest=suggest, include_removed=True)
    versions = select_versions(removed=True).where(Version.adapter_id == adapter.id).limit(1)
    newest = versions.where(Version.status == "visible").order_by(Version.number.desc())
    if ref.selector is None:
        if (champion := _aliased(session, adapter, CHAMPION)) is not None:
            return champion, CHAMPION
        if (row := session.execute(newest).one_or_none()) is not None:
            return row, "newest"
        row = session.execute(versions.order_by(Version.number.desc())).one()
        raise _removed(ref.at(row[0].number), row[0])
    if ref.number is not None:
        by_number = versions.where(Version.number == ref.number)
        row, how = session.execute(by_number).first(), "number"
    elif ref.digest is not None:
        row, how = session.execute(_by_digest(adapter, ref.digest)).first(), "digest"
    else:
        row, how = _aliased(session, adapter, ref.selector), "alias"
    if row is not None:
        if row[0].status == "removed" and not include_removed:
            raise _removed(ref, row[0])
        return row, how
    hint = f"List them with: trunkline adapters show {ref.adapter}."
    if how == "alias":
        aliases = session.scalars(select(Alias.alias).where(Alias.adapter_id == adapter.id))
        raise NotFoundError.named(
            "version", str(ref), [f"{ref.adapter}@{alias}" for alias in aliases], hint
        )
    if (last := session.execute(newest).one_or_none()) is not None:
        hint = f"The newest is {ref.adapter}@{last[0].number}. {hint}"
    raise NotFoundError(f"There is no version '{ref}'.", hint)


def find_version(session: Session, ref: Ref, *, include_removed: bool = False) -> Version:
    """The row of the version that ``ref`` resolves to; see :func:`find_version_row`."""
    return find_version_row(session, ref, include_removed=include_removed)[0][0]


def lock_version(session: Session, ref: Ref) -> Version:
    """The visible version that ``ref`` resolves to; its adapter's aliases can't move meanwhile."""
    find_adapter(session, ref, lock=True, include_removed=True)
    id = find_version(session, ref).id
    version = session.get_one(Version, id, with_for_update=True, populate_existing=True)
    if version.status != "visible":
        raise NotFoundError(
            f"The version '{ref}' was removed.",
            f"List the remaining versions with: trunkline adapters show {ref.adapter}.",
        )
    return version


def _aliased(session: Session, adapter: Adapter, alias: str) -> VersionRow | None:
    target = select(Alias.version_id).where(Alias.adapter_id == adapter.id, Alias.alias == alias)
    by_id = select_versions().where(Version.id == session.scalar(target))
    return session.execute(by_id).one_or_none()


def _by_digest(adapter: Adapter, digest: str) -> Select[Version, Adapter, Base, Dataset]:
    """An adapter's versions with a digest, visible ones and then the newest first.

    The sum keeps the adapter's index out of it: few versions share a digest, and an adapter may
    have many versions.
    """
    return (
        select_versions(removed=True)
        .where(Version.digest == digest, Version.adapter_id + 0 == adapter.id)
        .order_by(Version.status.desc(), Version.number.desc())
        .limit(1)
    )


def _removed(ref: Ref, version: Version) -> NotFoundError:
    on = f" on {version.removed:%Y-%m-%d}" if version.removed is not None else ""
    why = f", because: {version.removal_reason.rstrip('.')}" if version.removal_reason else ""
    return NotFoundError(
        f"The version '{ref}' was removed{on}{why}.",
        f"Its lineage is still stored: trunkline lineage {ref}.",
    )


# ----------------------------------------------------------------------------------- other rows


def find_run(session: Session, number: int, *, lock: bool = False) -> Run:
    """A run's row.

    Raises:
        NotFoundError: no run has this number.
    """
    in_range = 0 < number <= MAX_INT32
    row = session.get(Run, number, with_for_update=lock) if in_range else None
    if row is None:
        raise NotFoundError(f"There is no run {number}.", "List them with: trunkline runs list.")
    return row


def find_base_id(session: Session, digest: str) -> int:
    """The id of a recorded base.

    Raises:
        NotFoundError: no base with this digest is recorded.
    """
    id = session.scalar(select(Base.id).where(Base.digest == digest))
    if id is None:
        raise NotFoundError(
            f"The registry has no base with the digest {digest!r}.",
            "Record the base before the runs and versions that use it.",
        )
    return id


# ------------------------------------------------------------------------------------- subjects


def run_subject(number: int) -> str:
    """The subject of a run's events; no adapter can have this name."""
    return f"run/{number}"


def key_subject(id: str) -> str:
    """The subject of a key's events; no adapter can have this name."""
    return f"key/{id}"


def server_subject(number: int) -> str:
    """The subject of a server's events."""
    return f"server/{number}"


def find_subject(session: Session, text: str) -> str:
    """The canonical name of an existing subject; an alias becomes the version's number.

    Raises:
        UsageError: the text names no subject.
        NotFoundError: the subject does not exist.
    """
    kind, slash, id = text.partition("/")
    if not slash or kind not in SUBJECT_KINDS or (_is_numbered(kind) and not id[:1].isdigit()):
        return _adapter_subject(session, text)
    if session.execute(select(1).where(_exists(kind, id))).first() is None:
        listed = {"run": "runs", "key": "keys", "request": "requests"}.get(kind)
        raise NotFoundError(
            f"There is no {kind} {shown(id)}.",
            f"List them with: trunkline {listed} list."
            if listed
            else "`trunkline lineage REF` names them.",
        )
    return f"{kind}/{id}"


def _is_numbered(kind: str) -> bool:
    return kind in ("run", "server", "dataset")


def _adapter_subject(session: Session, text: str) -> str:
    try:
        ref = Ref.parse(text)
    except UsageError as error:
        raise UsageError(
            f"{shown(text)} can't be tagged or noted.",
            "Write domain/name, domain/name@3, or one of: "
            + ", ".join(f"{kind}/…" for kind in SUBJECT_KINDS)
            + ".",
        ) from error
    if ref.selector is None:
        find_adapter(session, ref, include_removed=True)
        return ref.adapter
    version = find_version(session, ref, include_removed=True)
    return f"{ref.adapter}@{version.number}"


def _exists(kind: str, id: str) -> ColumnElement[bool]:
    if _is_numbered(kind):
        if not _NUMBER.fullmatch(id):
            raise UsageError(
                f"{shown(id)} is not the number of a {kind}.", f"Write for example {kind}/3."
            )
        key = {"run": Run.id, "server": Server.id, "dataset": Dataset.id}[kind]
        return select(key).where(key == int(id)).exists()
    if not _ID.fullmatch(id):
        raise UsageError(
            f"{shown(id)} is not the id of a {kind}.",
            "Use 1 to 80 of A-Z, a-z, 0-9, '_', '.', ':' and '-'.",
        )
    column = {"key": ApiKey.id, "base": Base.digest, "request": LoggedRequest.id}[kind]
    return select(column).where(column == id).exists()

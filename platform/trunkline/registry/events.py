"""Events: what was changed, by whom and when, as a list or as the history of one adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import ColumnElement, Text, cast, or_, select, union_all

from trunkline.refs import Ref
from trunkline.registry.chain import Head, add_event, heads_of
from trunkline.registry.lookup import MAX_INT64, clamp, find_adapter, find_version
from trunkline.registry.mapping import to_record
from trunkline.registry.records import EventRecord
from trunkline.registry.session import Aggregate
from trunkline.registry.tables import Event, Version

VersionEvent = Literal["version.exported", "version.probed", "version.signed"]
"""Kinds of events that leave a version's row unchanged."""

MAX_HISTORY_VERSIONS = 500
"""An adapter's history includes events on this many of its newest versions by themselves; the
history of an older version has the rest."""


class Events(Aggregate):
    """Appends events and lists them."""

    def append(
        self, kind: VersionEvent, ref: Ref, detail: Mapping[str, Any], *, actor: str | None = None
    ) -> None:
        """Append an event on a version, under its adapter; adds ``number`` and ``digest``.

        Raises:
            NotFoundError: ``ref`` resolves to no visible version.
        """
        with self._sessions.write() as session:
            version = find_version(session, ref)
            detail = {**detail, "number": version.number, "digest": version.digest}
            add_event(session, actor, kind, ref.adapter, detail)

    def list(
        self,
        subject: str | None = None,
        kind: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> Sequence[EventRecord]:
        """Events, newest first.

        Args:
            subject: only events on this, such as ``medical/icd10-chapter`` or ``run/3``.
            kind: only events of this kind, such as ``alias.moved``.
            before: only events older than the one with this ``seq``, for the next page.
        """
        query = select(Event).order_by(Event.seq.desc()).limit(limit)
        if subject is not None:
            query = query.where(Event.subject == subject)
        if kind is not None:
            query = query.where(Event.kind == kind)
        if before is not None:
            query = query.where(Event.seq < clamp(before, MAX_INT64))
        with self._sessions.read() as session:
            return [to_record(EventRecord, row) for row in session.scalars(query)]

    def history(
        self, ref: Ref, *, limit: int = 50, before: int | None = None
    ) -> Sequence[EventRecord]:
        """The events on an adapter or version, newest first.

        Args:
            ref: with a selector, only events on that version, which may be a removed one.
            before: only events older than the one with this ``seq``, for the next page.

        Raises:
            NotFoundError: there never was such an adapter or version.
        """
        page = select(Event.seq).order_by(Event.seq.desc()).limit(limit)
        if before is not None:
            page = page.where(Event.seq < clamp(before))
        with self._sessions.read() as session:
            adapter = find_adapter(session, ref, include_removed=True)
            of_adapter = page.where(Event.subject == ref.adapter)
            if ref.selector is None:
                newest = (
                    select(Version.number)
                    .where(Version.adapter_id == adapter.id)
                    .order_by(Version.number.desc())
                    .limit(MAX_HISTORY_VERSIONS)
                )
                subjects = [f"{ref.adapter}@{number}" for number in session.scalars(newest)]
            else:
                number = find_version(session, ref, include_removed=True).number
                of_adapter = of_adapter.where(_concerns(number))
                subjects = [f"{ref.adapter}@{number}"]
            of_versions = page.where(Event.subject.in_(subjects))
            both = union_all(*(select(part.subquery().c.seq) for part in (of_adapter, of_versions)))
            query = select(Event).where(Event.seq.in_(both)).order_by(Event.seq.desc()).limit(limit)
            return [to_record(EventRecord, row) for row in session.scalars(query)]

    def heads(self) -> dict[str, Head]:
        """Where each hash chain ends now, by its name; store these elsewhere.

        Raises:
            IntegrityError: a stored head was removed.
        """
        with self._sessions.read() as session:
            return heads_of(session)


def is_note() -> ColumnElement[bool]:
    """Whether an event is a note; use it together with a condition on the subject.

    The empty text keeps the index on kinds out of it: there are far more notes than events on one
    subject.
    """
    return Event.kind.concat("") == "note.added"


def _concerns(number: int) -> ColumnElement[bool]:
    """Whether an adapter's event is about the version with this number."""
    return or_(
        *(
            cast(Event.detail[name].as_string(), Text) == str(number)
            for name in ("number", "new", "old")
        )
    )

"""History: what happened to an adapter or a version, out of the events.

Owns: which events are of an adapter, and which of one version. Must not know: how they are worded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import ColumnElement, Text, cast, or_, select, union_all

from trunkline.refs import Ref
from trunkline.registry.chain import CHAINS, Head, head_of
from trunkline.registry.lookup import find_adapter, find_version
from trunkline.registry.records import EventRecord
from trunkline.registry.session import Aggregate, add_event, event_record
from trunkline.registry.tables import Event, Version

VersionEvent = Literal["adapter.exported", "version.signed"]
"""Events of a version that leave its row unchanged."""

VERSIONS_LOOKED_AT = 500
"""In an adapter's history, what is told of versions by themselves is that of so many of the newest;
an older version's own history has the rest."""

_LAST = 2**31 - 1


class Events(Aggregate):
    """Appends events and lists them."""

    def append(
        self, kind: VersionEvent, ref: Ref, detail: Mapping[str, Any], *, actor: str | None = None
    ) -> None:
        """Leave an event under the adapter's name; number and digest are added to ``detail``.

        Raises:
            NotFoundError: no visible version answers ``ref``.
        """
        with self._sessions.write() as session:
            version = find_version(session, ref)[0][0]
            told = {**detail, "number": version.number, "digest": version.digest}
            add_event(session, actor, kind, ref.adapter, told)

    def list(
        self,
        subject: str | None = None,
        kind: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> Sequence[EventRecord]:
        """What was done, newest first.

        Args:
            subject: only what was done to this, such as ``medical/icd10-chapter`` or ``run/3``.
            kind: only events of this kind, such as ``alias.moved``.
            before: only what is older than the event with this ``seq``, for the next page.
        """
        query = select(Event).order_by(Event.seq.desc()).limit(limit)
        if subject is not None:
            query = query.where(Event.subject == subject)
        if kind is not None:
            query = query.where(Event.kind == kind)
        if before is not None:
            query = query.where(Event.seq < max(0, min(before, _LAST)))
        with self._sessions.read() as session:
            return [event_record(row) for row in session.scalars(query)]

    def heads(self) -> dict[str, Head]:
        """Where each chain ends now, by its name: what to keep elsewhere.

        Raises:
            IntegrityError: the record of it was removed.
        """
        with self._sessions.read() as session:
            return {name: head_of(session, chain) for name, chain in CHAINS.items()}

    def history(
        self, ref: Ref, *, limit: int = 50, before: int | None = None
    ) -> Sequence[EventRecord]:
        """What happened, newest first.

        Args:
            ref: with a selector, only what concerns that version; it may be a removed one.
            before: only what is older than the event of this number, for the next page.

        Raises:
            NotFoundError: there never was such an adapter or version.
        """
        until = Event.seq < (_LAST if before is None else max(0, min(before, _LAST)))
        page = select(Event.seq).where(until).order_by(Event.seq.desc()).limit(limit)
        with self._sessions.read() as session:
            adapter = find_adapter(session, ref, gone=True)
            of_adapter = page.where(Event.subject == ref.adapter)
            if ref.selector is None:
                newest = (
                    select(Version.number)
                    .where(Version.adapter_id == adapter.id)
                    .order_by(Version.number.desc())
                    .limit(VERSIONS_LOOKED_AT)
                )
                subjects = [f"{ref.adapter}@{number}" for number in session.scalars(newest)]
            else:
                number = find_version(session, ref, gone=True)[0][0].number
                of_adapter = of_adapter.where(_concerns(number))
                subjects = [f"{ref.adapter}@{number}"]
            of_versions = page.where(Event.subject.in_(subjects))
            both = union_all(*(select(part.subquery().c.seq) for part in (of_adapter, of_versions)))
            query = select(Event).where(Event.seq.in_(both)).order_by(Event.seq.desc()).limit(limit)
            return [event_record(row) for row in session.scalars(query)]


def is_note() -> ColumnElement[bool]:
    """Whether an event is a note; meant to stand beside a condition on the subject.

    The empty text keeps the index of kinds out of it: there are far more notes than a subject has.
    """
    return Event.kind.concat("") == "note"


def _concerns(number: int) -> ColumnElement[bool]:
    """Whether an adapter's event is about the version with this number."""
    return or_(
        *(
            cast(Event.detail[name].as_string(), Text) == str(number)
            for name in ("number", "new", "old")
        )
    )

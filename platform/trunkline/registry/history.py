"""History: what happened to an adapter or a version, out of the events.

Owns: which events are of an adapter, and which of one version. Must not know: how they are worded.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Text, cast, or_, select, union_all

from trunkline.refs import Ref
from trunkline.registry.database import Database, event_record
from trunkline.registry.lookup import find_adapter, find_version
from trunkline.registry.records import EventRecord
from trunkline.registry.tables import Event, Version

VERSIONS_LOOKED_AT = 500
"""In an adapter's history, what is told of versions by themselves is that of so many of the newest;
an older version's own history has the rest."""

_LAST = 2**31 - 1


class History(Database):
    """Gives the events of an adapter or a version."""

    def history(self, ref: Ref, *, limit: int = 50, before: int | None = None) -> list[EventRecord]:
        """What happened, newest first.

        Args:
            ref: with a selector, only what concerns that version; it may be a removed one.
            before: only what is older than the event of this number, for the next page.

        Raises:
            NotFoundError: there never was such an adapter or version.
        """
        until = Event.seq < (_LAST if before is None else max(0, min(before, _LAST)))
        page = select(Event.seq).where(until).order_by(Event.seq.desc()).limit(limit)
        with self._read() as session:
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

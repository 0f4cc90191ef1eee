"""Tags and notes: words of people about anything that the registry knows.

Owns: their rows, and what a tag and a note may hold.
Must not know: what they are used for. A tag can be changed, and each change is an event; a note is
an event itself, and so can't.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from trunkline.errors import NotFoundError, RefusedError, UsageError
from trunkline.refs import shown
from trunkline.registry.events import is_note
from trunkline.registry.records import EventRecord, TagsRecord
from trunkline.registry.session import Aggregate, add_event, event_record, find_or_add
from trunkline.registry.subjects import find_subject
from trunkline.registry.tables import Event, Tag

MOST_TAGS = 100
"""So many tags a subject may have."""

LONGEST_VALUE = 500
LONGEST_NOTE = 4000

_KEY = re.compile(r"[a-z][a-z0-9_-]{0,39}", re.ASCII)
_UNPRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_UNPRINTED_IN_NOTES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Tags(Aggregate):
    """Sets, removes and gives tags; adds and gives notes."""

    def set(self, subject: str, key: str, value: str, *, actor: str | None = None) -> None:
        """Give a subject a tag, in place of the one with this key if it has one.

        Raises:
            UsageError: the subject, key or value is malformed.
            NotFoundError: there is no such subject.
            RefusedError: it has 100 tags already.
        """
        self.update(subject, {key: value}, actor=actor)

    def remove(self, subject: str, key: str, *, actor: str | None = None) -> None:
        """Take a tag away.

        Raises:
            NotFoundError: there is no such subject, or it has no such tag.
        """
        self.update(subject, {}, remove=[key], actor=actor)

    def update(
        self,
        subject: str,
        values: Mapping[str, str],
        *,
        remove: Collection[str] = (),
        actor: str | None = None,
    ) -> None:
        """Set and remove several tags of one subject in one transaction, an event a change.

        Raises:
            As :meth:`set_tag` and :meth:`remove_tag`; then nothing was changed.
        """
        for key, value in values.items():
            _check_tag(key, value)
        with self._sessions.write() as session:
            of = find_subject(session, subject)
            for key in remove:
                _remove(session, of, key, actor)
            for key, value in values.items():
                _set(session, of, key, value, actor)
            count = select(func.count(Tag.id)).where(Tag.subject == of)
            session.flush()
            if values and (session.scalar(count) or 0) > MOST_TAGS:
                raise RefusedError(
                    f"{of} would have more than {MOST_TAGS} tags.",
                    f"Take some away: trunkline tag {of} --remove KEY.",
                )

    def get(self, subject: str) -> TagsRecord:
        """The tags of a subject, by key.

        Raises:
            NotFoundError: there is no such subject.
        """
        with self._sessions.read() as session:
            of = find_subject(session, subject)
            return TagsRecord(subject=of, tags=tags_of(session, [of]).get(of, {}))

    def add_note(self, subject: str, text: str, *, actor: str | None = None) -> str:
        """Note something for good; gives the subject under which it stands.

        Raises:
            UsageError: the text is empty, longer than 4,000 characters, or holds control
                characters other than line ends and tabs.
            NotFoundError: there is no such subject.
        """
        if not text.strip() or len(text) > LONGEST_NOTE or _UNPRINTED_IN_NOTES.search(text):
            raise UsageError(
                f"The note {shown(text)} can't be kept.",
                f"Write 1 to {LONGEST_NOTE:,} printable characters.",
            )
        with self._sessions.write() as session:
            of = find_subject(session, subject)
            add_event(session, actor, "note", of, {"text": text})
            return of

    def notes(
        self, subject: str, *, limit: int = 100, before: int | None = None
    ) -> list[EventRecord]:
        """The notes of a subject, newest first; ``before`` a number of an event, for paging.

        Raises:
            NotFoundError: there is no such subject.
        """
        with self._sessions.read() as session:
            of = find_subject(session, subject)
            query = select(Event).where(Event.subject == of, is_note())
            if before is not None:
                query = query.where(Event.seq < before)
            return [
                event_record(row)
                for row in session.scalars(query.order_by(Event.seq.desc()).limit(limit))
            ]


def tags_of(session: Session, subjects: Collection[str]) -> dict[str, dict[str, str]]:
    """subject → key → value, by key; subjects without a tag are left out."""
    found: dict[str, dict[str, str]] = {}
    query = select(Tag).where(Tag.subject.in_(subjects)).order_by(Tag.key)
    for row in session.scalars(query):
        found.setdefault(row.subject, {})[row.key] = row.value
    return found


def check_key(key: str) -> str:
    """Give ``key`` back if it may be a tag's; else raise :class:`UsageError`."""
    if not _KEY.fullmatch(key):
        raise UsageError(
            f"{shown(key)} can't be a tag's key.",
            "Use a-z, 0-9, '_' and '-', a letter first, at most 40 characters.",
        )
    return key


def check_reason(reason: str) -> str:
    """Give a reason back without the spaces around it; it is kept for good and printed.

    Raises:
        UsageError: it is longer than a note may be, or holds control characters.
    """
    if len(reason) > LONGEST_NOTE or _UNPRINTED_IN_NOTES.search(reason):
        raise UsageError(
            f"The reason {shown(reason)} can't be kept.",
            f"Write at most {LONGEST_NOTE:,} printable characters.",
        )
    return reason.strip()


def _check_tag(key: str, value: str) -> None:
    check_key(key)
    if not value.strip() or len(value) > LONGEST_VALUE or _UNPRINTED.search(value):
        raise UsageError(
            f"{shown(value)} can't be the value of the tag {key!r}.",
            f"Write 1 to {LONGEST_VALUE} printable characters on one line.",
        )


def _set(session: Session, subject: str, key: str, value: str, actor: str | None) -> None:
    made = Tag(subject=subject, key=key, value=value)
    row = find_or_add(session, made, Tag.subject == subject, Tag.key == key)
    was = None if row is made else row.value
    if was != value:
        row.value = value
        add_event(session, actor, "tag.set", subject, {"key": key, "value": value, "was": was})


def _remove(session: Session, subject: str, key: str, actor: str | None) -> None:
    query = select(Tag).where(Tag.subject == subject, Tag.key == check_key(key))
    row = session.scalar(query.with_for_update())
    if row is None:
        known = tags_of(session, [subject]).get(subject, {})
        raise NotFoundError.named("tag", key, known, f"See them with: trunkline tag {subject}.")
    session.delete(row)
    session.flush()
    add_event(session, actor, "tag.removed", subject, {"key": key, "value": row.value})

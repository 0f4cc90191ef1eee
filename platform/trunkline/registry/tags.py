"""Tags and notes that people add to any subject of the registry.

A tag can be changed, and each change is an event; a note is an event itself and can't be changed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from trunkline.errors import NotFoundError, RefusedError, UsageError
from trunkline.refs import shown
from trunkline.registry.chain import add_event
from trunkline.registry.events import is_note
from trunkline.registry.free_text import stored_note, stored_value
from trunkline.registry.lookup import find_subject
from trunkline.registry.mapping import to_record
from trunkline.registry.records import EventRecord, TagsRecord
from trunkline.registry.session import Aggregate, find_or_add
from trunkline.registry.tables import Event, Tag

MAX_TAGS = 100
"""The most tags of a subject."""

_KEY = re.compile(r"[a-z][a-z0-9_-]{0,39}", re.ASCII)


class Tags(Aggregate):
    """Sets, removes and lists tags; adds and lists notes."""

    def set(self, subject: str, key: str, value: str, *, actor: str | None = None) -> None:
        """Set a tag, replacing the one with this key.

        Raises:
            UsageError: the subject, key or value is malformed.
            NotFoundError: there is no such subject.
            RefusedError: it has 100 tags already.
        """
        self.update(subject, {key: value}, actor=actor)

    def remove(self, subject: str, key: str, *, actor: str | None = None) -> None:
        """Remove a tag.

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
        """Set and remove several tags of one subject in one transaction, with an event for each.

        Raises:
            As :meth:`set` and :meth:`remove`; nothing was changed then.
        """
        values = {check_key(key): stored_value(key, value) for key, value in values.items()}
        with self._sessions.write() as session:
            subject = find_subject(session, subject)
            for key in remove:
                _remove(session, subject, key, actor)
            for key, value in values.items():
                _set(session, subject, key, value, actor)
            count = select(func.count(Tag.id)).where(Tag.subject == subject)
            session.flush()
            if values and (session.scalar(count) or 0) > MAX_TAGS:
                raise RefusedError(
                    f"{subject} would have more than {MAX_TAGS} tags.",
                    f"Remove some first: trunkline tag {subject} --remove KEY.",
                )

    def get(self, subject: str) -> TagsRecord:
        """The tags of a subject, by key.

        Raises:
            NotFoundError: there is no such subject.
        """
        with self._sessions.read() as session:
            subject = find_subject(session, subject)
            tags = tags_of(session, [subject]).get(subject, {})
            return TagsRecord(subject=subject, tags=tags)

    def add_note(self, subject: str, text: str, *, actor: str | None = None) -> str:
        """Add a note for good; return the canonical name of its subject.

        Raises:
            UsageError: the text is empty, longer than 4,000 characters, or has control characters
                other than line ends and tabs.
            NotFoundError: there is no such subject.
        """
        text = stored_note(text)
        with self._sessions.write() as session:
            subject = find_subject(session, subject)
            add_event(session, actor, "note.added", subject, {"text": text})
            return subject

    def notes(
        self, subject: str, *, limit: int = 100, before: int | None = None
    ) -> list[EventRecord]:
        """The notes on a subject, newest first; ``before`` the ``seq`` of one, for the next page.

        Raises:
            NotFoundError: there is no such subject.
        """
        with self._sessions.read() as session:
            subject = find_subject(session, subject)
            query = select(Event).where(Event.subject == subject, is_note())
            if before is not None:
                query = query.where(Event.seq < before)
            rows = session.scalars(query.order_by(Event.seq.desc()).limit(limit))
            return [to_record(EventRecord, row) for row in rows]


def tags_of(session: Session, subjects: Collection[str]) -> dict[str, dict[str, str]]:
    """subject → key → value, by key; subjects without a tag are left out."""
    tags: dict[str, dict[str, str]] = {}
    query = select(Tag).where(Tag.subject.in_(subjects)).order_by(Tag.key)
    for row in session.scalars(query):
        tags.setdefault(row.subject, {})[row.key] = row.value
    return tags


def check_key(key: str) -> str:
    """Return ``key`` if it is a valid tag key; else raise :class:`UsageError`."""
    if not _KEY.fullmatch(key):
        raise UsageError(
            f"{shown(key)} is not a valid tag key.",
            "Use a-z, 0-9, '_' and '-', a letter first, at most 40 characters.",
        )
    return key


def _set(session: Session, subject: str, key: str, value: str, actor: str | None) -> None:
    new = Tag(subject=subject, key=key, value=value)
    row = find_or_add(session, new, Tag.subject == subject, Tag.key == key)
    previous = None if row is new else row.value
    if previous != value:
        row.value = value
        detail = {"key": key, "value": value, "previous": previous}
        add_event(session, actor, "tag.set", subject, detail)


def _remove(session: Session, subject: str, key: str, actor: str | None) -> None:
    query = select(Tag).where(Tag.subject == subject, Tag.key == check_key(key))
    row = session.scalar(query.with_for_update())
    if row is None:
        tags = tags_of(session, [subject]).get(subject, {})
        raise NotFoundError.named("tag", key, tags, f"List them with: trunkline tag {subject}.")
    session.delete(row)
    session.flush()
    add_event(session, actor, "tag.removed", subject, {"key": key, "value": row.value})

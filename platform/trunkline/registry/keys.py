"""Keys: who may use a server, with which adapters, and until when.

Owns: making, finding and removing keys; what an owner and a pattern may be.
Must not know: HTTP, or how a client sends its key.

A key is ``tl-<id>-<secret>``: the id, 8 characters, finds the row by its index and may be shown
to anyone; the secret is 256 random bits in 43 url-safe characters. Only the sha256 of the whole
key is kept. Since the secret can't be guessed, a fast hash is right; a slow one is for passwords.
An id begins with a digit, so that ``key/<id>`` can't be an adapter's name among the events.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import select

from trunkline.errors import NotFoundError, UsageError
from trunkline.refs import BASE, check_domain, check_name, shown
from trunkline.registry.records import KeyRecord
from trunkline.registry.session import Aggregate, add_event, utc_now
from trunkline.registry.tables import ApiKey

LONGEST_OWNER = 80

_ID = re.compile(r"[0-9][a-z0-9]{7}", re.ASCII)
_PLAIN = re.compile(rf"tl-({_ID.pattern})-[A-Za-z0-9_-]{{43}}", re.ASCII)


class Keys(Aggregate):
    """Creates, finds, lists and removes keys."""

    def create(
        self,
        owner: str,
        adapters: Sequence[str] = (),
        *,
        admin: bool = False,
        expires: datetime | None = None,
        actor: str | None = None,
    ) -> tuple[KeyRecord, str]:
        """Make a key; gives what is known of it, and the key itself, which is kept nowhere.

        Args:
            owner: who it is for, 1 to 80 printable characters.
            adapters: patterns, see :func:`check_pattern`; none means ``*``.
            admin: whether it opens the admin routes.
            expires: aware, and in the future.

        Raises:
            UsageError: any of these is not so.
        """
        now = utc_now()
        _check_owner(owner)
        patterns = _checked_patterns(adapters)
        until = None if expires is None else _checked_expiry(expires, now)
        id = secrets.choice(string.digits) + "".join(
            secrets.choice(string.ascii_lowercase + string.digits) for _ in range(7)
        )
        plain = f"tl-{id}-{secrets.token_urlsafe(32)}"
        row = ApiKey(
            id=id,
            owner=owner,
            secret_hash=_hash(plain),
            adapters=patterns,
            admin=admin,
            created=now,
            expires=until,
            removed=None,
        )
        detail = {
            "owner": owner,
            "adapters": patterns,
            "admin": admin,
            "expires": None if until is None else until.isoformat(),
        }
        with self._sessions.write() as session:
            session.add(row)
            add_event(session, actor, "key-created", key_subject(id), detail)
            session.flush()
            return _record(row), plain

    def authenticate(self, plain: str) -> KeyRecord | None:
        """The key that a client sent, if it may be used now; any text may be asked about.

        None for what is no key, unknown, removed or expired; which of these, nobody is told.
        """
        match = _PLAIN.fullmatch(plain)
        if match is None:
            return None
        with self._sessions.read() as session:
            row = session.scalar(select(ApiKey).where(ApiKey.id == match[1]))
            if row is None or not hmac.compare_digest(row.secret_hash, _hash(plain)):
                return None
            over = row.expires is not None and row.expires <= utc_now()
            return None if over or row.removed is not None else _record(row)

    def list(self) -> Sequence[KeyRecord]:
        """Every key there ever was, newest first, removed and expired ones too."""
        with self._sessions.read() as session:
            return [
                _record(row) for row in session.scalars(select(ApiKey).order_by(ApiKey.seq.desc()))
            ]

    def remove(self, id: str, *, actor: str | None = None) -> KeyRecord:
        """Make a key useless from now on; a key that was removed before is left as it is.

        Raises:
            NotFoundError: no key has this id.
        """
        with self._sessions.write() as session:
            query = select(ApiKey).where(ApiKey.id == id).with_for_update()
            row = session.scalar(query) if _ID.fullmatch(id) else None
            if row is None:
                raise NotFoundError(
                    f"There is no key {shown(id)}.", "See them with: trunkline keys list."
                )
            if row.removed is None:
                row.removed = utc_now()
                add_event(session, actor, "key-removed", key_subject(id), {"owner": row.owner})
            return _record(row)

    def has_any(self) -> bool:
        """Whether there is a key that was not removed.

        An expired one counts: a server must not open its doors because time passed.
        """
        with self._sessions.read() as session:
            query = select(ApiKey.seq).where(ApiKey.removed.is_(None)).limit(1)
            return session.scalar(query) is not None


def key_subject(id: str) -> str:
    """What a key's events are filed under; no adapter's name can look like it."""
    return f"key/{id}"


def check_pattern(text: str) -> str:
    """Give ``text`` back if it is ``*``, ``domain/*``, ``domain/name`` or ``base``.

    Raises:
        UsageError: it is none of these; a selector, too, since a key is for all versions.
    """
    if text in ("*", BASE):
        return text
    domain, slash, name = text.partition("/")
    if not slash or "@" in text:
        raise UsageError(
            f"{shown(text)} is not a pattern for adapters.",
            "Write '*', 'domain/*', 'domain/name' or 'base'; versions are not told apart.",
        )
    check_domain(domain)
    if name != "*":
        check_name(name)
    return text


def _checked_patterns(adapters: Sequence[str]) -> list[str]:
    if isinstance(adapters, str):
        raise UsageError(
            f"The adapters of a key are a list, not the text {shown(adapters)}.",
            f"Write [{shown(adapters)}].",
        )
    return list(dict.fromkeys(check_pattern(text) for text in adapters)) or ["*"]


def _check_owner(owner: str) -> None:
    if len(owner) > LONGEST_OWNER or not owner.isprintable() or not owner.strip():
        raise UsageError(
            f"{shown(owner)} can't be the owner of a key.",
            f"Write 1 to {LONGEST_OWNER} printable characters, for example 'billing service'.",
        )


def _checked_expiry(expires: datetime, now: datetime) -> datetime:
    """The time in UTC."""
    example = "Write a time to come with its zone, for example 2099-12-31T00:00:00+00:00."
    if expires.utcoffset() is None:
        raise UsageError(f"The expiry {expires.isoformat()} has no time zone.", example)
    try:
        until = expires.astimezone(UTC)
    except OverflowError:
        raise UsageError(f"The expiry {expires.isoformat()} is out of range.", example) from None
    if until <= now:
        raise UsageError(f"The expiry {expires.isoformat()} is in the past.", example)
    return until


def _hash(plain: str) -> str:
    return hashlib.sha256(plain.encode()).hexdigest()


def _record(row: ApiKey) -> KeyRecord:
    return KeyRecord(
        id=row.id,
        owner=row.owner,
        adapters=tuple(row.adapters),
        admin=row.admin,
        created=row.created,
        expires=row.expires,
        removed=row.removed,
    )

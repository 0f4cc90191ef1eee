"""API keys: who may use a server, with which adapters, and until when.

A key is ``tl-<id>-<secret>``: the id, 8 characters, finds the row by its index and is not secret;
the secret has 256 random bits in 43 url-safe characters. Only the sha256 of the whole key is
stored. The secret can't be guessed, so a fast hash is sufficient; slow hashes are for passwords.
An id starts with a digit, so that ``key/<id>`` can't be an adapter's name in an event.
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
from trunkline.registry.chain import add_event
from trunkline.registry.free_text import stored_owner
from trunkline.registry.lookup import key_subject
from trunkline.registry.mapping import key_record
from trunkline.registry.records import KeyRecord
from trunkline.registry.session import Aggregate
from trunkline.registry.tables import KEY_ROLES, ApiKey, utc_now

_ID = re.compile(r"[0-9][a-z0-9]{7}", re.ASCII)
_KEY = re.compile(rf"tl-({_ID.pattern})-[A-Za-z0-9_-]{{43}}", re.ASCII)


class Keys(Aggregate):
    """Creates, authenticates, lists and removes keys."""

    def create(
        self,
        owner: str,
        adapters: Sequence[str] = (),
        *,
        role: str = "tester",
        expires: datetime | None = None,
        actor: str | None = None,
    ) -> tuple[KeyRecord, str]:
        """Create a key; return its record, and the key itself, which is stored nowhere.

        Args:
            owner: a person or program, 1 to 80 printable characters.
            adapters: patterns, see :func:`check_pattern`; none means ``*``.
            role: one of :data:`~trunkline.registry.tables.KEY_ROLES`.
            expires: aware, and in the future.

        Raises:
            UsageError: an argument is invalid.
        """
        now = utc_now()
        owner = stored_owner(owner)
        _check_role(role)
        patterns = _checked_patterns(adapters)
        until = None if expires is None else _checked_expiry(expires, now)
        id = secrets.choice(string.digits) + "".join(
            secrets.choice(string.ascii_lowercase + string.digits) for _ in range(7)
        )
        key = f"tl-{id}-{secrets.token_urlsafe(32)}"
        row = ApiKey(
            id=id,
            owner=owner,
            secret_hash=_hash(key),
            adapters=patterns,
            role=role,
            created=now,
            expires=until,
            removed=None,
        )
        detail = {
            "owner": owner,
            "adapters": patterns,
            "role": role,
            "expires": None if until is None else until.isoformat(),
        }
        with self._sessions.write() as session:
            session.add(row)
            add_event(session, actor, "key.created", key_subject(id), detail)
            session.flush()
            return key_record(row), key

    def authenticate(self, text: str) -> KeyRecord | None:
        """The record of the key that a client sent, if it is valid now; any text is accepted.

        None if the text is not a key, or the key is unknown, removed or expired; the caller does
        not learn which.
        """
        match = _KEY.fullmatch(text)
        if match is None:
            return None
        with self._sessions.read() as session:
            row = session.scalar(select(ApiKey).where(ApiKey.id == match[1]))
            if row is None or not hmac.compare_digest(row.secret_hash, _hash(text)):
                return None
            return _if_valid(row)

    def get_valid(self, id: str) -> KeyRecord | None:
        """The record of the key with this id, if it is valid now: neither removed nor expired."""
        with self._sessions.read() as session:
            row = session.scalar(select(ApiKey).where(ApiKey.id == id))
            return None if row is None else _if_valid(row)

    def list(self) -> Sequence[KeyRecord]:
        """Every key ever created, newest first, with removed and expired ones."""
        query = select(ApiKey).order_by(ApiKey.seq.desc())
        with self._sessions.read() as session:
            return [key_record(row) for row in session.scalars(query)]

    def remove(self, id: str, *, actor: str | None = None) -> KeyRecord:
        """Invalidate a key; one that was removed before stays as it is.

        Raises:
            NotFoundError: no key has this id.
        """
        with self._sessions.write() as session:
            query = select(ApiKey).where(ApiKey.id == id).with_for_update()
            row = session.scalar(query) if _ID.fullmatch(id) else None
            if row is None:
                raise NotFoundError(
                    f"There is no key {shown(id)}.", "List them with: trunkline keys list."
                )
            if row.removed is None:
                row.removed = utc_now()
                add_event(session, actor, "key.removed", key_subject(id), {"owner": row.owner})
            return key_record(row)

    def has_any(self) -> bool:
        """Whether there is a key that was not removed.

        An expired key counts: a server must not become public because time passed.
        """
        with self._sessions.read() as session:
            query = select(ApiKey.seq).where(ApiKey.removed.is_(None)).limit(1)
            return session.scalar(query) is not None


def check_pattern(text: str) -> str:
    """Return ``text`` if it is ``*``, ``domain/*``, ``domain/name`` or ``base``.

    Raises:
        UsageError: it is none of these; selectors are not allowed, as keys are for all versions.
    """
    if text in ("*", BASE):
        return text
    domain, slash, name = text.partition("/")
    if not slash or "@" in text:
        raise UsageError(
            f"{shown(text)} is not a pattern for adapters.",
            "Write '*', 'domain/*', 'domain/name' or 'base'; a pattern covers all versions.",
        )
    check_domain(domain)
    if name != "*":
        check_name(name)
    return text


def _if_valid(row: ApiKey) -> KeyRecord | None:
    expired = row.expires is not None and row.expires <= utc_now()
    return None if expired or row.removed is not None else key_record(row)


def _check_role(role: str) -> None:
    if role not in KEY_ROLES:
        raise UsageError(
            f"{shown(role)} is not the role of a key.", f"Use one of: {', '.join(KEY_ROLES)}."
        )


def _checked_patterns(adapters: Sequence[str]) -> list[str]:
    if isinstance(adapters, str):
        raise UsageError(
            f"The adapters of a key are a list, not the text {shown(adapters)}.",
            f"Write [{shown(adapters)}].",
        )
    return list(dict.fromkeys(check_pattern(text) for text in adapters)) or ["*"]


def _checked_expiry(expires: datetime, now: datetime) -> datetime:
    """The time in UTC."""
    hint = "Write a future time with its zone, for example 2099-12-31T00:00:00+00:00."
    if expires.utcoffset() is None:
        raise UsageError(f"The expiry {expires.isoformat()} has no time zone.", hint)
    try:
        until = expires.astimezone(UTC)
    except OverflowError:
        raise UsageError(f"The expiry {expires.isoformat()} is out of range.", hint) from None
    if until <= now:
        raise UsageError(f"The expiry {expires.isoformat()} is in the past.", hint)
    return until


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()

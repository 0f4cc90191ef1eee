"""Check texts that people type and the registry keeps for good, and store them without secrets.

A reason, a note, a tag's value or an owner may hold a pasted URL with its password. Events can't be
changed afterwards, so :func:`~trunkline.redaction.redact` comes before.
"""

from __future__ import annotations

import re

from trunkline.errors import UsageError
from trunkline.redaction import HIDDEN, redact
from trunkline.refs import shown

MAX_OWNER_LENGTH = 80
MAX_VALUE_LENGTH = 500
MAX_NOTE_LENGTH = 4000

_ASSIGNED = re.compile(
    r"""(?ix) (\b [\w.-]* (?: passw(?:or)?d | pwd | secret | passphrase | token
        | (?: api | access | secret )_?key (?:_id)? ) ["']? (?: \s*=\s* | \s*:\s*(?=\S*\d\S*) ) )
    (?! \s ) \S{4,}"""
)
"""A pasted setting such as ``PGPASSWORD=x``; after a colon only what has a digit."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CONTROL_IN_NOTES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def stored_note(text: str) -> str:
    """A note as it is stored.

    Raises:
        UsageError: it is empty, longer than 4,000 characters, or has control characters other than
            line ends and tabs.
    """
    if not text.strip() or _is_unprintable(text):
        raise UsageError(
            f"{shown(text)} is not a valid note.",
            f"Write 1 to {MAX_NOTE_LENGTH:,} printable characters.",
        )
    return _without_secrets(text)


def stored_reason(text: str) -> str:
    """A reason as it is stored, without surrounding white space; it may be empty.

    Raises:
        UsageError: it is longer than a note may be, or has control characters.
    """
    if _is_unprintable(text):
        raise UsageError(
            f"{shown(text)} is not a valid reason.",
            f"Write at most {MAX_NOTE_LENGTH:,} printable characters.",
        )
    return _without_secrets(text.strip())


def stored_value(key: str, text: str) -> str:
    """The value of a tag as it is stored.

    Raises:
        UsageError: it is empty, longer than 500 characters, or has control characters.
    """
    if not text.strip() or len(text) > MAX_VALUE_LENGTH or _CONTROL.search(text):
        raise UsageError(
            f"{shown(text)} is not a valid value of the tag {key!r}.",
            f"Write 1 to {MAX_VALUE_LENGTH} printable characters on one line.",
        )
    return _without_secrets(text)


def stored_owner(text: str) -> str:
    """The owner of a key as it is stored.

    Raises:
        UsageError: it is empty, longer than 80 characters, or not printable.
    """
    if len(text) > MAX_OWNER_LENGTH or not text.isprintable() or not text.strip():
        raise UsageError(
            f"{shown(text)} is not a valid owner of a key.",
            f"Write 1 to {MAX_OWNER_LENGTH} printable characters, for example 'billing service'.",
        )
    return _without_secrets(text)


def _without_secrets(text: str) -> str:
    return _ASSIGNED.sub(rf"\1{HIDDEN}", redact(text))


def _is_unprintable(text: str) -> bool:
    return len(text) > MAX_NOTE_LENGTH or _CONTROL_IN_NOTES.search(text) is not None

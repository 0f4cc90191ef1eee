"""Refs: the names of adapters and versions, ``domain/name[@selector]``, and their grammar.

Every name from outside is checked here before it becomes a path or a query.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from trunkline.errors import UsageError
from trunkline.redaction import HIDDEN, redact

BASE = "base"
"""The name of the bare base, accepted where a model is named; it is not a ref."""

EXAMPLE = "medical/icd10-chapter@3"

_DOMAIN = re.compile(r"[a-z][a-z0-9-]{0,39}", re.ASCII)
_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}", re.ASCII)
_ALIAS = _DOMAIN
_NUMBER = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_RESERVED_ALIAS = re.compile(r"latest|base|v[0-9]+", re.ASCII)
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Ref:
    """``domain/name[@selector]``, checked when it is made.

    Attributes:
        domain: of the plugin.
        name: of the adapter within the domain.
        selector: a number from 1 to 999,999,999, an alias, ``sha256:`` with 64 hex digits, or None
            for whatever answers by default.

    Raises:
        UsageError: any part breaks the grammar or is reserved.
    """

    domain: str
    name: str
    selector: str | None = None

    def __post_init__(self) -> None:
        check_domain(self.domain)
        check_name(self.name)
        if self.selector is not None:
            _check_selector(self.selector)

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Parse a ref as a user writes it; the inverse of ``str``."""
        if text == BASE:
            raise UsageError(
                "'base' means the bare base, which is not an adapter.",
                f"Name an adapter, for example {EXAMPLE}.",
            )
        adapter, at, selector = text.partition("@") if isinstance(text, str) else ("", "", "")
        parts = adapter.split("/")
        if len(parts) != 2:
            raise UsageError(
                f"{shown(text)} is not a ref.",
                f"Write domain/name or domain/name@selector, for example {EXAMPLE}.",
            )
        return cls(parts[0], parts[1], selector if at else None)

    def __str__(self) -> str:
        return self.adapter if self.selector is None else f"{self.adapter}@{self.selector}"

    @property
    def adapter(self) -> str:
        """``domain/name``, without the selector."""
        return f"{self.domain}/{self.name}"

    @property
    def number(self) -> int | None:
        """The selector as a version number, if it is one."""
        return int(self.selector) if self.selector and _NUMBER.fullmatch(self.selector) else None

    @property
    def alias(self) -> str | None:
        """The selector as an alias, if it is one."""
        return self.selector if self.selector and _ALIAS.fullmatch(self.selector) else None

    @property
    def digest(self) -> str | None:
        """The selector as a digest, ``sha256:`` included, if it is one."""
        return self.selector if self.selector and _DIGEST.fullmatch(self.selector) else None

    def at(self, selector: str | int | None) -> Ref:
        """The same adapter under another selector."""
        return Ref(self.domain, self.name, None if selector is None else str(selector))


def check_domain(text: str) -> str:
    """Return ``text`` if it is a valid domain; else raise :class:`UsageError`."""
    return _checked(_DOMAIN, text, "domain", 40, "medical")


def check_name(text: str) -> str:
    """Return ``text`` if it is a valid adapter name within a domain; else raise UsageError."""
    return _checked(_NAME, text, "adapter name", 64, "icd10-chapter")


def check_alias(text: str) -> str:
    """Return ``text`` if it is a valid alias; else raise :class:`UsageError`."""
    _checked(_ALIAS, text, "alias", 40, "champion")
    if _RESERVED_ALIAS.fullmatch(text):
        raise UsageError(
            f"{shown(text)} is reserved and can't be an alias.",
            "A version is named by its bare number, as in @3; the newest answers where no alias "
            "'champion' is set. Choose an alias such as 'champion'.",
        )
    return text


def valid_name(text: str, prefix: str = "adapter", length: int = 64) -> str:
    """The closest valid name to a text, such as ``text2sql-v1-0`` for ``Text2SQL_v1.0``.

    Letters lose their accents and their case, letters of other alphabets are left out, and
    everything else becomes a hyphen. Empty if nothing is left.

    Args:
        text: any text.
        prefix: is put before a name that does not begin with a letter.
        length: the most characters.
    """
    plain = unicodedata.normalize("NFKD", text).lower()
    kept = [
        char
        for char in plain
        if char.isascii() or not (char.isalnum() or unicodedata.combining(char))
    ]
    name = re.sub(r"[^a-z0-9]+", "-", "".join(kept)).strip("-")
    if name and not name[0].isalpha():
        name = f"{prefix}-{name}"
    return name[:length].rstrip("-")


def check_digest(text: str) -> str:
    """Return ``text`` if it is ``sha256:`` with 64 lower-case hex digits; else raise UsageError."""
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise UsageError(
            f"{shown(text)} is not a digest.",
            f"Write sha256: and 64 hex digits in lower case, for example sha256:{'0f' * 3}….",
        )
    return text


def shown(value: object) -> str:
    """``value`` quoted for an error: in ASCII, to reveal look-alike characters, shortened, and
    without secrets."""
    if not isinstance(value, str):
        return ascii(value)[:_SHOWN]
    value = redact(value)
    quoted = ascii(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!a}…"
    return quoted.replace(ascii(HIDDEN)[1:-1], HIDDEN)


def _check_selector(text: str) -> None:
    if isinstance(text, str):
        if _NUMBER.fullmatch(text):
            return
        if text.startswith("sha256:"):
            check_digest(text)
            return
        if _ALIAS.fullmatch(text):
            check_alias(text)
            return
    raise UsageError(
        f"{shown(text)} selects no version.",
        f"After @ comes a number, an alias, or sha256: and 64 hex digits, for example {EXAMPLE}.",
    )


def _checked(pattern: re.Pattern[str], text: str, kind: str, most: int, example: str) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        named = isinstance(text, str) and not re.search("[:@?].*[:@=]", text)  # else a URL
        valid = valid_name(text, kind.split()[0], most) if named else ""
        if kind == "alias" and _RESERVED_ALIAS.fullmatch(valid):
            valid = ""
        would_do = f"; {valid!r} would do" if valid else f", for example {example!r}"
        raise UsageError(
            f"{shown(text)} is not a valid {kind}.",
            f"Use a-z, 0-9 and '-', a letter first, at most {most} characters{would_do}.",
        )
    return text

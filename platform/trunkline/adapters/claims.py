"""Somebody else's JSON objects, read field by field without trust.

Owns: what a text, a number, a time from outside may be. Must not know: what any field means.

Every reader raises ValueError or TypeError that ends in what was wrong; the caller says where.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

MOST_TEXT = 1_000_000
MOST_PARTS = 100_000
MOST_DEPTH = 30
MOST_FIGURE = 1e300

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Claim:
    """A JSON object from outside."""

    said: Mapping[str, Any]

    def expect(self, *names: str) -> None:
        """Raise ValueError at a key that has no place here."""
        if unknown := sorted(self.said.keys() - set(names)):
            raise ValueError(f"{plain_text(unknown[0])!r} has no place in it.")

    def get(self, key: str) -> Any:
        """The value as it stands; None where there is none."""
        return self.said.get(key)

    def text(self, key: str) -> str:
        """A text without control characters."""
        return checked_text(self.said[key], key)

    def text_or_none(self, key: str) -> str | None:
        """A text, or None."""
        return None if self.said.get(key) is None else self.text(key)

    def whole(self, key: str, least: int, most: int) -> int:
        """A whole number of the range, both ends included."""
        value = self.said[key]
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{key!r} is no whole number from {least} to {most}.")
        return value

    def time(self, key: str) -> datetime:
        """A point in time, aware, in UTC."""
        value = datetime.fromisoformat(self.text(key))
        if value.tzinfo is None:
            raise ValueError(f"{key!r} has no time zone.")
        try:
            return value.astimezone(UTC)
        except OverflowError:
            raise ValueError(f"{key!r} is out of range.") from None

    def time_or_none(self, key: str) -> datetime | None:
        """A point in time, or None."""
        return None if self.said.get(key) is None else self.time(key)

    def figures(self, *keys: str) -> None:
        """Raise ValueError unless each is a finite number or null."""
        for key in keys:
            value = self.said.get(key)
            if value is None:
                continue
            if type(value) not in (int, float) or not abs(value) < MOST_FIGURE:
                raise ValueError(f"{key!r} is no finite number.")

    def part(self, key: str) -> Self:
        """The object under ``key``."""
        value = self.said[key]
        if not isinstance(value, Mapping):
            raise ValueError(f"{key!r} is no object.")
        return type(self)(value)

    def part_or_none(self, key: str) -> Self | None:
        """The object under ``key``, or None."""
        return None if self.said.get(key) is None else self.part(key)

    def parts(self, key: str) -> Iterator[Self]:
        """The objects in the list under ``key``."""
        value = self.said[key]
        if not isinstance(value, list) or len(value) > MOST_PARTS:
            raise ValueError(f"{key!r} is no list, or too long a one.")
        for one in value:
            yield type(self)({key: one}).part(key)

    def free(self) -> dict[str, Any]:
        """The object with whatever stands in it, its texts free of control characters."""
        _check_texts(self.said)
        return dict(self.said)


def checked_text(value: Any, what: str) -> str:
    """``value`` if it is a text of a sane length without control characters."""
    if not isinstance(value, str) or len(value) > MOST_TEXT or _CONTROL.search(value):
        raise ValueError(f"{what!r} is no plain text.")
    return value


def plain_text(value: str) -> str:
    """A foreign text in one line, for a message: in ASCII and cut."""
    return ascii(value)[1:-1][:60]


def plain_value(value: Any) -> Any:
    """A value in terms of JSON as it is read back: not-a-number and infinities are null, a control
    character is U+FFFD, what is no JSON is a text."""
    if isinstance(value, str):
        return _CONTROL.sub("\ufffd", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        return {plain_value(str(key)): plain_value(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain_value(item) for item in value]
    return plain_value(str(value))


def _check_texts(value: Any, depth: int = 0) -> None:
    if depth > MOST_DEPTH:
        raise ValueError("it is nested too deeply.")
    if isinstance(value, str):
        checked_text(value, plain_text(value))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            checked_text(key, plain_text(key))
            _check_texts(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_texts(item, depth + 1)

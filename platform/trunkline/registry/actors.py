"""Who acts: the texts that events carry for it, written and read.

Owns: their form. Must not know: keys' rows, HTTP, or the operating system.

``system:<user>`` is the operating system's user: the process says so and nobody checked, so it is
unauthenticated. ``key/<id> <owner>`` is the owner of an API key that a server has seen and found
valid. Anything else was written by a program that uses the library, and is unauthenticated.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Self

_KEY = re.compile(r"key/([0-9][a-z0-9]{7}) (.+)", re.ASCII | re.DOTALL)
_SYSTEM = "system:"


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody who did something.

    Attributes:
        text: as it stands in events.
        owner: the person or program, without where it is known from.
        authenticated: whether a server checked a key.
        key: id of that key.
    """

    text: str
    owner: str
    authenticated: bool
    key: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the actor of an event; any text is somebody."""
        if (match := _KEY.fullmatch(text)) is not None:
            return cls(text, match[2], True, match[1])
        return cls(text, text.removeprefix(_SYSTEM), False)

    def is_same_person(self, other: Actor) -> bool:
        """Whether both have one owner, in whatever case and Unicode form it is written."""
        return _folded(self.owner) == _folded(other.owner)


def key_actor(id: str, owner: str) -> str:
    """The actor of a request that came with a key."""
    return f"key/{id} {owner}"


def _folded(owner: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", owner).casefold().split())

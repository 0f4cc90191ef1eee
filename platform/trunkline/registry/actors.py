"""Who acts: operating-system users, owners of API keys, and processes.

``system:<user>`` names the operating system's user; nobody verified it, so it is unauthenticated.
``key/<id> <owner>`` names the owner of an API key that a server verified. Any other text was
written by a program that uses the library, and is unauthenticated.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_KEY = re.compile(r"key/([0-9][a-z0-9]{7}) (.+)", re.ASCII | re.DOTALL)
_SYSTEM = "system:"


@dataclass(frozen=True, slots=True)
class Actor:
    """A person or program that changed something.

    Attributes:
        text: as it is stored in events.
        owner: the person or program, without how it was identified.
        authenticated: whether a server verified an API key.
        key: id of that key.
    """

    text: str
    owner: str
    authenticated: bool
    key: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the actor of an event; every text is valid."""
        if (match := _KEY.fullmatch(text)) is not None:
            return cls(text, match[2], True, match[1])
        return cls(text, text.removeprefix(_SYSTEM), False)

    def is_same_person(self, other: Actor) -> bool:
        """Whether both have one owner, ignoring case, white space and Unicode form."""
        return _folded(self.owner) == _folded(other.owner)


def key_actor(id: str, owner: str) -> str:
    """The actor of a request that was authenticated by a key."""
    return f"key/{id} {owner}"


def system_actor() -> str:
    """The default actor: the operating system's user, unauthenticated."""
    try:
        return f"system:{getpass.getuser()}"
    except (KeyError, OSError, ImportError):
        return f"system:{os.getuid()}"


def _folded(owner: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", owner).casefold().split())


# ------------------------------------------------------------------------------------ processes


def current_process() -> dict[str, Any]:
    """The identity of this process: ``host``, ``pid`` and ``started`` (None outside Linux)."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": process_start(pid)}


def process_is_alive(pid: int) -> bool:
    """Whether a process of this host runs; a zombie does not."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state not in ("Z", "X")


def process_start(pid: int) -> str | None:
    """Clock ticks from boot to the process's start, field 22 of proc(5); None outside Linux.

    Together with the pid it distinguishes a process from a later one with the same pid.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else None

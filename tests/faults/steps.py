"""Count the steps that a process takes on its disk and database, and inject a fault at one.

A fault kills the process right before a step, right after it or in the middle of a write, or makes
the disk full from that step on.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

When = Literal["before", "after", "torn", "full"]

TORN = frozenset({"write"})
"""Kinds of steps that can be half done."""

NEEDS_ROOM = frozenset({"open", "write", "mkdir", "sql", "commit", "put"})
"""Kinds of steps that fail on a full disk; syncs, renames and removals do not."""

LOST = 97
"""The exit status of a child whose step differs from the expected one."""

_STAMP = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_RANDOM = re.compile(r"(?<=[-.])(?:[a-z0-9_]{8}|[0-9a-f]{16}|[0-9a-f]{32})(?=$|[/.])")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a command.

    Attributes:
        kind: ``open``, ``write``, ``sync``, ``rename``, ``mkdir``, ``remove``, ``mode``, ``cut``,
            ``sql``, ``commit``, ``backup`` or ``put``.
        what: the path below the watched folder, or the beginning of the statement.
    """

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind} {self.what}"


@dataclass(frozen=True, slots=True)
class Fault:
    """What fails, and at which step (counted from 0)."""

    index: int
    when: When
    step: Step


def faults_of(steps: list[Step], *modes: When) -> list[Fault]:
    """All faults of these modes that are possible at these steps, in order."""
    possible = {
        "before": lambda step: True,
        "after": lambda step: True,
        "torn": lambda step: step.kind in TORN,
        "full": lambda step: step.kind in NEEDS_ROOM,
    }
    return [
        Fault(index, mode, step)
        for index, step in enumerate(steps)
        for mode in modes
        if possible[mode](step)
    ]


class Watch:
    """Counts the steps that the wrappers report for paths below ``root``.

    Args:
        root: other paths are not counted; statements and commits always are.
        fault: the fault to inject.
    """

    def __init__(self, root: Path, fault: Fault | None = None) -> None:
        self.steps: list[Step] = []
        self._root = os.path.realpath(root) + os.sep
        self._fault = fault
        self._lock = threading.Lock()

    def arrive(self, kind: str, what: str) -> When | None:
        """Count a step before it is taken; return the mode of the fault if it is at this step."""
        with self._lock:
            index = len(self.steps)
            self.steps.append(Step(kind, what))
        fault = self._fault
        if fault is None or index < fault.index:
            return None
        if fault.when == "full":
            if index == fault.index and fault.step != self.steps[index]:
                os._exit(LOST)
            if kind in NEEDS_ROOM:
                raise _full(kind)
            return None
        if index > fault.index:
            return None
        if fault.step != self.steps[index]:
            os._exit(LOST)
        if fault.when == "before":
            die()
        return fault.when

    def take(self, kind: str, what: str, act: Callable[[], Any]) -> Any:
        """Take an atomic step."""
        met = self.arrive(kind, what)
        try:
            return act()
        finally:
            if met == "after":
                die()

    def write(self, path: str, data: Any, act: Callable[[Any], Any]) -> Any:
        """Take a step that writes ``data``; a torn one writes half of it."""
        met = self.arrive("write", path)
        if met == "torn":
            view = memoryview(data).cast("B")
            act(view[: len(view) // 2])
            die()
        result = act(data)
        if met == "after":
            die()
        return result

    def label(self, path: Any, folder: int | None = None) -> str | None:
        """The label of ``path`` (a name or an open file); None outside of the watched folder."""
        try:
            if isinstance(path, int):
                name = os.readlink(f"/proc/self/fd/{path}")
            else:
                name = os.fsdecode(path)
                if folder is not None and not os.path.isabs(name):
                    name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
                parent, last = os.path.split(os.path.abspath(name))
                name = os.path.join(os.path.realpath(parent), last)
        except (OSError, TypeError, ValueError):
            return None
        if not name.startswith(self._root):
            return None
        return without_random_parts(name.removeprefix(self._root))


def without_random_parts(name: str) -> str:
    """A name without the random parts and times that differ between runs."""
    return _RANDOM.sub("*", _STAMP.sub("STAMP", name))


def _full(kind: str) -> Exception:
    if kind in ("sql", "commit"):
        return sqlite3.OperationalError("database or disk is full")
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def die() -> NoReturn:
    """End this process as the kernel or a power cut would, without running anything."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")

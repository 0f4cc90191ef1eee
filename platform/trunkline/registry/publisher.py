"""Who holds a reserved number: a process on a host, and whether it still lives.

Owns: the few words a reservation carries about its publisher, and the rule by which it counts as
gone. Must not know: tables, files.

On the same host a publisher is gone when its process is: exactly so on Linux, where the process's
start time tells it from a later one of the same number. Of another host nothing can be asked, so
its reservation counts as given up after :data:`PATIENCE`. A publisher that comes back later than
that can't make its version visible any more, and takes its files away itself.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from trunkline.registry.servers import process_lives

OCCUPIED = "files of another registry stand in its place"
"""Why a number is abandoned whose place in the store is taken; those files are not its own."""

PATIENCE = timedelta(hours=1)


def this_process() -> dict[str, Any]:
    """What a reservation keeps: ``host``, ``pid`` and, where the system tells it, ``started``."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _started(pid)}


def is_gone(publisher: Mapping[str, Any] | None, reserved: datetime, now: datetime) -> bool:
    """Whether nobody can be publishing under a reservation any more.

    Args:
        publisher: from :func:`this_process`; None where an earlier release reserved.
        reserved, now: aware.
    """
    if publisher is None or publisher.get("host") != socket.gethostname():
        return now - reserved > PATIENCE
    pid = publisher.get("pid")
    if not isinstance(pid, int) or not process_lives(pid):
        return True
    started = _started(pid)
    return started is not None and started != publisher.get("started")


def _started(pid: int) -> str | None:
    """Clock ticks from boot to the process's start, as Linux tells them; field 22 of proc(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else None

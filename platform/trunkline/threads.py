"""OpenMP settings for machines where several processes compute at once."""

from __future__ import annotations

import os
from collections.abc import Callable, MutableMapping

SPIN_COUNT = 2000
"""Rounds that an idle OpenMP worker spins before it sleeps; see ``benchmarks/bench_shared.py``.

GNU OpenMP's default is far higher: a worker that waits keeps its core from other processes, and two
computing processes slow each other down.
"""

_USERS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_BUSY = 0.5
"""Share of the cores that other processes may keep busy without a warning."""


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let idle OpenMP workers sleep early, unless the user chose a policy.

    Takes effect only before torch is imported, and reaches child processes.
    """
    if not any(name in environment for name in _USERS):
        environment["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def contention_warning(
    load: Callable[[], tuple[float, float, float]] | None = None, cores: int | None = None
) -> str | None:
    """One sentence if other processes keep the cores busy now, else None.

    Args:
        load: returns the load averages of 1, 5 and 15 minutes; by default the system's. Ask
            before this process computes, or it counts itself.
        cores: of this process; by default those that it may run on.
    """
    load = load or getattr(os, "getloadavg", None)
    if load is None:
        return None
    if cores is None:
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    busy = load()[0]
    if busy < max(1.0, _BUSY * cores):
        return None
    return (
        f"Other processes keep {busy:.1f} of {cores} cores busy (load average), so steps will be "
        "slower. Stop them, or give each process its own cores with `taskset`."
    )

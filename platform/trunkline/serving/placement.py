"""Which replica answers a request for an adapter: rendezvous hashing with bounded load.

Each adapter has its own order of the replicas, so its requests go to few of them, and a replica
keeps few adapters in memory. A replica with too many requests is passed over, so a hot adapter
spreads. Rendezvous hashing: Thaler and Ravishankar 1998, "Using name-based mappings to increase hit
rates". Bounded load: Mirrokni, Thorup and Zadimoghaddam 2018, "Consistent hashing with bounded
loads".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

BOUND = 1.25
"""A replica takes at most so many times the mean of the requests in flight, rounded up."""


def order(adapter: str, replicas: Iterable[str]) -> list[str]:
    """The replicas in the adapter's own order, which does not depend on that of ``replicas``.

    A replica that leaves or joins changes the first place of as many adapters as it has.
    """
    return sorted(replicas, key=lambda replica: _score(adapter, replica), reverse=True)


def place(adapter: str, loads: Mapping[str, float], bound: float = BOUND) -> str:
    """The replica for one more request.

    Args:
        adapter: the name or the digest of a version.
        loads: replica → its requests in flight; at least one replica.
        bound: at least 1; infinity: always the first of :func:`order`.
    """
    mean = (sum(loads.values()) + 1) / len(loads)
    most = math.inf if math.isinf(bound) else math.ceil(bound * mean)
    return next(one for one in order(adapter, loads) if loads[one] + 1 <= most)


def _score(adapter: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{replica}\0{adapter}".encode(), digest_size=8).digest()

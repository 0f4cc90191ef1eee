"""Keep a server's row in the registry up to date: heartbeats, and the versions that it has loaded.

A thread writes the row, so no request waits for it. If the registry is locked, the thread retries.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from trunkline.errors import TrunklineError

if TYPE_CHECKING:
    from trunkline.bases import AnyInfo
    from trunkline.contracts import Modality
    from trunkline.lora.pool import AdapterPool
    from trunkline.registry.registry import Registry

HEARTBEAT_SECONDS = 15.0
"""The interval between two heartbeats."""

CHECK_SECONDS = 60.0
"""The interval between two looks at the schema and at the ends of the hash chains."""

_RETRY_SECONDS = 1.0
_MAX_BATCH = 256


@dataclass(frozen=True, slots=True)
class RegistryHealth:
    """What a server's heartbeat last saw of the registry.

    Attributes:
        recorded_at: Unix time of the last heartbeat that was written.
        schema_usable: whether this release may use the schema of the registry.
        chains: hash chain → whether its last rows are intact.
    """

    recorded_at: float
    schema_usable: bool
    chains: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class LoadEvent:
    """A version was loaded into memory, or unloaded."""

    digest: str
    ref: str
    loaded: bool


@dataclass(slots=True)
class LoadBatch:
    """Events that one transaction can record: no version is loaded after it was unloaded."""

    loaded: dict[str, str] = field(default_factory=dict)
    unloaded: set[str] = field(default_factory=set)

    def accepts(self, event: LoadEvent) -> bool:
        """Whether the event may be recorded in the same transaction."""
        if len(self.loaded) + len(self.unloaded) >= _MAX_BATCH:
            return False
        return event.digest not in self.unloaded

    def add(self, event: LoadEvent) -> None:
        """Add an event."""
        if event.loaded:
            self.loaded[event.digest] = event.ref
        else:
            self.unloaded.add(event.digest)


class ServerHeartbeat:
    """A server's row in the registry, written by a thread from :meth:`start` to :meth:`stop`.

    Args:
        url: where the server listens; empty if another program owns the socket.
        modality: what the base reads.
        dtype: in which the base computes.
        interval: seconds between two heartbeats.

    Attributes:
        health: what the last heartbeat saw; None before the first one.
    """

    def __init__(
        self,
        registry: Registry,
        base: AnyInfo,
        url: str,
        *,
        modality: Modality = "text",
        dtype: str | None = None,
        interval: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._registry = registry
        self._dtype, self._modality = dtype, modality
        self._base = base
        self._url = url
        self._interval = interval
        self._number: int | None = None
        self._events: queue.SimpleQueue[LoadEvent | None] = queue.SimpleQueue()
        self._batches: deque[LoadBatch] = deque()
        self._resident: dict[str, str] = {}
        self._failing = False
        self.health: RegistryHealth | None = None
        self._next_check = 0.0
        self._pools: list[AdapterPool] = []
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def watch(self, pool: AdapterPool) -> None:
        """Record the adapters in the pool, and those that it loads and evicts from now on."""
        pool.observe(self._observe)
        self._pools.append(pool)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Record the remaining events and the server's end.

        Blocks; at most for twice the time that the registry waits for a lock.
        """
        for pool in self._pools:
            pool.unobserve(self._observe)
        self._events.put(None)
        self._thread.join()

    def _observe(self, digest: str, ref: str, loaded: bool) -> None:
        self._events.put(LoadEvent(digest, ref, loaded))

    def _run(self) -> None:
        wait = 0.0
        while True:
            events, stopping = self._next_events(wait)
            self._add(events)
            if stopping:
                self._attempt(self._record_stop)
                return
            recorded = self._attempt(self._record)
            wait = self._interval if recorded else min(_RETRY_SECONDS, self._interval)

    def _next_events(self, wait: float) -> tuple[list[LoadEvent], bool]:
        """Wait for events, at most for ``wait`` seconds; also whether to stop."""
        events: list[LoadEvent] = []
        deadline = time.monotonic() + wait
        while True:
            left = 0.0 if events else max(0.0, deadline - time.monotonic())
            try:
                event = self._events.get(timeout=left) if left else self._events.get_nowait()
            except queue.Empty:
                return events, False
            if event is None:
                return events, True
            events.append(event)

    def _add(self, events: Iterable[LoadEvent]) -> None:
        for event in events:
            if event.loaded:
                self._resident[event.digest] = event.ref
            else:
                self._resident.pop(event.digest, None)
            if not self._batches or not self._batches[-1].accepts(event):
                self._batches.append(LoadBatch())
            self._batches[-1].add(event)

    def _attempt(self, write: Callable[[], object]) -> bool:
        """Whether writing succeeded; only the first of consecutive failures is logged."""
        log = logging.getLogger("trunkline.serving")
        try:
            write()
        except TrunklineError as error:
            if not self._failing:
                log.warning("The server's heartbeat could not be recorded: %s", error.message)
            self._failing = True
        except Exception:
            if not self._failing:
                log.exception("The server's heartbeat could not be recorded.")
            self._failing = True
        else:
            self._failing = False
        return not self._failing

    def _record(self) -> int:
        if self._number is None:
            self._number = self._register()
        if not self._write(self._number):
            # An older registry was restored, or one in which this server has stopped.
            self._number = self._register()
            self._batches.clear()
            self._add([LoadEvent(digest, ref, True) for digest, ref in self._resident.items()])
            self._write(self._number)
        self._look()
        return self._number

    def _look(self) -> None:
        """Note that the heartbeat was written, and look at the registry if it is time to."""
        if self.health is not None and time.monotonic() < self._next_check:
            self.health = replace(self.health, recorded_at=time.time())
            return
        usable = self._registry.sessions.usable
        chains = self._registry.audit.ends_are_intact()
        self.health = RegistryHealth(time.time(), usable, chains)
        self._next_check = time.monotonic() + CHECK_SECONDS

    def _write(self, number: int) -> bool:
        """Record the events, or a heartbeat if there are none; False if the row is gone."""
        if not self._batches:
            return self._registry.servers.heartbeat(number)
        while self._batches:
            batch = self._batches[0]
            loaded = [(ref, digest) for digest, ref in batch.loaded.items()]
            if not self._registry.servers.record_loads(number, loaded, sorted(batch.unloaded)):
                return False
            self._batches.popleft()
        return True

    def _register(self) -> int:
        base = self._base
        self._registry.sources.record_base(
            digest=base.digest,
            name=base.name,
            source=base.source,
            architecture=base.architecture,
            parameters=base.parameters,
            dtype=base.dtype,
            modality=self._modality,
        )
        return self._registry.servers.start(
            socket.gethostname(), os.getpid(), self._url, base.digest, dtype=self._dtype
        )

    def _record_stop(self) -> None:
        self._registry.servers.stop(self._record())

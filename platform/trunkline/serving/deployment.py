"""Telling the registry that this server lives, and which versions it holds.

Owns: the thread that tells, and what is told again after the registry could not be written.
Must not know: routes, requests, or how adapters are loaded.

No request waits for this: what happens is put into a queue, and a registry that is locked only
makes the thread try again.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trunkline.errors import TrunklineError

if TYPE_CHECKING:
    from trunkline.bases.info import BaseInfo
    from trunkline.lora.pool import AdapterPool
    from trunkline.registry.registry import Registry

BEAT_SECONDS = 15.0
"""Between two signs of life."""

_RETRY_SECONDS = 1.0
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Change:
    """A version that came into memory, or left it."""

    digest: str
    ref: str
    loaded: bool


@dataclass(slots=True)
class Batch:
    """Changes that one transaction can tell: nothing is loaded in it after it was unloaded."""

    loaded: dict[str, str] = field(default_factory=dict)
    unloaded: set[str] = field(default_factory=set)

    def takes(self, change: Change) -> bool:
        """Whether the change may be told together with these."""
        if len(self.loaded) + len(self.unloaded) >= _BATCH:
            return False
        return change.digest not in self.unloaded

    def add(self, change: Change) -> None:
        """Put a change to these."""
        if change.loaded:
            self.loaded[change.digest] = change.ref
        else:
            self.unloaded.add(change.digest)


class Presence:
    """A server's entry in the registry, kept by a thread from :meth:`start` to :meth:`stop`.

    Args:
        url: where the server listens; empty where another program holds the socket.
        dtype: in which the base computes.
        beat: seconds between two signs of life.
    """

    def __init__(
        self,
        registry: Registry,
        base: BaseInfo,
        url: str,
        *,
        dtype: str | None = None,
        beat: float = BEAT_SECONDS,
    ) -> None:
        self._registry = registry
        self._dtype = dtype
        self._base = base
        self._url = url
        self._beat = beat
        self._number: int | None = None
        self._changes: queue.SimpleQueue[Change | None] = queue.SimpleQueue()
        self._batches: deque[Batch] = deque()
        self._held: dict[str, str] = {}
        self._failing = False
        self._unwatch: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="deployment", daemon=True)

    def watch(self, pool: AdapterPool) -> None:
        """Tell of what the adapter pool holds, and of what it loads and puts out from now on."""
        pool.observe(self._observe)
        self._unwatch = lambda: pool.unobserve(self._observe)

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def stop(self) -> None:
        """Tell what is left and that the server ends; blocks, at most for two waits on a lock."""
        self._unwatch()
        self._changes.put(None)
        self._thread.join()

    def _observe(self, digest: str, ref: str, loaded: bool) -> None:
        self._changes.put(Change(digest, ref, loaded))

    def _run(self) -> None:
        wait = 0.0
        while True:
            changes, ending = self._arrived(wait)
            self._sort(changes)
            if ending:
                self._attempt(self._end)
                return
            wait = self._beat if self._attempt(self._tell) else min(_RETRY_SECONDS, self._beat)

    def _arrived(self, wait: float) -> tuple[list[Change], bool]:
        """What has happened, once something has or the time is over; and whether to end."""
        found: list[Change] = []
        until = time.monotonic() + wait
        while True:
            left = 0.0 if found else max(0.0, until - time.monotonic())
            try:
                change = self._changes.get(timeout=left) if left else self._changes.get_nowait()
            except queue.Empty:
                return found, False
            if change is None:
                return found, True
            found.append(change)

    def _sort(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if change.loaded:
                self._held[change.digest] = change.ref
            else:
                self._held.pop(change.digest, None)
            if not self._batches or not self._batches[-1].takes(change):
                self._batches.append(Batch())
            self._batches[-1].add(change)

    def _attempt(self, telling: Callable[[], object]) -> bool:
        log = logging.getLogger("trunkline.serving")
        try:
            telling()
        except TrunklineError as error:
            if not self._failing:
                log.warning("The registry can't be told of this server: %s", error.message)
            self._failing = True
        except Exception:
            if not self._failing:
                log.exception("The registry can't be told of this server.")
            self._failing = True
        else:
            self._failing = False
        return not self._failing

    def _tell(self) -> int:
        if self._number is None:
            self._number = self._begin()
        if not self._told(self._number):
            # The registry was put back to an older state, or to one in which this server ended.
            self._number = self._begin()
            self._batches.clear()
            self._sort([Change(digest, ref, True) for digest, ref in self._held.items()])
            self._told(self._number)
        return self._number

    def _told(self, number: int) -> bool:
        """Tell what waits, else that the server lives; False where the registry knows no such."""
        if not self._batches:
            return self._registry.servers.heartbeat(number)
        while self._batches:
            batch = self._batches[0]
            loaded = [(ref, digest) for digest, ref in batch.loaded.items()]
            if not self._registry.servers.record_loads(number, loaded, sorted(batch.unloaded)):
                return False
            self._batches.popleft()
        return True

    def _begin(self) -> int:
        base = self._base
        self._registry.sources.record_base(
            digest=base.digest,
            name=base.name,
            source=base.source,
            architecture=base.architecture,
            parameters=base.parameters,
            dtype=base.dtype,
        )
        return self._registry.servers.start(
            socket.gethostname(), os.getpid(), self._url, base.digest, dtype=self._dtype
        )

    def _end(self) -> None:
        self._registry.servers.stop(self._tell())

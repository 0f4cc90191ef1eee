"""Who comes next: waiting sequences, adapter by adapter.

Owns: the queues and the order of admission. Must not know: models, memory, time.

The policy is the virtual token counter (Sheng et al. 2024, "Fairness in serving large language
models", section 4): each adapter has a counter of the tokens that it was served, prompt tokens
once and new tokens twice; the next free row goes to the waiting adapter with the smallest counter,
of equals to the one with fewer rows, and within an adapter to whoever came first. Prompts that are
being read share a step in the same order. An adapter that
comes back after a pause is lifted to the smallest counter of those that are busy, so that nobody
saves up. A flood for one adapter therefore delays its own requests, and the others by at most the
rows already given.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from trunkline.adapters.artifact import Artifact
from trunkline.errors import BusyError, PinnedError
from trunkline.lora.pool import AdapterPool

PROMPT_WEIGHT = 1
NEW_WEIGHT = 2

T = TypeVar("T")


class WaitQueue(Generic[T]):
    """Queues by adapter; one thread at a time."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[T]] = {}
        self._counters: dict[str, float] = {}
        self._running: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def add(self, key: str, item: T, *, front: bool = False) -> None:
        """Put an item into its adapter's queue."""
        if key not in self._queues:
            if not self._running.get(key):
                busy = [
                    self._counters[other] for other in {*self._queues, *self._running}
                    if other in self._counters
                ]  # fmt: skip
                least = min(busy, default=0.0)
                self._counters[key] = max(self._counters.get(key, 0.0), least)
            self._queues[key] = deque()
        queue = self._queues[key]
        (queue.appendleft if front else queue.append)(item)

    def admit(self, take: Callable[[str, T], bool | None]) -> Iterator[T]:
        """Give items in order until nobody can be taken.

        Args:
            take: whether there is room for it. False: not for this adapter now, others may come
                first. None: for nobody until something ends.
        """
        passed: set[str] = set()
        while keys := [key for key in self._queues if key not in passed]:
            key = min(keys, key=lambda one: (self._counters[one], self._running.get(one, 0)))
            item = self._queues[key][0]
            taken = take(key, item)
            if taken is None:
                return
            if not taken:
                passed.add(key)
                continue
            self._queues[key].popleft()
            if not self._queues[key]:
                del self._queues[key]
            self._running[key] = self._running.get(key, 0) + 1
            yield item

    def served(self, key: str, prompt: int, new: int) -> None:
        """Count tokens that an adapter got."""
        if key in self._counters:
            self._counters[key] += PROMPT_WEIGHT * prompt + NEW_WEIGHT * new

    def counter(self, key: str) -> float:
        """Tokens that an adapter got, weighted; what decides who comes first."""
        return self._counters.get(key, 0.0)

    def ended(self, key: str) -> None:
        """An item that was given has ended."""
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]
        if not self._running and not self._queues:
            self._counters.clear()
        self.forget_idle()

    def remove(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Take out every waiting item that is unwanted."""
        removed: list[T] = []
        for key in list(self._queues):
            queue = self._queues[key]
            gone = [item for item in queue if unwanted(item)]
            if gone:
                removed += gone
                left = deque(item for item in queue if not unwanted(item))
                if left:
                    self._queues[key] = left
                else:
                    del self._queues[key]
        return removed

    def forget_idle(self, most: int = 10_000) -> None:
        """Keep counters of the busy only, once there are many."""
        if len(self._counters) > most:
            busy = {*self._queues, *self._running}
            self._counters = {key: self._counters[key] for key in busy if key in self._counters}


_AGAIN_SECONDS = 0.25
"""After an adapter found no room in memory, so long until it is tried again."""


class ReloadQueue:
    """Loads of one adapter pool, in a thread of their own.

    Not safe from several threads: whoever asks holds a lock of its own.
    """

    def __init__(self, pool: AdapterPool) -> None:
        self._pool = pool
        self._thread: ThreadPoolExecutor | None = None
        self._under_way: dict[str, Future[Any]] = {}
        self._not_before: dict[str, float] = {}
        self._crowded: set[str] = set()

    def begin(self, artifact: Artifact, name: str, on_end: Callable[[], None]) -> None:
        """Bring it back, unless that is under way, has just found no room, or needs no work.

        Args:
            on_end: called once it has ended: in the thread that loads, or in this one if it has
                ended before this returns.
        """
        digest = artifact.digest
        if self._not_before.get(digest, 0.0) > time.monotonic():
            return
        self._not_before.pop(digest, None)
        if digest in self._under_way or not self._pool.wanted(digest):
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "trunkline-loader")
        self._under_way[digest] = future = self._thread.submit(self._pool.load, artifact, name)
        future.add_done_callback(lambda _: on_end())

    def failed(self) -> list[tuple[str, BaseException]]:
        """Digest and error of each that ended since and can't be had; no room is not the end,
        unless pinned adapters take it."""
        found = []
        for digest, future in list(self._under_way.items()):
            if not future.done():
                continue
            del self._under_way[digest]
            error = future.exception()
            if isinstance(error, BusyError) and not isinstance(error, PinnedError):
                self._not_before[digest] = time.monotonic() + _AGAIN_SECONDS
                self._crowded.add(digest)
                continue
            self._crowded.discard(digest)
            if error is not None:
                found.append((digest, error))
        return found

    def crowded(self, digest: str) -> bool:
        """Whether it found no room in memory when it was last tried."""
        return digest in self._crowded

    def close(self) -> None:
        """End the thread once what it has begun is through; begin nothing after this."""
        if self._thread is not None:
            self._thread.shutdown(wait=False)

"""The scheduler: which waiting sequences are admitted, and what each step computes.

The order is that of the virtual token counter (Sheng et al. 2024, "Fairness in serving large
language models", section 4). Each adapter has a counter of the tokens that it was served, prompt
tokens once and new tokens twice. The next free row goes to the waiting adapter with the smallest
counter; ties go to the adapter with fewer rows, and within an adapter requests are served in order
of arrival. Prompts share a step in the same order. An adapter that returns after a pause is lifted
to the smallest counter of the busy ones, so that no adapter saves up credit. A flood of requests
for one adapter therefore delays those requests, and the others by at most the rows already given.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as ListLike
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from trunkline.adapters.artifact import Artifact
from trunkline.errors import BusyError, PinnedError, TrunklineError
from trunkline.inference.batching import Part
from trunkline.inference.kv_cache import BlockPool
from trunkline.inference.request_state import RequestState, Sequence
from trunkline.inference.settings import EngineSettings
from trunkline.lora.pool import AdapterPool

PROMPT_WEIGHT = 1
NEW_WEIGHT = 2

MAX_SKIPPED_ROUNDS = 50
"""How many scheduling rounds a request may be skipped while its adapter is not resident."""

RETRY_SECONDS = 0.25
"""Backoff after there was no memory for an adapter."""

T = TypeVar("T")


class Scheduler:
    """Admits sequences and plans steps. The caller holds the engine's lock.

    Args:
        changed: notified when an adapter has been reloaded.
        clock: gives seconds.

    Attributes:
        waiting: sequences without a row.
        running: sequences with a row, an adapter on the device, and blocks of the KV cache.
    """

    def __init__(
        self,
        settings: EngineSettings,
        pool: AdapterPool,
        blocks: BlockPool,
        *,
        changed: threading.Condition,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.waiting: WaitQueue[Sequence] = WaitQueue()
        self.running: list[Sequence] = []
        self._settings = settings
        self._pool = pool
        self._blocks = blocks
        self._changed = changed
        self._reloads = ReloadQueue(pool, clock)
        self._skipped_rounds: dict[str, int] = {}

    def add(self, sequence: Sequence, *, front: bool = False) -> None:
        """Put a sequence into the wait queue."""
        self.waiting.add(sequence.state.digest, sequence, front=front)

    def admit(self) -> list[tuple[RequestState, TrunklineError]]:
        """Give free rows to waiting sequences; returns requests that can never be admitted."""
        if not self.waiting:
            self._skipped_rounds.clear()
        rejected: list[tuple[RequestState, TrunklineError]] = []
        for sequence in self.waiting.admit(lambda key, one: self._try_start(key, one, rejected)):
            assert sequence.lease is not None
            if sequence.index == 0:
                sequence.state.cached_tokens = sequence.lease.cached
                if sequence.resident is not None:
                    sequence.resident.requests += 1
            self.running.append(sequence)
        return rejected

    def plan(self) -> list[Part]:
        """Choose what the next step computes; empty if nothing is running."""
        return plan_step(
            self.running,
            self._settings.chunk_tokens,
            counter=lambda one: self.waiting.counter(one.state.digest),
        )

    def record(self, sequence: Sequence, tokens: int) -> None:
        """Count the tokens that a step computed, and let others share the blocks it filled."""
        if sequence.lease is None:
            return
        new = int(sequence.new_tokens > 0)
        self.waiting.count_served(sequence.state.digest, tokens * (1 - new), new)
        self._blocks.cache_blocks(sequence.lease, sequence.tokens[: sequence.computed])

    def release(self, sequence: Sequence) -> None:
        """Free a sequence's row, blocks and adapter."""
        if sequence.lease is None:
            return
        self.running.remove(sequence)
        self._blocks.free(sequence.lease)
        sequence.lease = None
        if sequence.resident is not None:
            self._pool.release(sequence.resident)
        self.waiting.end(sequence.state.digest)

    def remove(self, state: RequestState) -> None:
        """Release all sequences of a request, running or waiting."""
        for sequence in [one for one in self.running if one.state is state]:
            self.release(sequence)
        self.waiting.remove(lambda one: one.state is state)

    def failed_loads(self) -> list[tuple[str, BaseException]]:
        """Digest and error of adapters that could not be reloaded since the last call."""
        return self._reloads.pop_failed()

    def close(self) -> None:
        """Stop reloading adapters."""
        self._reloads.close()

    def _try_start(
        self, key: str, sequence: Sequence, rejected: list[tuple[RequestState, TrunklineError]]
    ) -> bool | None:
        """Start a sequence if row, adapter and blocks are free; see :meth:`WaitQueue.admit`."""
        if len(self.running) >= self._settings.rows:
            return None
        resident = None
        artifact = sequence.state.artifact
        if artifact is not None:
            resident = self._pool.acquire(key)
            if resident is None:
                return self._wait_for_adapter(sequence.state, artifact, rejected)
            self._skipped_rounds.pop(key, None)
        lease = self._blocks.allocate(
            key, sequence.tokens, sequence.capacity, reuse=not sequence.needs_all_hidden
        )
        if lease is None:
            if resident is not None:
                self._pool.release(resident)
            return None
        sequence.start(lease, resident)
        return True

    def _wait_for_adapter(
        self,
        state: RequestState,
        artifact: Artifact,
        rejected: list[tuple[RequestState, TrunklineError]],
    ) -> bool | None:
        """Let others overtake a request whose adapter is not on the device, but not indefinitely.

        An adapter of a large rank needs several pages at once, which adapters of small ranks would
        take one by one as they become free; and an evicted adapter returns only if others are not
        in use all the time. So after some rounds nothing is admitted until this request is.
        """
        digest = state.digest
        self._reloads.start(artifact, state.name, self._notify)
        resident = self._pool.get(digest)
        if resident is not None:
            if resident.uploading:
                return False
            try:
                self._pool.check_pins(resident)
            except PinnedError as error:
                rejected.append((state, error))
                return False
        elif not self._reloads.is_crowded_out(digest):
            return False
        self._skipped_rounds[digest] = rounds = self._skipped_rounds.get(digest, 0) + 1
        return None if rounds > MAX_SKIPPED_ROUNDS else False

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


def plan_step(
    running: ListLike[Sequence],
    chunk_tokens: int,
    counter: Callable[[Sequence], float] = lambda _: 0.0,
) -> list[Part]:
    """Choose which tokens of the running sequences are computed next.

    Every sequence that generates gets its token. Prompts share ``chunk_tokens`` tokens, in
    ascending order of their adapter's ``counter``, then of arrival.
    """
    parts = [Part(one, 1) for one in running if one.pending == 1]
    left = chunk_tokens
    for one in sorted((one for one in running if one.pending > 1), key=counter):
        parts.append(Part(one, min(one.pending, left)))
        left -= parts[-1].tokens
        if not left:
            break
    return parts


class WaitQueue(Generic[T]):
    """Queues by adapter with virtual token counters; for one thread at a time."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[T]] = {}
        self._counters: dict[str, float] = {}
        self._running: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def __iter__(self) -> Iterator[T]:
        return (item for queue in self._queues.values() for item in queue)

    @property
    def counters(self) -> Mapping[str, float]:
        """Weighted tokens by adapter, of the adapters that are remembered."""
        return self._counters

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

    def admit(self, try_start: Callable[[str, T], bool | None]) -> Iterator[T]:
        """Yield items in order until none can start.

        Args:
            try_start: whether the item has started. False: no item of this adapter can start now,
                others may. None: no item at all can start before another one ends.
        """
        passed: set[str] = set()
        while keys := [key for key in self._queues if key not in passed]:
            key = min(keys, key=lambda one: (self._counters[one], self._running.get(one, 0)))
            item = self._queues[key][0]
            started = try_start(key, item)
            if started is None:
                return
            if not started:
                passed.add(key)
                continue
            self._queues[key].popleft()
            if not self._queues[key]:
                del self._queues[key]
            self._running[key] = self._running.get(key, 0) + 1
            yield item

    def count_served(self, key: str, prompt: int, new: int) -> None:
        """Count tokens that an adapter was served."""
        if key in self._counters:
            self._counters[key] += PROMPT_WEIGHT * prompt + NEW_WEIGHT * new

    def counter(self, key: str) -> float:
        """Weighted tokens that an adapter was served; the smallest counter goes first."""
        return self._counters.get(key, 0.0)

    def end(self, key: str) -> None:
        """Count an admitted item as ended."""
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]
        if not self._running and not self._queues:
            self._counters.clear()
        self.forget_idle()

    def remove(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Remove and return every waiting item that is unwanted."""
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

    def forget_idle(self, limit: int = 10_000) -> None:
        """Drop the counters of idle adapters once there are more than ``limit``."""
        if len(self._counters) > limit:
            busy = {*self._queues, *self._running}
            self._counters = {key: self._counters[key] for key in busy if key in self._counters}


class ReloadQueue:
    """Reloads evicted adapters that requests wait for, one at a time, while steps run.

    The caller holds a lock; the loads run in a thread of their own.
    """

    def __init__(self, pool: AdapterPool, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._clock = clock
        self._thread: ThreadPoolExecutor | None = None
        self._loading: dict[str, Future[Any]] = {}
        self._not_before: dict[str, float] = {}
        self._crowded_out: set[str] = set()

    def start(self, artifact: Artifact, name: str, on_end: Callable[[], None]) -> None:
        """Reload an adapter, unless it is being loaded, is resident, or must back off.

        Args:
            on_end: called when the load has ended: in the loading thread, or in this one if the
                load ends before this method returns.
        """
        digest = artifact.digest
        if self._not_before.get(digest, 0.0) > self._clock():
            return
        self._not_before.pop(digest, None)
        if digest in self._loading or not self._pool.needs_load(digest):
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "trunkline-loader")
        self._loading[digest] = future = self._thread.submit(self._pool.load, artifact, name)
        future.add_done_callback(lambda _: on_end())

    def pop_failed(self) -> list[tuple[str, BaseException]]:
        """Digest and error of each load that failed for good since the last call.

        A lack of memory is no failure, unless pinned adapters take the memory: it is retried.
        """
        failed = []
        for digest, future in list(self._loading.items()):
            if not future.done():
                continue
            del self._loading[digest]
            error = future.exception()
            if isinstance(error, BusyError) and not isinstance(error, PinnedError):
                self._not_before[digest] = self._clock() + RETRY_SECONDS
                self._crowded_out.add(digest)
                continue
            self._crowded_out.discard(digest)
            if error is not None:
                failed.append((digest, error))
        return failed

    def is_crowded_out(self, digest: str) -> bool:
        """Whether there was no memory for the adapter at the last attempt."""
        return digest in self._crowded_out

    def close(self) -> None:
        """Finish the load in progress, in the background, and start no other."""
        if self._thread is not None:
            self._thread.shutdown(wait=False)

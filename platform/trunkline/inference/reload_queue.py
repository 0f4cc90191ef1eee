"""Adapters that went off the device while requests for them wait.

Owns: bringing them back beside the steps, one at a time. Must not know: requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from trunkline.adapters.artifact import Artifact
from trunkline.errors import BusyError, PinnedError
from trunkline.lora.pool import AdapterPool

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

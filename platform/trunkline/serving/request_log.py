"""Write the request log: lines of many requests in one transaction, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from trunkline.errors import RegistryError, TrunklineError
from trunkline.registry.records import RequestEntry

_MAX_GROUP = 256


@dataclass(frozen=True, slots=True)
class _Entry:
    line: RequestEntry
    alone: bool
    loop: asyncio.AbstractEventLoop
    committed: asyncio.Future[None]

    def resolve(self, error: TrunklineError | None) -> None:
        """Resolve the future, from the log's thread."""

        def resolve() -> None:
            if self.committed.done():
                return
            if error is None:
                self.committed.set_result(None)
            else:
                self.committed.set_exception(error)

        self.loop.call_soon_threadsafe(resolve)


class Counting(Protocol):
    """Counts lines of the log."""

    def __call__(self, lines: int, *, written: bool) -> None: ...


class RequestLog:
    """A thread that commits log lines in groups.

    Args:
        commit: adds lines in one transaction, all of them or none.
        count: called with the number of lines, and with ``written`` whether they were committed.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[RequestEntry]], None],
        count: Counting = lambda lines, *, written: None,
    ) -> None:
        self._commit = commit
        self._count = count
        self._entries: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Write the lines in the queue and stop; blocks."""
        self._entries.put(None)
        self._thread.join()

    async def write(self, line: RequestEntry, *, alone: bool = False) -> None:
        """Write a line; returns when it is committed.

        Args:
            alone: use a transaction of its own. A line whose id was chosen by a client needs that:
                if the id turns out to be taken, no other line must fail with it.

        Raises:
            RegistryError: the line could not be written.
        """
        loop = asyncio.get_running_loop()
        committed: asyncio.Future[None] = loop.create_future()
        self._entries.put(_Entry(line, alone, loop, committed))
        await committed

    def _run(self) -> None:
        stopping = False
        while not stopping:
            entry = self._entries.get()
            group: list[_Entry] = []
            while True:
                if entry is None:
                    stopping = True
                elif entry.alone:
                    self._write([entry])
                else:
                    group.append(entry)
                try:
                    if len(group) >= _MAX_GROUP:
                        break
                    entry = self._entries.get_nowait()
                except queue.Empty:
                    break
            if group:
                self._write(group)

    def _write(self, group: list[_Entry]) -> None:
        failure: TrunklineError | None = None
        try:
            self._commit([entry.line for entry in group])
        except TrunklineError as error:
            failure = error
        except Exception:
            logging.getLogger("trunkline.serving").exception("The request log failed.")
            failure = RegistryError("The request log can't be written.")
        self._count(len(group), written=failure is None)
        for entry in group:
            entry.resolve(failure)

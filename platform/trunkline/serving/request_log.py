"""Writing the request log: lines of many requests in one transaction.

Owns: the thread that writes, and telling each request whether its line is kept. Must not know:
what a line says.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trunkline.errors import RegistryError, TrunklineError
from trunkline.registry.records import RequestLine

_GROUP = 256


@dataclass(frozen=True, slots=True)
class _Entry:
    line: RequestLine
    alone: bool
    loop: asyncio.AbstractEventLoop
    kept: asyncio.Future[None]

    def tell(self, error: TrunklineError | None) -> None:
        def settle() -> None:
            if not self.kept.done():
                if error is None:
                    self.kept.set_result(None)
                else:
                    self.kept.set_exception(error)

        self.loop.call_soon_threadsafe(settle)


class RequestLog:
    """A thread that writes what it is given, in groups.

    Args:
        write: adds lines in one transaction, all of them or none.
    """

    def __init__(self, write: Callable[[Sequence[RequestLine]], None]) -> None:
        self._write = write
        self._entries: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is waiting, and end; blocks until then."""
        self._entries.put(None)
        self._thread.join()

    async def keep(self, line: RequestLine, *, alone: bool = False) -> None:
        """Wait until a line is committed.

        Args:
            alone: in a transaction of its own; for an id that someone else chose, which may turn
                out to be taken, so that no other line falls with it.

        Raises:
            RegistryError: it could not be written.
        """
        loop = asyncio.get_running_loop()
        kept: asyncio.Future[None] = loop.create_future()
        self._entries.put(_Entry(line, alone, loop, kept))
        await kept

    def _run(self) -> None:
        ending = False
        while not ending:
            entry = self._entries.get()
            group: list[_Entry] = []
            while True:
                if entry is None:
                    ending = True
                elif entry.alone:
                    self._commit([entry])
                else:
                    group.append(entry)
                try:
                    if len(group) >= _GROUP:
                        break
                    entry = self._entries.get_nowait()
                except queue.Empty:
                    break
            if group:
                self._commit(group)

    def _commit(self, group: list[_Entry]) -> None:
        failed: TrunklineError | None = None
        try:
            self._write([entry.line for entry in group])
        except TrunklineError as error:
            failed = error
        except Exception:
            logging.getLogger("trunkline.serving").exception("The request log failed.")
            failed = RegistryError("The request log can't be written.")
        for entry in group:
            entry.tell(failed)

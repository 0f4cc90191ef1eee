"""A request on its way: what its owner waits on, and what the engine tells it.

Owns: the way back from the engine's thread to blocking, awaiting and streaming readers. Must not
know: batches, tokens, the registry.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from trunkline.adapters.artifact import Artifact
from trunkline.errors import TrunklineError
from trunkline.inference.request import Answer, Piece, Request


@dataclass(frozen=True, slots=True)
class Work:
    """A request with the version that answers it; ``artifact`` None is the bare base."""

    request: Request
    artifact: Artifact | None = None
    name: str = "base"


@dataclass(frozen=True, slots=True)
class Served:
    """The account of one request, once it has ended; durations are in seconds.

    ``outcome`` is ``done``, ``cancelled``, ``deadline`` or ``failed``; ``first_token_seconds``
    counts from submission, and is None where no token was made.
    """

    name: str
    digest: str
    task: str
    outcome: str
    queue_seconds: float
    first_token_seconds: float | None
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int


End = Answer | TrunklineError
"""How a request ends."""


class GenerationHandle:
    """One submitted request. Made by the engine; every method is safe from any thread."""

    def __init__(
        self,
        work: Work,
        digest: str,
        prompt_tokens: int,
        cancel: Callable[[GenerationHandle], None],
    ) -> None:
        self.work = work
        self.name = work.name
        self.digest = digest
        self.prompt_tokens = prompt_tokens
        self.served: Served | None = None
        self._cancel = cancel
        self._lock = threading.Lock()
        self._pieces: deque[Piece] = deque()
        self._end: End | None = None
        self._done = threading.Event()
        self._listeners: list[Callable[[Piece | End], None]] = []

    # ------------------------------------------------------------------------ the owner's side

    def answer(self, timeout: float | None = None) -> Answer:
        """Wait for the whole answer.

        Raises:
            TimeoutError: it was not there in ``timeout`` seconds; the request goes on.
            TrunklineError: what the request ended with.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"No answer in {timeout} seconds.")
        return _told(self._end)

    async def answer_async(self) -> Answer:
        """Await the whole answer; raises what the request ended with."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not ended.done():
                ended.set_result(None)

        def listen(told: Piece | End) -> None:
            if not isinstance(told, Piece):
                _in_loop(loop, finish)

        self._listen(listen)
        try:
            await ended
        finally:
            self._unlisten(listen)
        return _told(self._end)

    def pieces(self) -> Iterator[Piece]:
        """The stream, blocking; raises what the request ended with."""
        told: queue.SimpleQueue[Piece | End] = queue.SimpleQueue()
        self._listen(told.put)
        try:
            while isinstance(one := told.get(), Piece):
                yield one
            _told(one)
        finally:
            self._unlisten(told.put)

    async def stream(self) -> AsyncIterator[Piece]:
        """The stream, for an event loop; raises what the request ended with."""
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Piece | End] = asyncio.Queue()

        def listen(one: Piece | End) -> None:
            _in_loop(loop, told.put_nowait, one)

        self._listen(listen)
        try:
            while isinstance(one := await told.get(), Piece):
                yield one
            _told(one)
        finally:
            self._unlisten(listen)

    def cancel(self) -> None:
        """Give the request up; its place is free at the next step."""
        self._cancel(self)

    @property
    def ended(self) -> bool:
        """Whether there is an answer or an error."""
        return self._done.is_set()

    # ----------------------------------------------------------------------- the engine's side

    def tell(self, piece: Piece) -> None:
        """Pass a piece on."""
        with self._lock:
            self._pieces.append(piece)
            for listener in self._listeners:
                listener(piece)

    def end(self, how: End, served: Served) -> None:
        """Pass the end on; later ends are ignored."""
        with self._lock:
            if self._end is not None:
                return
            self._end, self.served = how, served
            self._done.set()
            for listener in self._listeners:
                listener(how)

    def _listen(self, listener: Callable[[Piece | End], None]) -> None:
        """Hear everything from the beginning, whenever one comes."""
        with self._lock:
            for piece in self._pieces:
                listener(piece)
            if self._end is not None:
                listener(self._end)
            self._listeners.append(listener)

    def _unlisten(self, listener: Callable[[Piece | End], None]) -> None:
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)


def _told(end: End | None) -> Answer:
    if isinstance(end, Answer):
        return end
    assert end is not None
    raise end


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: object) -> None:
    """Call in the loop's thread; a loop that was closed has nobody waiting any more."""
    try:
        loop.call_soon_threadsafe(call, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise

"""One request while it is answered: what its sequences share, and what it comes to.

Owns: the answer and the account made of them. Must not know: threads, batches, memory.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trunkline.errors import TrunklineError
from trunkline.inference.detokenizer import REPLACEMENT_CHARACTER, IncrementalDetokenizer
from trunkline.inference.kv_cache import BLOCK, Lease
from trunkline.inference.request import Answer, Choice, ResolvedRequest, StreamChunk, TokenScore
from trunkline.inference.sampling import SamplingParams
from trunkline.lora.pool import Resident
from trunkline.tasks import AnyTask, GenerationTask

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class RequestStats:
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
        work: ResolvedRequest,
        digest: str,
        prompt_tokens: int,
        cancel: Callable[[GenerationHandle], None],
    ) -> None:
        self.work = work
        self.name = work.name
        self.digest = digest
        self.prompt_tokens = prompt_tokens
        self.stats: RequestStats | None = None
        self._cancel = cancel
        self._lock = threading.Lock()
        self._pieces: deque[StreamChunk] = deque()
        self._end: End | None = None
        self._done = threading.Event()
        self._listeners: list[Callable[[StreamChunk | End], None]] = []

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

        def listen(told: StreamChunk | End) -> None:
            if not isinstance(told, StreamChunk):
                _in_loop(loop, finish)

        self._listen(listen)
        try:
            await ended
        finally:
            self._unlisten(listen)
        return _told(self._end)

    def chunks(self) -> Iterator[StreamChunk]:
        """The stream, blocking; raises what the request ended with."""
        told: queue.SimpleQueue[StreamChunk | End] = queue.SimpleQueue()
        self._listen(told.put)
        try:
            while isinstance(one := told.get(), StreamChunk):
                yield one
            _told(one)
        finally:
            self._unlisten(told.put)

    async def stream(self) -> AsyncIterator[StreamChunk]:
        """The stream, for an event loop; raises what the request ended with."""
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[StreamChunk | End] = asyncio.Queue()

        def listen(one: StreamChunk | End) -> None:
            _in_loop(loop, told.put_nowait, one)

        self._listen(listen)
        try:
            while isinstance(one := await told.get(), StreamChunk):
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

    def tell(self, piece: StreamChunk) -> None:
        """Pass a piece on."""
        with self._lock:
            self._pieces.append(piece)
            for listener in self._listeners:
                listener(piece)

    def end(self, how: End, served: RequestStats) -> None:
        """Pass the end on; later ends are ignored."""
        with self._lock:
            if self._end is not None:
                return
            self._end, self.stats = how, served
            self._done.set()
            for listener in self._listeners:
                listener(how)

    def _listen(self, listener: Callable[[StreamChunk | End], None]) -> None:
        """Hear everything from the beginning, whenever one comes."""
        with self._lock:
            for piece in self._pieces:
                listener(piece)
            if self._end is not None:
                listener(self._end)
            self._listeners.append(listener)

    def _unlisten(self, listener: Callable[[StreamChunk | End], None]) -> None:
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


@dataclass(slots=True, eq=False)
class RequestState:
    """What all sequences of one request share.

    Attributes:
        choices: those that have ended, by index.
        output: a head's, ``[outputs]``.
        unstarted: sequences that wait for the first to have computed the prompt.
    """

    handle: GenerationHandle
    task: AnyTask
    prompt: list[int]
    limit: int
    submitted: float = field(default_factory=time.monotonic)
    begun: float | None = None
    first_token: float | None = None
    cached: int = 0
    cancelled: bool = False
    ended: bool = False
    choices: dict[int, Choice] = field(default_factory=dict)
    output: torch.Tensor | None = None
    unstarted: list[Sequence] = field(default_factory=list)
    new_tokens: int = 0

    @property
    def key(self) -> str:
        """Digest of the version that answers."""
        return self.handle.digest

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        deadline = self.handle.work.request.deadline
        return deadline is not None and time.monotonic() - self.submitted > deadline

    @property
    def answer(self) -> Answer:
        """Of all choices, or of the head's output."""
        handle, task = self.handle, self.task
        common: dict[str, Any] = {
            "adapter": handle.name,
            "digest": handle.digest,
            "task": task.kind,
            "prompt_tokens": len(self.prompt),
            "cached_tokens": self.cached,
        }
        if isinstance(task, GenerationTask):
            choices = tuple(self.choices[index] for index in sorted(self.choices))
            return Answer(
                **common,
                new_tokens=self.new_tokens,
                text=choices[0].text,
                finish=choices[0].finish,
                choices=choices,
            )
        assert self.output is not None
        value, chances = task.decode(self.output[None])[0]
        return Answer(
            **common,
            label=str(value) if task.kind == "classification" else None,
            probabilities=dict(zip(task.labels, chances, strict=True)) if chances else None,
            value=float(value) if task.kind == "regression" else None,
            unit=getattr(task, "unit", None),
        )

    def served(self, outcome: str) -> RequestStats:
        """Its account, as of now."""
        now, first = time.monotonic(), self.first_token
        return RequestStats(
            name=self.handle.name,
            digest=self.handle.digest,
            task=self.task.kind,
            outcome=outcome,
            queue_seconds=(self.begun or now) - self.submitted,
            first_token_seconds=first - self.submitted if first else None,
            seconds=now - self.submitted,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached,
            new_tokens=self.new_tokens,
        )


class Sequence:
    """One of the answers to a prompt.

    Attributes:
        tokens: of the prompt, then the new ones.
        computed: so many of them have their keys and values in the pool.
        places: in the pool, of every token that this sequence may have, ``[room]``.
    """

    def __init__(
        self, asked: RequestState, index: int, tokenizer: Any, ends: frozenset[int]
    ) -> None:
        request = asked.handle.work.request
        self.asked = asked
        self.index = index
        self.tokens = list(asked.prompt)
        self.computed = 0
        self.lease: Lease | None = None
        self.resident: Resident | None = None
        self.places = np.empty(0, dtype=np.int64)
        self.choosing = SamplingParams(
            request.temperature, request.top_p, request.top_k, request.seed + index,
            request.logprobs,
        )  # fmt: skip
        self.finish: str | None = None
        self.scores: list[TokenScore] = []
        self._told = 0
        self._ends = ends
        self._tokenizer = tokenizer
        self._wording = (
            IncrementalDetokenizer(tokenizer, request.stop, ends) if self.generates else None
        )

    @property
    def generates(self) -> bool:
        """Whether new tokens are wanted, not a head's output."""
        return isinstance(self.asked.task, GenerationTask)

    @property
    def room(self) -> int:
        """Tokens that it may have in the pool; the last new one is never computed."""
        return len(self.asked.prompt) + max(0, self.asked.limit - 1)

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are not in the pool yet."""
        return len(self.tokens) - self.computed

    @property
    def new_tokens(self) -> int:
        """Tokens drawn so far."""
        return len(self.tokens) - len(self.asked.prompt)

    @property
    def pages(self) -> tuple[int, ...]:
        """Of the adapter; none for the base."""
        return self.resident.pages if self.resident is not None else ()

    def seat(self, lease: Lease, resident: Resident | None) -> None:
        """Begin: blocks and adapter are there."""
        blocks = np.asarray(lease.blocks, dtype=np.int64)
        self.places = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
        self.lease, self.resident = lease, resident
        self.computed = lease.cached

    def add(self, token: int, score: TokenScore | None) -> StreamChunk | None:
        """Take a drawn token; what can be told of the text by now."""
        assert self._wording is not None
        self.tokens.append(token)
        before = 0 if score is None else self._wording.characters
        text = self._wording.add(token)
        if score is not None:
            whole = REPLACEMENT_CHARACTER not in score.token
            begins = self._wording.characters - len(score.token) if whole else 0
            self.scores.append(replace(score, offset=max(before, begins)))
        if token in self._ends:
            text += self._wording.finish()
            self.finish = "stop"
        elif self._wording.stopped:
            self.finish = "stop"
        elif self.new_tokens >= self.asked.limit:
            text += self._wording.finish()
            self.finish = "stop" if self._wording.stopped else "length"
        if not text and self.finish is None:
            return None
        scores = tuple(self.scores[self._told :])
        self._told = len(self.scores)
        return StreamChunk(self.index, text, scores, self.finish)

    def choice(self) -> Choice:
        """What it has come to."""
        assert self._wording is not None
        assert self.finish is not None
        return Choice(
            self.index, self._wording.text, self.finish, self.new_tokens, tuple(self.scores)
        )

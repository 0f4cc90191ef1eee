"""ResolvedRequest on one base: requests for any adapters come and go at every step.

Owns: the thread that steps, admission, and how requests end. Must not know: refs or the registry;
whoever submits has resolved each request to an artifact.

Continuous batching (Yu et al. 2022, "Orca", section 4.1): each step computes one token of every
answer that is being written and a chunk of the prompts that are not through yet. A sequence is
admitted when there is a row, its adapter stands on the device, and the pool has room for its
longest answer, so that nothing that was begun has to be put off.
"""

from __future__ import annotations

import atexit
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Listed
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trunkline.adapters.artifact import Artifact
from trunkline.errors import (
    BaseModelError,
    BusyError,
    DataError,
    DeadlineError,
    Interrupted,
    PinnedError,
    TrunklineError,
    UnavailableError,
)
from trunkline.inference.kv_cache import BLOCK, Blocks, bytes_per_token
from trunkline.inference.prompts import RequestValidator, locate_error
from trunkline.inference.request import Answer, ResolvedRequest, TokenScore
from trunkline.inference.request_state import (
    End,
    GenerationHandle,
    RequestState,
    RequestStats,
    Sequence,
)
from trunkline.inference.scheduler import ReloadQueue, WaitQueue
from trunkline.inference.self_check import check_serves
from trunkline.inference.settings import MIB, EngineSettings
from trunkline.inference.step import Part, Stepper, plan
from trunkline.lora.pool import AdapterPool
from trunkline.lora.routing import Routing
from trunkline.tasks import GenerationTask

if TYPE_CHECKING:
    from trunkline.bases import Base

__all__ = ["Engine", "EngineState", "ResolvedRequest"]

PATIENCE = 50
"""Rounds of admission in which a request whose adapter finds no place lets others go before."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an operator sees of the engine; sequences and tokens."""

    waiting: int
    running: int
    rows: int
    kv_tokens_used: int
    kv_tokens: int
    cached_tokens: int
    steps: int
    draining: bool


class Engine:
    """One base with its adapter pool, and the thread that computes. Safe from any thread."""

    def __init__(self, base: Base, settings: EngineSettings | None = None) -> None:
        self.base = base
        self.settings = settings or EngineSettings()
        self.observers: list[Callable[[RequestStats], None]] = []
        per_token = bytes_per_token(base.model)
        tokens = self.settings.kv_tokens or self.settings.kv_mib * MIB // per_token
        tokens = min(tokens, (base.info.context + BLOCK) * self.settings.rows)
        self._blocks = Blocks(tokens // BLOCK, share=self.settings.prefix_cache)
        if not self._blocks.total:
            raise BaseModelError(
                f"Keys and values of one token take {per_token} bytes; {tokens} tokens are less "
                f"than a block of {BLOCK}.",
                "Give the engine a larger kv_mib.",
            )
        # In a thread of its own, as the base was loaded (bases/load.py says why).
        with ThreadPoolExecutor(1) as apart:
            self.pool, self._stepper = apart.submit(self._make).result()
        self._ends = frozenset(_end_ids(base))
        self._intake = RequestValidator(base, self.pool, self._blocks.total * BLOCK)
        self._waiting: WaitQueue[Sequence] = WaitQueue()
        self._running: list[Sequence] = []
        self._open: set[RequestState] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._draining = False
        self._closed = False
        self._steps = 0
        self._reloads = ReloadQueue(self.pool)
        self._passed_over: dict[str, int] = {}
        atexit.register(_close, weakref.ref(self))

    def _make(self) -> tuple[AdapterPool, Stepper]:
        base, settings = self.base, self.settings
        pool = AdapterPool(
            base.model,
            base.digest,
            base.fused_layers,
            slots=settings.slots,
            adapter_mib=settings.adapter_mib,
        )
        stepper = Stepper(base.model, pool, self._blocks.total * BLOCK)
        exact = str(base.dtype) == "torch.float32" and base.quantized is None
        with pool.route(Routing()):
            check_serves(base.model, stepper.kv_cache.layers, exact=exact)
        return pool, stepper

    # -------------------------------------------------------------------------------- asking

    def submit(self, work: ResolvedRequest) -> GenerationHandle:
        """Take a request on; returns as soon as it waits its turn.

        An adapter that is not in memory is read from disk by the calling thread.

        Raises:
            BusyError: too many are waiting.
            UnavailableError: the engine is draining or closed.
            DataError: the text is empty, or longer than the context of the base.
            UsageError: the adapter can't be asked like this.
            IntegrityError, BaseMismatchError: the adapter can't be loaded.
        """
        with self._changed:
            self._check_open()
            self._check_queue()
        return self._enqueue([self._intake.take(work, self._cancel)], limited=True)[0]

    def run(
        self, works: Listed[ResolvedRequest], *, on_done: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """Answer every item, in order; nothing is computed unless all of them can be.

        Args:
            works: in any mixture.
            on_done: told how many more items are answered.

        Raises:
            As :meth:`submit`; however it ends, nothing of it goes on.
        """
        self._check_open()
        asked: list[RequestState] = []
        for place, work in enumerate(works):
            try:
                asked.append(self._intake.take(work, self._cancel))
            except DataError as error:
                raise locate_error(error, place, len(works)) from None
        handles = self._enqueue(asked)
        try:
            answers = []
            for handle in handles:
                answers.append(handle.answer())
                if on_done is not None:
                    on_done(1)
            return answers
        finally:
            for handle in handles:
                if not handle.ended:
                    handle.cancel()

    def state(self) -> EngineState:
        """How busy the engine is."""
        with self._changed:
            used = self._blocks.total - self._blocks.available
            return EngineState(
                waiting=len(self._waiting),
                running=len(self._running),
                rows=self.settings.rows,
                kv_tokens_used=used * BLOCK,
                kv_tokens=self._blocks.total * BLOCK,
                cached_tokens=self._blocks.kept * BLOCK,
                steps=self._steps,
                draining=self._draining,
            )

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more work, and wait for what there is; whether all of it has ended."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._open, timeout)

    def close(self) -> None:
        """End the thread; what has not been answered is told so."""
        with self._changed:
            self._draining = self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._changed:
            for asked in list(self._open):
                self._end(asked, UnavailableError("The engine was closed.", "Ask again."), "failed")
        self._reloads.close()

    # ------------------------------------------------------------------------------ admission

    def _check_open(self) -> None:
        if self._draining:
            raise UnavailableError("The engine takes no more requests.", "Ask another server.")

    def _check_queue(self) -> None:
        if (waiting := len(self._waiting)) >= self.settings.queue:
            raise BusyError(
                f"{waiting} requests are waiting already.",
                "Try again later, or give the server a longer --queue.",
            )

    def _enqueue(
        self, asked: Iterable[RequestState], *, limited: bool = False
    ) -> list[GenerationHandle]:
        handles = []
        with self._changed:
            self._check_open()
            if limited:
                self._check_queue()
            for one in asked:
                request = one.handle.work.request
                count = request.n if isinstance(one.task, GenerationTask) else 1
                first, *rest = (
                    Sequence(one, index, self.base.tokenizer, self._ends) for index in range(count)
                )
                one.unstarted = rest
                self._open.add(one)
                self._waiting.add(one.key, first)
                handles.append(one.handle)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="trunkline-engine", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()
        return handles

    def _cancel(self, handle: GenerationHandle) -> None:
        with self._changed:
            for asked in self._open:
                if asked.handle is handle:
                    asked.cancelled = True
            self._changed.notify_all()

    def _seat(self, key: str, sequence: Sequence) -> bool | None:
        """Give a waiting sequence its row, adapter and blocks, if they can be had now."""
        if len(self._running) >= self.settings.rows:
            return None
        resident = None
        artifact = sequence.asked.handle.work.artifact
        if artifact is not None:
            resident = self.pool.acquire(key)
            if resident is None:
                return self._without_place(sequence.asked, artifact)
            self._passed_over.pop(key, None)
        lease = self._blocks.lease(key, sequence.tokens, sequence.room)
        if lease is None:
            if resident is not None:
                self.pool.release(resident)
            return None
        sequence.seat(lease, resident)
        return True

    def _without_place(self, asked: RequestState, artifact: Artifact) -> bool | None:
        """Let others go before a request whose adapter has no place, but not for ever.

        One of a large rank needs several places at once, which those of small ranks would take
        one by one as they are given back, and one that went out of memory comes back only where
        others are not in use all the time; so after some rounds nobody is admitted until it is.
        """
        key, name = asked.key, asked.handle.name
        self._reloads.begin(artifact, name, self._wake)
        resident = self.pool.get(key)
        if resident is not None:
            if resident.placing:
                return False
            try:
                self.pool.check_pins(resident)
            except PinnedError as error:
                self._end(asked, error, "failed")
                return False
        elif not self._reloads.crowded(key):
            return False
        self._passed_over[key] = rounds = self._passed_over.get(key, 0) + 1
        return None if rounds > PATIENCE else False

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # ---------------------------------------------------------------------------- the thread

    def _work(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                try:
                    parts = self._next()
                except Exception as error:
                    self._fail_all(error)
                    continue
                if not parts:
                    self._changed.wait(0.05 if self._open else None)
                    continue
            try:
                self._step(parts)
            except Exception as error:
                with self._changed:
                    self._fail_all(error)

    def _next(self) -> list[Part]:
        """What the next step computes; none: nothing can go on now."""
        self._sweep()
        self._admit()
        return plan(
            self._running,
            self.settings.chunk_tokens,
            served=lambda one: self._waiting.counter(one.asked.key),
        )

    def _fail_all(self, error: Exception) -> None:
        """The last resort: whoever waits is told, and the thread lives on for those to come."""
        for asked in list(self._open):
            self._end(asked, _told(error), "failed")

    def _sweep(self) -> None:
        """End what was cancelled or is late, and what waits for an adapter that can't be had."""
        for digest, error in self._reloads.failed():
            running = {one.asked for one in self._running}
            for asked in [one for one in self._open if one.key == digest]:
                if asked not in running:
                    self._end(asked, _told(error), "failed")
        for asked in [one for one in self._open if one.cancelled or one.late]:
            if asked.cancelled:
                self._end(asked, Interrupted("The request was cancelled."), "cancelled")
            else:
                deadline = asked.handle.work.request.deadline
                error = DeadlineError(
                    f"The request was not answered in its {deadline:g} seconds.",
                    "Give it more time, or try when less is going on.",
                )
                self._end(asked, error, "deadline")

    def _admit(self) -> None:
        if not self._waiting:
            self._passed_over.clear()
        for sequence in self._waiting.admit(self._seat):
            assert sequence.lease is not None
            if sequence.index == 0:
                sequence.asked.cached = sequence.lease.cached
                if sequence.resident is not None:
                    sequence.resident.requests += 1
            self._running.append(sequence)

    def _step(self, parts: list[Part]) -> None:
        now = time.monotonic()
        running = [part.sequence for part in parts]
        for sequence in running:
            if sequence.asked.begun is None:
                sequence.asked.begun = now
        sizes = [(part.sequence, part.tokens) for part in parts]
        try:
            result = self._stepper.run(parts)
        except Exception as error:  # whatever it is, the thread and the others must live on
            with self._changed:
                for sequence in running:
                    self._end(sequence.asked, _told(error), "failed")
            return
        with self._changed:
            self._steps += 1
            for sequence, tokens in sizes:
                if sequence.lease is not None:
                    new = int(sequence.new_tokens > 0)
                    self._waiting.served(sequence.asked.key, tokens * (1 - new), new)
                    self._blocks.fill(sequence.lease, sequence.tokens[: sequence.computed])
            for sequence, token, logprob, top in result.drawn:
                self._take(sequence, token, logprob, top)
            for sequence, output in result.outputs:
                sequence.asked.output = output
                self._leave(sequence)
                self._end(sequence.asked, sequence.asked.answer, "done")
            for sequence, broken in result.broken:
                self._end(sequence.asked, broken, "failed")

    def _take(
        self,
        sequence: Sequence,
        token: int,
        logprob: float | None,
        top: tuple[tuple[int, float], ...],
    ) -> None:
        asked = sequence.asked
        if asked.ended:
            return
        if asked.first_token is None:
            asked.first_token = time.monotonic()
        for other in reversed(asked.unstarted):
            self._waiting.add(asked.key, other, front=True)
        asked.unstarted = []
        asked.new_tokens += 1
        score = None
        if logprob is not None:
            score = TokenScore(
                token, self._word(token), logprob,
                tuple((one, self._word(one), value) for one, value in top),
            )  # fmt: skip
        piece = sequence.add(token, score)
        if sequence.finish is not None:
            asked.choices[sequence.index] = sequence.choice()
            self._leave(sequence)
        if piece is not None:
            asked.handle.tell(piece)
        if len(asked.choices) == asked.handle.work.request.n:
            self._end(asked, asked.answer, "done")

    def _word(self, token: int) -> str:
        return str(self.base.tokenizer.decode([token]))

    # ------------------------------------------------------------------------------- the end

    def _leave(self, sequence: Sequence) -> None:
        """Give row, blocks and adapter back."""
        if sequence.lease is None:
            return
        self._running.remove(sequence)
        self._blocks.give_back(sequence.lease)
        sequence.lease = None
        if sequence.resident is not None:
            self.pool.release(sequence.resident)
        self._waiting.ended(sequence.asked.key)

    def _end(self, asked: RequestState, how: End, outcome: str) -> None:
        if asked.ended:
            return
        asked.ended = True
        for sequence in [one for one in self._running if one.asked is asked]:
            self._leave(sequence)
        self._waiting.remove(lambda one: one.asked is asked)
        self._open.discard(asked)
        served = asked.served(outcome)
        asked.handle.end(how, served)
        for observer in self.observers:
            try:
                observer(served)
            except Exception as error:  # an account that can't be kept ends nobody's request
                warnings.warn(f"An observer of the engine failed: {error!r}", stacklevel=2)
        if not self._open:
            self._changed.notify_all()


def _told(error: BaseException) -> TrunklineError:
    if isinstance(error, TrunklineError):
        return error
    lines = str(error).strip().splitlines() or ["no message"]
    return BaseModelError(
        f"The step failed: {type(error).__name__}: {lines[0][:200]}.",
        "If memory ran out, give the engine fewer rows or a smaller kv_mib.",
    )


def _end_ids(base: Base) -> set[int]:
    """Ids that end an answer: the tokenizer's, and those of the base's generation settings."""
    ends = {base.tokenizer.eos_token_id}
    told = getattr(getattr(base.model, "generation_config", None), "eos_token_id", None)
    ends |= set(told) if isinstance(told, list) else {told}
    return {int(one) for one in ends if one is not None}


def _close(engine: weakref.ref[Engine]) -> None:
    if (one := engine()) is not None:
        one.close()

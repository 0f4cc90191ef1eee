"""The inference engine: continuous batching of requests for any adapters of one base.

Each step computes one token of every running answer and a chunk of the prompts that are not
complete yet (Yu et al. 2022, "Orca", section 4.1). A sequence is admitted when there is a free row,
its adapter is on the device, and the KV cache has room for its longest possible answer, so a
running sequence is never preempted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as ListLike
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trunkline.errors import (
    BaseModelError,
    DataError,
)
from trunkline.inference.batching import Part, StepFunction, Stepper, StepResult
from trunkline.inference.kv_cache import BLOCK_SIZE, BlockPool, bytes_per_token
from trunkline.inference.lifecycle import (
    adapter_names,
    as_trunkline_error,
    check_open,
    check_queue,
    close_at_exit,
    closed_error,
    early_end,
    finish,
    longest_wait,
)
from trunkline.inference.prompts import RequestValidator, locate_error
from trunkline.inference.request import Answer, Choice, ResolvedRequest, StreamChunk
from trunkline.inference.request_state import (
    GenerationHandle,
    RequestState,
    RequestStats,
    Result,
    Sequence,
)
from trunkline.inference.sampling import Sampler, sample
from trunkline.inference.scheduler import Scheduler
from trunkline.inference.scores import PromptScores, TokenTable
from trunkline.inference.self_check import check_packed_forward
from trunkline.inference.settings import MIB, EngineSettings
from trunkline.lora.pool import AdapterPool
from trunkline.lora.routing import Routing
from trunkline.tasks import GenerationTask

if TYPE_CHECKING:
    from trunkline.bases import Base
    from trunkline.contracts import Modality


_LESS = "fewer rows or a smaller kv_mib"


@dataclass(frozen=True, slots=True)
class EngineState:
    """A snapshot for operators, in sequences and tokens.

    Attributes:
        wait_seconds: how long the request that has waited longest has been waiting.
        waiting_adapters: names of the versions that waiting requests need.
    """

    waiting: int
    running: int
    rows: int
    kv_tokens_used: int
    kv_tokens: int
    cached_tokens: int
    steps: int
    draining: bool
    wait_seconds: float = 0.0
    waiting_adapters: tuple[str, ...] = ()


class Engine:
    """One base with its adapter pool, and the thread that computes. Safe from any thread.

    Args:
        base: in memory.
        settings: the budgets; by default those of :class:`EngineSettings`.
        pool: adapters; by default a new pool of the size in ``settings``.
        clock: gives seconds; deadlines and durations are measured on it.
        sampler: draws the next token of each row.
        run_step: computes the parts of a step.
        end_ids: tokens that end an answer; by default those of the tokenizer and of the base's
            generation settings.
        threaded: whether a thread of the engine computes; otherwise the caller calls
            :meth:`step`.

    Attributes:
        observers: called with the account of each request that has ended.
        token_table: text and bytes of the base's tokens.

    Raises:
        BaseModelError: the base can't be computed in packed steps, or memory does not suffice.
    """

    modality: Modality = "text"

    def __init__(
        self,
        base: Base,
        settings: EngineSettings | None = None,
        *,
        pool: AdapterPool | None = None,
        clock: Callable[[], float] = time.monotonic,
        sampler: Sampler = sample,
        run_step: StepFunction = Stepper.run,
        end_ids: Iterable[int] | None = None,
        threaded: bool = True,
    ) -> None:
        self.base = base
        self.settings = settings or EngineSettings()
        self.observers: list[Callable[[RequestStats], None]] = []
        self.run_step = run_step
        self.token_table = TokenTable(base.tokenizer)
        self.end_ids = frozenset(_read_end_ids(base) if end_ids is None else end_ids)
        per_token = bytes_per_token(base.model)
        tokens = self.settings.kv_tokens or self.settings.kv_mib * MIB // per_token
        tokens = min(tokens, (base.info.context + BLOCK_SIZE) * self.settings.rows)
        self._blocks = BlockPool(tokens // BLOCK_SIZE, share=self.settings.prefix_cache)
        if not self._blocks.total:
            raise BaseModelError(
                f"Keys and values of one token take {per_token} bytes; {tokens} tokens are less "
                f"than a block of {BLOCK_SIZE}.",
                "Give the engine a larger kv_mib.",
            )
        # In a thread of its own, as the base was loaded (bases/load.py explains why).
        with ThreadPoolExecutor(1) as loader:
            self.pool, self._stepper = loader.submit(self._prepare, pool, sampler).result()
        self._clock = clock
        self._changed = threading.Condition()
        self._validator = RequestValidator(
            base, self.pool, self._blocks.total * BLOCK_SIZE, clock=clock
        )
        self._scheduler = Scheduler(
            self.settings, self.pool, self._blocks, changed=self._changed, clock=clock
        )
        self._open: set[RequestState] = set()
        self._threaded = threaded
        self._thread: threading.Thread | None = None
        self._draining = False
        self._closed = False
        self._paused = False
        self._steps = 0
        base.fused_layers.users.add(self)
        close_at_exit(self)

    def _prepare(self, pool: AdapterPool | None, sampler: Sampler) -> tuple[AdapterPool, Stepper]:
        base, settings = self.base, self.settings
        if pool is None:
            pool = AdapterPool(
                base.model,
                base.digest,
                base.fused_layers,
                slots=settings.slots,
                adapter_mib=settings.adapter_mib,
            )
        stepper = Stepper(base.model, pool, self._blocks.total * BLOCK_SIZE, sampler)
        exact = str(base.dtype) == "torch.float32" and base.quantized is None
        with pool.route(Routing()):
            check_packed_forward(base.model, stepper.kv_cache.layers, exact=exact)
        return pool, stepper

    @property
    def max_model_len(self) -> int:
        """The longest prompt with answer that can be computed, in tokens."""
        return min(self.base.info.context, self._blocks.total * BLOCK_SIZE)

    # ------------------------------------------------------------------------------- requests

    def submit(self, request: ResolvedRequest) -> GenerationHandle:
        """Queue a request and return at once.

        The calling thread reads an adapter that is not in memory from disk.

        Raises:
            BusyError: the wait queue is full.
            UnavailableError: the engine is draining or closed.
            DataError: the text is empty, or longer than the context of the base.
            UsageError: the adapter's task does not fit the request.
            IntegrityError, BaseMismatchError: the adapter can't be loaded.
        """
        with self._changed:
            check_open(draining=self._draining)
            check_queue(len(self._scheduler.waiting), self.settings.queue)
        return self._enqueue([self._validator.validate(request)], limited=True)[0]

    def run(
        self,
        requests: ListLike[ResolvedRequest],
        *,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Answer all requests, in order; if one of them is invalid, none is computed.

        Args:
            requests: for any mixture of adapters.
            on_done: called with 1 after each answer.

        Raises:
            As :meth:`submit`. Whatever the reason, the remaining requests are cancelled.
        """
        check_open(draining=self._draining)
        states: list[RequestState] = []
        for index, request in enumerate(requests):
            try:
                states.append(self._validator.validate(request))
            except DataError as error:
                raise locate_error(error, index, len(requests)) from None
        handles = self._enqueue(states)
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

    def cancel(self, state: RequestState) -> None:
        """End a request at the next step; does nothing if it has ended."""
        with self._changed:
            state.cancelled = True
            self._changed.notify_all()

    def state(self) -> EngineState:
        """How busy the engine is."""
        with self._changed:
            used = self._blocks.total - self._blocks.available
            unstarted = [one.state for one in self._scheduler.waiting if one.state.started is None]
            return EngineState(
                waiting=len(self._scheduler.waiting),
                running=len(self._scheduler.running),
                rows=self.settings.rows,
                kv_tokens_used=used * BLOCK_SIZE,
                kv_tokens=self._blocks.total * BLOCK_SIZE,
                cached_tokens=self._blocks.cached * BLOCK_SIZE,
                steps=self._steps,
                draining=self._draining,
                wait_seconds=longest_wait(unstarted, self._clock()),
                waiting_adapters=adapter_names(unstarted),
            )

    def reset_prefix_cache(self) -> None:
        """Forget the keys and values of past prompts; running requests keep theirs."""
        with self._changed:
            self._blocks.reset()

    @contextmanager
    def base_released(self) -> Iterator[None]:
        """Free the memory of the base's weights inside the block, for a training.

        It begins when all open requests have ended; later ones wait until it ends. Where another
        engine uses the same base, the weights stay.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._open and not self._paused)
            self._paused = True
        try:
            alone = len(self.base.fused_layers.users) == 1
            with self.base.released() if alone else nullcontext():
                yield
        finally:
            with self._changed:
                self._paused = False
                self._changed.notify_all()

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests and wait for the others; returns whether all have ended."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._open, timeout)

    def close(self) -> None:
        """Stop the thread; requests that are still open end with :class:`UnavailableError`."""
        with self._changed:
            self._draining = self._closed = True
            self.base.fused_layers.users.discard(self)
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._changed:
            for state in list(self._open):
                self._end(state, closed_error(), "failed")
        self._scheduler.close()

    def _enqueue(
        self, states: Iterable[RequestState], *, limited: bool = False
    ) -> list[GenerationHandle]:
        handles = []
        with self._changed:
            check_open(draining=self._draining)
            if limited:
                check_queue(len(self._scheduler.waiting), self.settings.queue)
            for state in states:
                count = state.request.n if isinstance(state.task, GenerationTask) else 1
                first, *others = (self._make_sequence(state, index) for index in range(count))
                state.unstarted = others
                self._open.add(state)
                self._scheduler.add(first)
                handles.append(GenerationHandle(state, self.cancel))
            if self._threaded and self._thread is None:
                self._thread = threading.Thread(
                    target=self._loop, name="trunkline-engine", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()
        return handles

    def _make_sequence(self, state: RequestState, index: int) -> Sequence:
        tokenizer, table = self.base.tokenizer, self.token_table
        if state.scores_prompt and index == 0:
            state.prompt_scores = PromptScores(
                state.prompt, table, tokenizer, spell_special=bool(state.request.token_ids)
            )
        return Sequence(state, index, tokenizer, self.end_ids, byte_level=table.byte_level)

    # ---------------------------------------------------------------------------------- steps

    def step(self) -> bool:
        """Compute one step in the calling thread; returns whether there was anything to compute.

        Only for an engine with ``threaded=False``.
        """
        with self._changed:
            parts = self._schedule()
        if parts:
            self._compute(parts)
        return bool(parts)

    def _loop(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                try:
                    parts = self._schedule()
                except Exception as error:
                    self._fail_all(error)
                    continue
                if not parts:
                    self._changed.wait(0.05 if self._open else None)
                    continue
            try:
                self._compute(parts)
            except Exception as error:
                with self._changed:
                    self._fail_all(error)

    def _schedule(self) -> list[Part]:
        """Choose what the next step computes; empty if nothing can be computed now."""
        self._end_cancelled_and_late()
        if self._paused:
            return []
        for state, error in self._scheduler.admit():
            self._end(state, error, "failed")
        return self._scheduler.plan()

    def _end_cancelled_and_late(self) -> None:
        """Also end requests whose adapter can't be loaded."""
        for digest, error in self._scheduler.failed_loads():
            running = {sequence.state for sequence in self._scheduler.running}
            for state in [one for one in self._open if one.digest == digest]:
                if state not in running:
                    self._end(state, as_trunkline_error(error, _LESS), "failed")
        now = self._clock()
        for state in list(self._open):
            if (end := early_end(state, now)) is not None:
                self._end(state, *end)

    def _compute(self, parts: list[Part]) -> None:
        now = self._clock()
        sequences = [part.sequence for part in parts]
        for sequence in sequences:
            if sequence.state.started is None:
                sequence.state.started = now
        sizes = [(part.sequence, part.tokens) for part in parts]
        try:
            result = self.run_step(self._stepper, parts)
        except Exception as error:  # the thread and the other requests must survive any error
            with self._changed:
                for sequence in sequences:
                    self._end(sequence.state, as_trunkline_error(error, _LESS), "failed")
            return
        with self._changed:
            self._steps += 1
            for sequence, tokens in sizes:
                self._scheduler.record(sequence, tokens)
            self._apply(result)

    def _apply(self, result: StepResult) -> None:
        for sequence, scores in result.prompt_scores:
            assert sequence.state.prompt_scores is not None
            sequence.state.prompt_scores.extend(scores)
        for sequence in result.prefilled:
            self._end_prefilled(sequence)
        for sequence, token, logprob, top in result.sampled:
            self._append(sequence, token, logprob, top)
        for sequence, output in result.head_outputs:
            sequence.state.head_output = output
            self._scheduler.release(sequence)
            self._end(sequence.state, sequence.state.build_answer(), "done")
        for sequence, error in result.failures:
            self._end(sequence.state, error, "failed")

    def _end_prefilled(self, sequence: Sequence) -> None:
        """End a request that generates nothing; each of its choices is empty."""
        state = sequence.state
        if state.ended:
            return
        self._scheduler.release(sequence)
        for index in range(state.request.n):
            state.choices[index] = Choice(index, "", "length", 0)
            state.publish(StreamChunk(index, "", (), "length"))
        self._end(state, state.build_answer(), "done")

    def _append(
        self,
        sequence: Sequence,
        token: int,
        logprob: float | None,
        top: tuple[tuple[int, float], ...],
    ) -> None:
        state = sequence.state
        if state.ended:
            return
        if state.first_token is None:
            state.first_token = self._clock()
        for other in reversed(state.unstarted):
            self._scheduler.add(other, front=True)
        state.unstarted = []
        state.new_tokens += 1
        score = None
        if logprob is not None:
            score = self.token_table.score(token, logprob, top)
        chunk = sequence.append(token, score)
        if sequence.finish_reason is not None:
            state.choices[sequence.index] = sequence.build_choice()
            self._scheduler.release(sequence)
        if chunk is not None:
            state.publish(chunk)
        if len(state.choices) == state.request.n:
            self._end(state, state.build_answer(), "done")

    # --------------------------------------------------------------------------------- ending

    def _end(self, state: RequestState, result: Result, outcome: str) -> None:
        if state.ended:
            return
        self._scheduler.remove(state)
        self._open.discard(state)
        finish(state, result, outcome, self._clock(), self.observers)
        if not self._open:
            self._changed.notify_all()

    def _fail_all(self, error: Exception) -> None:
        """The last resort: end all open requests, so that the thread survives for later ones."""
        for state in list(self._open):
            self._end(state, as_trunkline_error(error, _LESS), "failed")


def _read_end_ids(base: Base) -> set[int]:
    """Ids that end an answer: of the tokenizer, and of the base's generation settings."""
    configured = getattr(getattr(base.model, "generation_config", None), "eos_token_id", None)
    ids = {base.tokenizer.eos_token_id}
    ids |= set(configured) if isinstance(configured, list) else {configured}
    return {int(one) for one in ids if one is not None}

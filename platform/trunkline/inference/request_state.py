"""The state of a request from arrival to end, its sequences, and the handle that callers hold."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trunkline.adapters.artifact import Artifact
from trunkline.data.targets import labels_in, number
from trunkline.errors import TrunklineError
from trunkline.inference.detokenizer import IncrementalDetokenizer
from trunkline.inference.embedding import EmbeddingTask
from trunkline.inference.kv_cache import BLOCK_SIZE, Lease
from trunkline.inference.request import (
    Answer,
    Choice,
    Request,
    ScoredSpan,
    StreamChunk,
    TokenScore,
)
from trunkline.inference.sampling import SamplingParams
from trunkline.inference.scores import PromptScores, ScoreLog
from trunkline.lora.pool import Resident
from trunkline.tasks import (
    AnyTask,
    ClassificationTask,
    GenerationTask,
    MultilabelTask,
    RankingTask,
    TaggingTask,
)

if TYPE_CHECKING:
    import torch

Result = Answer | TrunklineError
"""How a request ends."""

Listener = Callable[[StreamChunk | Result], None]
"""Receives every chunk of a request and then its result, on the engine's thread."""


@dataclass(frozen=True, slots=True)
class RequestStats:
    """The final account of one request; durations are in seconds.

    ``outcome`` is ``done``, ``cancelled``, ``deadline`` or ``failed``; ``first_token_seconds``
    counts from submission, and is None if no token was generated.
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


@dataclass(slots=True, eq=False)
class RequestState:
    """One request from arrival to end. The engine changes it; any thread may subscribe.

    Attributes:
        name: of the adapter version, or ``base``.
        digest: of the version that answers; adapters are scheduled and cached under it.
        prompt: token ids.
        max_new_tokens: 0 if a head answers.
        truncated: whether the text was cut to the adapter's longest prompt.
        submitted, started, first_token: times on the engine's clock, in seconds.
        choices: finished sequences, by index.
        head_output: ``[outputs]``, of a task with a head; of tagging, those of the tokens so far,
            ``[tokens, tags]``; of an embedding, the sum of the hidden states so far, ``[hidden]``.
        offsets: of tagging: the characters of the text that each token covers; None outside of it.
        prompt_scores: log probabilities of the prompt's tokens so far.
        unstarted: sequences that start once the first one has computed the prompt.
        result: the answer or error; None until the request ends.
    """

    request: Request
    artifact: Artifact | None
    name: str
    digest: str
    task: AnyTask | EmbeddingTask
    prompt: list[int]
    max_new_tokens: int
    truncated: bool = False
    offsets: tuple[tuple[int, int] | None, ...] = ()
    submitted: float = 0.0
    started: float | None = None
    first_token: float | None = None
    cached_tokens: int = 0
    new_tokens: int = 0
    cancelled: bool = False
    choices: dict[int, Choice] = field(default_factory=dict)
    head_output: torch.Tensor | None = None
    prompt_scores: PromptScores | None = None
    unstarted: list[Sequence] = field(default_factory=list)
    result: Result | None = None
    stats: RequestStats | None = None
    done: threading.Event = field(default_factory=threading.Event)
    _chunks: list[StreamChunk] = field(default_factory=list)
    _listeners: list[Listener] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ended(self) -> bool:
        """Whether there is an answer or an error."""
        return self.result is not None

    @property
    def scores_prompt(self) -> bool:
        """Whether the log probabilities of the prompt's tokens are part of the answer."""
        return self.request.echo and self.request.logprobs is not None

    def is_late(self, now: float) -> bool:
        """Whether the deadline has passed at ``now``, in seconds on the engine's clock."""
        deadline = self.request.deadline
        return deadline is not None and now - self.submitted > deadline

    def build_answer(self) -> Answer:
        """Combine the finished choices, or decode the head's output."""
        common: dict[str, Any] = {
            "adapter": self.name,
            "digest": self.digest,
            "task": self.task.kind,
            "prompt_tokens": len(self.prompt),
            "cached_tokens": self.cached_tokens,
            "truncated": self.truncated,
        }
        if isinstance(self.task, GenerationTask):
            choices = tuple(self.choices[index] for index in sorted(self.choices))
            return Answer(
                **common,
                new_tokens=self.new_tokens,
                text=choices[0].text,
                finish=choices[0].finish,
                choices=choices,
                prompt_scores=() if self.prompt_scores is None else self.prompt_scores.scores,
            )
        assert self.head_output is not None
        if isinstance(self.task, EmbeddingTask):
            return Answer(**common, embedding=self.task.decode(self.head_output))
        if isinstance(self.task, TaggingTask):
            return Answer(**common, spans=self._spans(self.task))
        if isinstance(self.task, RankingTask):
            return Answer(**common, value=float(self.head_output[0]))
        value, probabilities = self.task.decode(self.head_output[None])[0]
        labels, abstained = getattr(self.task, "labels", ()), False
        if isinstance(self.task, ClassificationTask) and self.request.abstain is not None:
            abstained = max(probabilities or ()) < self.task.threshold(self.request.abstain)
        return Answer(
            **common,
            label=None if abstained or self.task.kind != "classification" else str(value),
            labels=labels_in(value) if isinstance(self.task, MultilabelTask) else None,
            abstained=abstained,
            probabilities=(
                dict(zip(labels, probabilities, strict=True)) if probabilities else None
            ),
            value=number(value) if self.task.kind == "regression" else None,
            unit=getattr(self.task, "unit", None),
        )

    def _spans(self, task: TaggingTask) -> tuple[ScoredSpan, ...]:
        assert self.head_output is not None
        inside = [index for index, one in enumerate(self.offsets) if one is not None]
        example = {"offsets": [self.offsets[index] for index in inside]}
        spans, probabilities = task.decode(self.head_output[inside], [example])[0]
        text = self.request.text
        return tuple(
            ScoredSpan(one.start, one.end, one.label, text[one.start : one.end], probability)
            for one, probability in zip(spans, probabilities, strict=True)
        )

    def publish(self, chunk: StreamChunk) -> None:
        """Send a chunk to all listeners."""
        with self._lock:
            self._chunks.append(chunk)
            for listener in self._listeners:
                listener(chunk)

    def finish(self, result: Result, outcome: str, now: float) -> RequestStats:
        """End the request: close its account and send the result to all listeners."""
        first = self.first_token
        stats = RequestStats(
            name=self.name,
            digest=self.digest,
            task=self.task.kind,
            outcome=outcome,
            queue_seconds=(now if self.started is None else self.started) - self.submitted,
            first_token_seconds=None if first is None else first - self.submitted,
            seconds=now - self.submitted,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            new_tokens=self.new_tokens,
        )
        with self._lock:
            self.result, self.stats = result, stats
            self.done.set()
            for listener in self._listeners:
                listener(result)
        return stats

    def subscribe(self, listener: Listener) -> None:
        """Send a listener everything from the first chunk on, whenever it subscribes."""
        with self._lock:
            for chunk in self._chunks:
                listener(chunk)
            if self.result is not None:
                listener(self.result)
            self._listeners.append(listener)

    def unsubscribe(self, listener: Listener) -> None:
        """Send a listener nothing more."""
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)


class GenerationHandle:
    """The caller's view of one submitted request; every method is safe from any thread.

    Args:
        state: the engine's; read it, don't change it.
        cancel: the engine's method; only the engine ends requests.
    """

    def __init__(self, state: RequestState, cancel: Callable[[RequestState], None]) -> None:
        self.state = state
        self.name = state.name
        self.digest = state.digest
        self.prompt_tokens = len(state.prompt)
        self.truncated = state.truncated
        self._cancel = cancel

    @property
    def ended(self) -> bool:
        """Whether there is an answer or an error."""
        return self.state.ended

    @property
    def stats(self) -> RequestStats | None:
        """The account of the request; None until it has ended."""
        return self.state.stats

    def answer(self, timeout: float | None = None) -> Answer:
        """Wait for the complete answer.

        Raises:
            TimeoutError: there was none within ``timeout`` seconds; the request goes on.
            TrunklineError: what the request ended with.
        """
        if not self.state.done.wait(timeout):
            raise TimeoutError(f"No answer in {timeout} seconds.")
        return _answer_or_raise(self.state.result)

    async def answer_async(self) -> Answer:
        """Await the complete answer; raises what the request ended with."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def resolve() -> None:
            if not ended.done():
                ended.set_result(None)

        def listen(event: StreamChunk | Result) -> None:
            if not isinstance(event, StreamChunk):
                _call_in_loop(loop, resolve)

        self.state.subscribe(listen)
        try:
            await ended
        finally:
            self.state.unsubscribe(listen)
        return _answer_or_raise(self.state.result)

    def chunks(self) -> Iterator[StreamChunk]:
        """Stream the answer, blocking; raises what the request ended with."""
        events: queue.SimpleQueue[StreamChunk | Result] = queue.SimpleQueue()
        self.state.subscribe(events.put)
        try:
            while isinstance(event := events.get(), StreamChunk):
                yield event
            _answer_or_raise(event)
        finally:
            self.state.unsubscribe(events.put)

    async def stream(self) -> AsyncIterator[StreamChunk]:
        """Stream the answer in an event loop; raises what the request ended with."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[StreamChunk | Result] = asyncio.Queue()

        def listen(event: StreamChunk | Result) -> None:
            _call_in_loop(loop, events.put_nowait, event)

        self.state.subscribe(listen)
        try:
            while isinstance(event := await events.get(), StreamChunk):
                yield event
            _answer_or_raise(event)
        finally:
            self.state.unsubscribe(listen)

    def cancel(self) -> None:
        """Ask the engine to end the request; its row is free at the next step."""
        self._cancel(self.state)


class Sequence:
    """One of the answers to a prompt.

    Attributes:
        tokens: ids of the prompt, then of the answer.
        computed: how many of them have keys and values in the KV cache.
        slot_mapping: position in the KV cache of each token that this sequence may have,
            ``[capacity]``.
    """

    def __init__(
        self,
        state: RequestState,
        index: int,
        tokenizer: Any,
        end_ids: frozenset[int],
        *,
        byte_level: bool = True,
    ) -> None:
        request = state.request
        self.state = state
        self.index = index
        self.tokens = list(state.prompt)
        self.computed = 0
        self.lease: Lease | None = None
        self.resident: Resident | None = None
        self.slot_mapping = np.empty(0, dtype=np.int64)
        self.sampling = SamplingParams(
            request.temperature, request.top_p, request.top_k, request.seed + index,
            request.logprobs,
        )  # fmt: skip
        self.finish_reason: str | None = None
        self.scores = ScoreLog(byte_level=byte_level)
        self._end_ids = end_ids
        self._ignores_end = request.ignore_eos
        self._detokenizer = (
            IncrementalDetokenizer(tokenizer, request.stop, end_ids) if self.generates else None
        )

    @property
    def generates(self) -> bool:
        """Whether it generates tokens; otherwise it reads a head."""
        return isinstance(self.state.task, GenerationTask)

    @property
    def needs_all_hidden(self) -> bool:
        """Whether the hidden state of every token of the prompt is needed, so none is cached."""
        if self.index > 0:
            return False
        return self.state.scores_prompt or isinstance(self.state.task, EmbeddingTask | TaggingTask)

    @property
    def capacity(self) -> int:
        """Tokens that it needs in the KV cache; the last new one is never computed."""
        return len(self.state.prompt) + max(0, self.state.max_new_tokens - 1)

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are not in the KV cache yet."""
        return len(self.tokens) - self.computed

    @property
    def new_tokens(self) -> int:
        """Tokens sampled so far."""
        return len(self.tokens) - len(self.state.prompt)

    @property
    def pages(self) -> tuple[int, ...]:
        """Pages of its adapter; none for the base."""
        return self.resident.pages if self.resident is not None else ()

    def start(self, lease: Lease, resident: Resident | None) -> None:
        """Begin with the given cache blocks and adapter."""
        blocks = np.asarray(lease.blocks, dtype=np.int64)
        self.slot_mapping = (blocks[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).reshape(-1)
        self.lease, self.resident = lease, resident
        self.computed = lease.cached

    def append(self, token: int, score: TokenScore | None) -> StreamChunk | None:
        """Add a sampled token; returns the text that it makes certain, if any."""
        detokenizer = self._detokenizer
        assert detokenizer is not None
        self.tokens.append(token)
        before = 0 if score is None else detokenizer.characters
        text = detokenizer.add(token)
        if score is not None:
            if token in self._end_ids:
                score = replace(score, raw_bytes=b"")
            self.scores.add(score, detokenizer, before)
        if token in self._end_ids and not self._ignores_end:
            text += detokenizer.finish()
            self.finish_reason = "stop"
        elif detokenizer.stopped:
            self.finish_reason = "stop"
        elif self.new_tokens >= self.state.max_new_tokens:
            text += detokenizer.finish()
            self.finish_reason = "stop" if detokenizer.stopped else "length"
        if detokenizer.stopped:
            self.scores.cut(detokenizer.text)
        if not text and self.finish_reason is None:
            return None
        certain = None if self.finish_reason else len(detokenizer.text)
        return StreamChunk(self.index, text, self.scores.take(certain), self.finish_reason)

    def build_choice(self) -> Choice:
        """The finished answer of this sequence."""
        assert self._detokenizer is not None
        assert self.finish_reason is not None
        return Choice(
            self.index,
            self._detokenizer.text,
            self.finish_reason,
            self.new_tokens,
            tuple(self.scores.scores),
        )


def _answer_or_raise(result: Result | None) -> Answer:
    if isinstance(result, Answer):
        return result
    assert result is not None
    raise result


def _call_in_loop(
    loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: object
) -> None:
    """Call in the loop's thread; a closed loop has no reader any more."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise

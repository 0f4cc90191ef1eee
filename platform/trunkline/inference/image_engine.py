"""The inference engine of an image base: batches of pictures, each with its own adapter.

The caller's thread decodes a picture; the engine's thread computes the pictures that wait, up to
``rows`` at once, whatever their adapters. A picture takes one pass, so nothing is scheduled beyond
that: first come, first served.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as ListLike
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trunkline.adapters.artifact import Artifact
from trunkline.data.pictures import read_pixels, to_tensor
from trunkline.errors import (
    BusyError,
    DataError,
    TrunklineError,
    UsageError,
)
from trunkline.inference.engine import Engine, EngineState
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
from trunkline.inference.prompts import check_abstain, locate_error
from trunkline.inference.request import Answer, ResolvedRequest
from trunkline.inference.request_state import (
    GenerationHandle,
    RequestState,
    RequestStats,
    Result,
)
from trunkline.inference.settings import EngineSettings
from trunkline.lora.pool import AdapterPool, Resident
from trunkline.lora.routing import ImageRouting
from trunkline.preprocessing import Preprocessing
from trunkline.tasks import task_from_json

if TYPE_CHECKING:
    import numpy as np
    import torch

    from trunkline.bases import ImageBase
    from trunkline.contracts import Modality


PASS_PIXELS = 6 * 224 * 224
"""Pixels of the pictures of one pass on a CPU.

The outputs of early layers are then small enough to stay in memory that the process has, where the
system hands out larger ones anew, page by page. ``benchmarks/bench_images.py`` compares it with one
pass for all pictures."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A request with its picture, ``[height, width, 3]`` uint8."""

    state: RequestState
    artifact: Artifact
    pixels: np.ndarray
    preprocessing: Preprocessing


class ImageEngine:
    """One image base with its adapter pool, and the thread that computes. Safe from any thread.

    Args:
        base: in memory.
        settings: ``rows``, ``queue``, ``slots`` and ``adapter_mib`` are used.
        clock: gives seconds; deadlines and durations are measured on it.

    Attributes:
        observers: called with the account of each request that has ended.
    """

    modality: Modality = "image"

    def __init__(
        self,
        base: ImageBase,
        settings: EngineSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base = base
        self.settings = settings or EngineSettings()
        self.observers: list[Callable[[RequestStats], None]] = []
        with ThreadPoolExecutor(1) as loader:  # bases/load.py explains why
            self.pool = loader.submit(self._make_pool).result()
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._running: list[_Waiting] = []
        self._thread: threading.Thread | None = None
        self._draining = self._closed = self._paused = False
        self._steps = 0
        close_at_exit(self)

    def _make_pool(self) -> AdapterPool:
        base, settings = self.base, self.settings
        return AdapterPool(
            base.model,
            base.digest,
            base.fused_layers,
            hidden=base.model.features,
            slots=settings.slots,
            adapter_mib=settings.adapter_mib,
        )

    # ------------------------------------------------------------------------------- requests

    def submit(self, request: ResolvedRequest) -> GenerationHandle:
        """Decode the picture of a request, queue it and return.

        Raises:
            BusyError: the wait queue is full.
            UnavailableError: the engine is draining or closed.
            DataError, TooLargeError: the picture can't be decoded.
            UsageError: the request has no picture, or the adapter reads text.
            IntegrityError, BaseMismatchError: the adapter can't be loaded.
        """
        with self._changed:
            check_open(draining=self._draining)
            check_queue(len(self._waiting), self.settings.queue)
        return self._enqueue([self._validate(request)])[0]

    def run(
        self,
        requests: ListLike[ResolvedRequest],
        *,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Answer all requests, in order; a batch is decoded while the one before is computed.

        Args:
            requests: for any mixture of adapters.
            on_done: called with 1 after each answer.

        Raises:
            As :meth:`submit`. Whatever the reason, the remaining requests are cancelled.
        """
        answers: list[Answer] = []
        handles: list[GenerationHandle] = []
        size = self.settings.rows
        try:
            for start in range(0, len(requests) + size, size):
                earlier = len(handles)
                if batch := self._decoded(requests, start, start + size):
                    handles += self._enqueue(batch)
                for handle in handles[len(answers) : earlier]:
                    answers.append(handle.answer())
                    if on_done is not None:
                        on_done(1)
            return answers
        finally:
            for handle in handles[len(answers) :]:
                if not handle.ended:
                    handle.cancel()

    def _decoded(
        self, requests: ListLike[ResolvedRequest], start: int, stop: int
    ) -> list[_Waiting]:
        """Some of the requests, checked, with their pictures; raises as :meth:`submit`."""
        valid = []
        for index, request in enumerate(requests[start:stop], start):
            try:
                valid.append(self._validate(request))
            except DataError as error:
                raise locate_error(error, index, len(requests)) from None
        return valid

    def cancel(self, state: RequestState) -> None:
        """End a request at the next step; does nothing if it has ended."""
        with self._changed:
            state.cancelled = True
            self._changed.notify_all()

    def state(self) -> EngineState:
        """How busy the engine is; it has no memory for keys and values."""
        with self._changed:
            waiting = [one.state for one in self._waiting]
            return EngineState(
                waiting=len(self._waiting),
                running=len(self._running),
                rows=self.settings.rows,
                kv_tokens_used=0,
                kv_tokens=0,
                cached_tokens=0,
                steps=self._steps,
                draining=self._draining,
                wait_seconds=longest_wait(waiting, self._clock()),
                waiting_adapters=adapter_names(waiting),
            )

    @contextmanager
    def base_released(self) -> Iterator[None]:
        """Compute nothing inside the block, for a training; the weights stay in memory."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle and not self._paused)
            self._paused = True
        try:
            yield
        finally:
            with self._changed:
                self._paused = False
                self._changed.notify_all()

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests and wait for the others; returns whether all have ended."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: self._idle, timeout)

    def close(self) -> None:
        """Stop the thread; requests that are still open end with :class:`UnavailableError`."""
        with self._changed:
            self._draining = self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._changed:
            for one in (*self._running, *self._waiting):
                self._end(one, closed_error(), "failed")
            self._waiting = []

    @property
    def _idle(self) -> bool:
        return not self._waiting and not self._running

    def _validate(self, resolved: ResolvedRequest) -> _Waiting:
        """Check a request, load its adapter into memory, and decode its picture."""
        submitted = self._clock()
        request, artifact = resolved.request, resolved.artifact
        if artifact is None or not artifact.manifest.reads_images:
            raise UsageError(
                f"{resolved.name} reads text, and the request has a picture.",
                "Send a text, or name an adapter that reads pictures.",
            )
        if request.image is None or request.text:
            raise UsageError(
                f"{resolved.name} reads pictures, and the request has a text.",
                f"Send a picture: `trunkline predict {resolved.name} picture.jpg`.",
            )
        task = task_from_json(dict(artifact.manifest.task))
        check_abstain(request, resolved.name, task)
        self.pool.load(artifact, resolved.name)
        preprocessing = artifact.manifest.make_preprocessing()
        state = RequestState(
            request=request,
            artifact=artifact,
            name=resolved.name,
            digest=artifact.digest,
            task=task,
            prompt=[],
            max_new_tokens=0,
            submitted=submitted,
        )
        return _Waiting(state, artifact, read_pixels(request.image, preprocessing), preprocessing)

    def _enqueue(self, valid: ListLike[_Waiting]) -> list[GenerationHandle]:
        with self._changed:
            check_open(draining=self._draining)
            self._waiting += valid
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._loop, name="trunkline-images", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()
        return [GenerationHandle(one.state, self.cancel) for one in valid]

    # ---------------------------------------------------------------------------------- steps

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or (self._waiting and not self._paused))
                if self._closed:
                    return
                self._end_cancelled_and_late()
                self._running = self._take()
            self._step()

    def _end_cancelled_and_late(self) -> None:
        now = self._clock()
        for one in list(self._waiting):
            if (end := early_end(one.state, now)) is not None:
                self._end(one, *end)

    def _take(self) -> list[_Waiting]:
        """The next batch: pictures that are prepared as the one that waits longest."""
        if not self._waiting:
            return []
        first = self._waiting[0].preprocessing
        chosen = [one for one in self._waiting if one.preprocessing == first]
        chosen = chosen[: self.settings.rows]
        self._waiting = [one for one in self._waiting if one not in chosen]
        return chosen

    def _step(self) -> None:
        """Compute the batch; a picture whose adapter finds no place on the device waits again."""
        batch, residents = self._acquire()
        try:
            outputs = self._compute(batch, residents) if batch else []
            results: list[tuple[_Waiting, Result, str]] = []
            for one, output in zip(batch, outputs, strict=True):
                one.state.head_output = output
                results.append((one, one.state.build_answer(), "done"))
        except Exception as error:  # the thread and the other requests must survive any error
            results = [(one, as_trunkline_error(error, "fewer rows"), "failed") for one in batch]
        finally:
            for resident in residents:
                self.pool.release(resident)
        with self._changed:
            self._steps += 1
            for one, result, outcome in results:
                self._end(one, result, outcome)
            self._waiting = [*self._running, *self._waiting]
            self._running = []
            self._changed.notify_all()

    def _acquire(self) -> tuple[list[_Waiting], list[Resident]]:
        """The pictures of the batch whose adapters are on the device, with these."""
        batch: list[_Waiting] = []
        residents: list[Resident] = []
        now = self._clock()
        for one in list(self._running):
            try:
                resident = self.pool.acquire(one.state.digest)
                if resident is None:
                    self.pool.load(one.artifact, one.state.name)
                    resident = self.pool.acquire(one.state.digest)
            except TrunklineError as error:
                if not isinstance(error, BusyError) or not residents:
                    with self._changed:
                        self._end(one, error, "failed")
                continue
            if resident is not None:
                one.state.started = now
                batch.append(one)
                residents.append(resident)
        return batch, residents

    def _compute(
        self, batch: ListLike[_Waiting], residents: ListLike[Resident]
    ) -> list[torch.Tensor]:
        """The head's outputs ``[outputs]`` of each picture."""
        import numpy as np
        import torch

        outputs: list[torch.Tensor] = []
        with torch.inference_mode():
            for part in passes(len(batch), batch[0].preprocessing, self.base.device.type):
                pixels = np.stack([one.pixels for one in batch[part]])
                values = to_tensor(pixels, batch[0].preprocessing)
                with self.pool.route(ImageRouting([one.pages for one in residents[part]])):
                    features = self.base.model.pooled(values)
                for resident, row in zip(residents[part], features, strict=True):
                    assert resident.head is not None
                    outputs.append(resident.head(row).cpu())
        return outputs

    def _end(self, one: _Waiting, result: Result, outcome: str) -> None:
        self._waiting = [other for other in self._waiting if other is not one]
        self._running = [other for other in self._running if other is not one]
        if not one.state.ended:
            finish(one.state, result, outcome, self._clock(), self.observers)


def passes(count: int, preprocessing: Preprocessing, device: str) -> Iterator[slice]:
    """The pictures of each pass of a batch: on a CPU few, elsewhere all.

    Args:
        count: pictures of the batch.
        device: type of the device.
    """
    size = count
    if device == "cpu":
        size = max(1, PASS_PIXELS // (preprocessing.height * preprocessing.width))
    for start in range(0, count, size):
        yield slice(start, start + size)


AnyEngine = Engine | ImageEngine
"""The engine of a base of either modality."""

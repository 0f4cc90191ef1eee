"""Trunkline for the benchmarks: single steps by hand, and the engine behind a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from made import load_base
from streams import Arrival, Course

from trunkline.adapters.artifact import Artifact, read_artifact
from trunkline.inference.batching import Part, Stepper
from trunkline.inference.engine import Engine
from trunkline.inference.kv_cache import BLOCK_SIZE, BlockPool
from trunkline.inference.request import Request, ResolvedRequest
from trunkline.inference.request_state import GenerationHandle, RequestState
from trunkline.inference.request_state import Sequence as GeneratedSequence
from trunkline.inference.settings import EngineSettings
from trunkline.lora.pool import AdapterPool
from trunkline.tasks import GenerationTask

AMPLE_MIB = 32 << 10
"""Memory is taken as pages are written, so a budget that never binds costs nothing."""


class ByHand:
    """Base, adapter pool and stepper in the calling thread; no engine, no queue."""

    def __init__(self, base: Any, artifacts: Sequence[Artifact], *, slots: int) -> None:
        self.base = base
        self.pool = AdapterPool(
            base.model, base.digest, base.fused_layers, slots=slots, adapter_mib=AMPLE_MIB
        )
        for artifact in artifacts:
            self.pool.load(artifact)
        self.digests = [artifact.digest for artifact in artifacts]
        self.stepper = Stepper(base.model, self.pool, 4096)

    def decode(
        self, prompts: Sequence[list[int]], digests: Sequence[str | None]
    ) -> Callable[[], Any]:
        """A step that computes the last token of each prompt; the tokens before it are computed.

        It samples the next tokens, and can be called repeatedly.
        """
        rows = self.start(prompts, digests)
        self.stepper.run([Part(row, row.pending - 1) for row in rows])
        return self._repeatable([Part(row, 1) for row in rows])

    def prefill(
        self, prompts: Sequence[list[int]], digests: Sequence[str | None]
    ) -> Callable[[], Any]:
        """A step that computes complete prompts and samples their next tokens; repeatable."""
        return self._repeatable([Part(row, row.pending) for row in self.start(prompts, digests)])

    def _repeatable(self, parts: list[Part]) -> Callable[[], Any]:
        before = [part.sequence.computed for part in parts]

        def step() -> None:
            self.stepper.run(parts)
            for part, computed in zip(parts, before, strict=True):
                part.sequence.computed = computed

        return step

    def start(
        self, prompts: Sequence[list[int]], digests: Sequence[str | None]
    ) -> list[GeneratedSequence]:
        """Sequences with blocks of the KV cache and their adapters; nothing is computed."""
        blocks = BlockPool(4096 // BLOCK_SIZE, share=False)
        rows = []
        for ids, digest in zip(prompts, digests, strict=True):
            request = Request(None, "-", raw=True)
            digest_of_row = digest or self.base.digest
            state = RequestState(
                request, None, "base", digest_of_row, GenerationTask(1), ids, max_new_tokens=1
            )
            row = GeneratedSequence(state, 0, self.base.tokenizer, frozenset())
            lease = blocks.allocate("", row.tokens, row.capacity)
            assert lease is not None
            row.start(lease, self.pool.acquire(digest) if digest else None)
            rows.append(row)
        return rows


class EngineProcess:
    """The engine with adapters resident, called through a pipe.

    Answers have exactly as many tokens as requested: no token ends an answer. The calling thread
    computes nothing, as in a server.
    """

    def __init__(
        self,
        shape: str | None,
        folders: Sequence[Path] = (),
        *,
        quantized: str | None = None,
        settings: EngineSettings | None = None,
    ) -> None:
        with ThreadPoolExecutor(1) as apart:
            base = apart.submit(load_base, shape, quantized=quantized).result()
        self.engine = Engine(base, settings, end_ids=())
        self.know(folders)
        for artifact in self.artifacts:
            self.engine.pool.load(artifact, "random/adapter")

    def know(self, folders: Sequence[Path]) -> None:
        """Read these adapters for later requests, without loading them."""
        self.artifacts = [read_artifact(folder) for folder in folders]

    def close(self) -> None:
        """End the engine's thread."""
        self.engine.close()

    def work(self, text: str, adapter: int | None, new_tokens: int) -> ResolvedRequest:
        """A request for an adapter by its number; None is the base."""
        if adapter is None:
            return ResolvedRequest(Request(None, text, max_new_tokens=new_tokens, raw=True))
        request = Request("random/adapter", text, max_new_tokens=new_tokens)
        return ResolvedRequest(request, self.artifacts[adapter], "random/adapter")

    def batch(
        self, prompts: Sequence[tuple[str, list[int]]], adapter: int | None, new_tokens: int
    ) -> tuple[float, list[str]]:
        """Seconds from asking to the last answer, and the answers."""
        works = [self.work(text, adapter, new_tokens) for text, _ in prompts]
        start = time.perf_counter()
        answers = self.engine.run(works)
        seconds = time.perf_counter() - start
        assert all(answer.new_tokens == new_tokens for answer in answers)
        return seconds, [answer.text or "" for answer in answers]

    def serve(self, stream: Sequence[Arrival], new_tokens: int) -> list[Course]:
        """Submit each request when it is due."""
        start = time.perf_counter()
        handles: list[tuple[GenerationHandle, float, float]] = []
        for arrival in stream:
            time.sleep(max(0.0, start + arrival.due - time.perf_counter()))
            handle = self.engine.submit(self.work(arrival.text, arrival.adapter, new_tokens))
            at = time.perf_counter() - start
            handles.append((handle, at, at - arrival.due))
        courses = []
        for handle, at, late in handles:
            handle.answer()
            stats = handle.stats
            assert stats is not None
            assert stats.first_token_seconds is not None
            courses.append(Course(late + stats.first_token_seconds, at + stats.seconds))
        return courses

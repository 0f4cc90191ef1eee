"""An engine that a test steps by hand, and the reference that its answers are compared with."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import torch

from trunkline.bases import Base
from trunkline.errors import TrunklineError
from trunkline.inference.batching import Part, Stepper, StepResult
from trunkline.inference.engine import Engine
from trunkline.inference.request import Answer, Request, ResolvedRequest
from trunkline.inference.request_state import GenerationHandle, RequestState
from trunkline.inference.sampling import SampledTokens, SamplingParams, sample
from trunkline.inference.settings import EngineSettings
from trunkline.lora.pool import AdapterPool

NEAR = 1e-3
"""Two logits of the reference that are closer than this may change places."""

CLOSE = 1e-4
"""Allowed error of our logits, relative to the largest one of the reference."""

ROUNDING = 4
"""If the reference itself has a larger error, compared with float64: that many times as much."""


MakeEngine = Callable[..., Engine]
"""Makes engines with a thread of their own; takes the arguments of :class:`Engine`."""

MakeDriver = Callable[..., "EngineDriver"]
"""Makes engines without a thread; takes the arguments of :class:`EngineDriver`."""


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class TokenRecord:
    """What one sequence sampled, and from which logits, ``[vocabulary]`` each."""

    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)


class EngineDriver:
    """An engine without a thread, whose steps a test takes itself.

    Args:
        end_ids: tokens that end an answer; an empty list lets answers reach their limit.
        clock: by default, real time passes.
        settings: fields of :class:`EngineSettings`.

    Attributes:
        steps: of every step, the requests and how many tokens of each were computed.
        fail_at: the number of a step that raises once, from 0; None: no step raises.
    """

    def __init__(
        self,
        base: Base,
        *,
        end_ids: Sequence[int] | None = None,
        pool: AdapterPool | None = None,
        clock: Clock | None = None,
        **settings: Any,
    ) -> None:
        options: dict[str, Any] = {} if clock is None else {"clock": clock}
        self.engine = Engine(
            base,
            EngineSettings(**settings),
            pool=pool,
            sampler=self._sample,
            run_step=self._run_step,
            end_ids=end_ids,
            threaded=False,
            **options,
        )
        self.steps: list[list[tuple[RequestState, int]]] = []
        self.fail_at: int | None = None
        self._records: dict[tuple[RequestState, int], TokenRecord] = {}
        self._handles: list[GenerationHandle] = []
        self._last: tuple[torch.Tensor, SampledTokens] | None = None

    def __enter__(self) -> EngineDriver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.engine.close()

    def submit(
        self, artifact: Any = None, text: str = "a goat", **options: Any
    ) -> GenerationHandle:
        """Submit a request; one for the bare base is without a template."""
        handle = self.engine.submit(make_request(artifact, text, **options))
        self._handles.append(handle)
        return handle

    def step(self) -> bool:
        """Take one step; returns whether there was anything to compute."""
        return self.engine.step()

    def step_or_wait(self) -> None:
        """Take one step, or wait a moment for an adapter that is being loaded."""
        if not self.step():
            threading.Event().wait(0.001)

    def finish(self, *handles: GenerationHandle, limit: int = 5000) -> None:
        """Step until these requests have ended; without any, until all have."""
        for _ in range(limit):
            if all(one.ended for one in handles or self._handles):
                return
            self.step_or_wait()
        raise AssertionError(f"requests were still open after {limit} steps")

    def answers(self, handles: Sequence[GenerationHandle]) -> list[Answer]:
        """Finish all requests and return the answers of these."""
        self.finish()
        return [handle.answer(0) for handle in handles]

    def error(self, handle: GenerationHandle) -> TrunklineError:
        """The error that a request ended with."""
        try:
            answer = handle.answer(0)
        except TrunklineError as error:
            return error
        raise AssertionError(f"it was answered: {answer}")

    def record(self, handle: GenerationHandle, index: int = 0) -> TokenRecord:
        """What a sequence of a request has sampled so far."""
        state = handle.state
        return self._records.get((state, index)) or TokenRecord(state.prompt)

    def ids(self, handle: GenerationHandle, index: int = 0) -> list[int]:
        """The tokens that a sequence of a request has sampled so far."""
        return self.record(handle, index).ids

    def assert_nothing_is_held(self) -> None:
        """No request has a row, a block or an adapter."""
        state = self.engine.state()
        assert (state.running, state.waiting, state.kv_tokens_used) == (0, 0, 0)
        assert [info.in_use for info in self.engine.pool.residents() if info.in_use] == []

    def _sample(
        self, logits: torch.Tensor, params: Sequence[SamplingParams], steps: Sequence[int]
    ) -> SampledTokens:
        tokens = sample(logits, params, steps)
        self._last = (logits, tokens)
        return tokens

    def _run_step(self, stepper: Stepper, parts: Sequence[Part]) -> StepResult:
        self.steps.append([(part.sequence.state, part.tokens) for part in parts])
        result = stepper.run(parts)
        if result.sampled:
            assert self._last is not None
            for row, (sequence, token, _, _) in enumerate(result.sampled):
                key = (sequence.state, sequence.index)
                record = self._records.setdefault(key, TokenRecord(sequence.state.prompt))
                record.ids.append(token)
                record.logits.append(self._last[0][row].clone())
        if self.fail_at is not None and len(self.steps) > self.fail_at:
            self.fail_at = None
            raise RuntimeError("the device is on fire\nand more")
        return result


def make_request(artifact: Any = None, text: str = "a goat", **options: Any) -> ResolvedRequest:
    """A request resolved to an artifact; for the bare base the text is the prompt."""
    if artifact is None:
        return ResolvedRequest(Request(None, text, raw="messages" not in options, **options))
    adapter = f"toy/{artifact.folder.name}"
    return ResolvedRequest(Request(adapter, text, **options), artifact, f"{adapter}@1")


def reference_logits(model: Any, prompt: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
    """The logits from which plain PEFT samples each of ``ids``, ``[ids, vocabulary]``."""
    read = torch.tensor([[*prompt, *ids[:-1]]])
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=read, use_cache=False).logits[0, len(prompt) - 1 :]
    return logits.float()


def reference_outputs(model: Any, prompt: Sequence[int]) -> torch.Tensor:
    """The outputs of plain PEFT's head for a prompt, ``[outputs]``."""
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([list(prompt)])).logits[0]
    return logits.float()


def count_ties(model: Any, record: TokenRecord, *, end_ids: frozenset[int], limit: int) -> int:
    """Count the tokens of a greedy answer that are the reference's second best, nearly equal one.

    Each token is compared with the reference's choice after the same tokens, so an answer without
    ties equals the reference's own, token for token.

    Raises:
        AssertionError: a token or logits differ from the reference, or the answer goes on after
            an end token, or stops without one.
    """
    truth = reference_logits(model, record.prompt, record.ids)
    assert_close(
        torch.stack(record.logits), truth, model, reference_logits, record.prompt, record.ids
    )
    ties = 0
    for step, (token, theirs) in enumerate(zip(record.ids, truth, strict=True)):
        if token != int(theirs.argmax()):
            best, second = theirs.topk(2).values.tolist()
            assert best - second <= NEAR, f"step {step}: {token} is not {int(theirs.argmax())}"
            ties += 1
    assert not end_ids.intersection(record.ids[:-1]), "it goes on after an end token"
    assert record.ids[-1] in end_ids or len(record.ids) == limit, "it stops without an end token"
    return ties


class Compute(Protocol):
    """Computes the reference's outputs with any copy of the model."""

    def __call__(self, model: Any, /, *args: Any) -> torch.Tensor: ...


def assert_close(
    ours: torch.Tensor, theirs: torch.Tensor, model: Any, compute: Compute, *args: Any
) -> None:
    """Compare outputs, ``[steps, outputs]``, with those of the reference.

    A random network may amplify rounding: where ours differ, the reference is computed in float64
    too, and our error may be a few times that of the reference.
    """
    sizes = theirs.abs().amax(-1).clamp(min=1.0)
    if bool(((ours - theirs).abs().amax(-1) <= CLOSE * sizes).all()):
        return
    exact = compute(copy.deepcopy(model).double(), *args)
    allowed = torch.maximum(CLOSE * sizes, ROUNDING * (theirs - exact).abs().amax(-1))
    off = (ours - exact).abs().amax(-1)
    assert bool((off <= allowed).all()), f"off by {off.tolist()}, allowed {allowed.tolist()}"

"""An engine whose steps a test takes itself, and the truth that its answers are compared with.

Owns: stepping without a thread, what was drawn from which logits, logits of plain PEFT.
Must not know: what is asked.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from collections.abc import Sequence as Listed
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch

from trunkline.bases import Base
from trunkline.errors import TrunklineError
from trunkline.inference.engine import Engine
from trunkline.inference.request import Answer, Request, ResolvedRequest
from trunkline.inference.request_state import GenerationHandle, Sequence
from trunkline.inference.settings import EngineSettings

NEAR = 1e-3
"""Two logits of the reference that are closer than this may change places."""

CLOSE = 1e-4
"""Share of the largest logit by which ours may be off from the reference."""

ROUNDING = 4
"""Where the reference itself is off by more, compared with float64: how many times that."""


@dataclass
class Drawn:
    """What one sequence drew, and the logits that it drew from, ``[vocabulary]`` each."""

    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)


class Driven:
    """An engine that goes on only when it is told to, on the thread of the test."""

    def __init__(self, base: Base, **settings: Any) -> None:
        self.engine = Engine(base, EngineSettings(**settings))
        self.engine._thread = threading.current_thread()
        self.drawn: dict[tuple[GenerationHandle, int], Drawn] = {}
        self._choose = self.engine._stepper._choose
        self.engine._stepper._choose = self._watched  # type: ignore[method-assign]

    def __enter__(self) -> Driven:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.engine.close()

    def ask(self, artifact: Any = None, text: str = "a goat", **asked: Any) -> GenerationHandle:
        """Submit a request; the bare base is asked without any template."""
        return self.engine.submit(work_for(artifact, text, **asked))

    def step(self) -> bool:
        """Whether there was anything to compute."""
        with self.engine._changed:
            parts = self.engine._next()
        if parts:
            self.engine._step(parts)
        return bool(parts)

    def go(self) -> None:
        """Step, or wait a moment for an adapter that is being read."""
        if not self.step():
            threading.Event().wait(0.001)

    def finish(self, *handles: GenerationHandle, most: int = 5000) -> None:
        """Go on until these have ended; without any, all that there are."""
        for _ in range(most):
            if all(one.ended for one in handles) if handles else not self.engine._open:
                return
            self.go()
        raise AssertionError(f"requests were still open after {most} steps")

    def answers(self, handles: Listed[GenerationHandle]) -> list[Answer]:
        """Of these requests, after all that is needed for them."""
        self.finish()
        return [handle.answer(0) for handle in handles]

    def error(self, handle: GenerationHandle) -> TrunklineError:
        """What a request ended with."""
        try:
            answer = handle.answer(0)
        except TrunklineError as error:
            return error
        raise AssertionError(f"it was answered: {answer}")

    def ids(self, handle: GenerationHandle, index: int = 0) -> list[int]:
        """Tokens that were drawn for a request so far."""
        found = self.drawn.get((handle, index))
        return found.ids if found else []

    def assert_nothing_is_held(self) -> None:
        """No row, block or adapter is taken by anybody."""
        state = self.engine.state()
        assert (state.running, state.waiting, state.kv_tokens_used) == (0, 0, 0)
        assert [info.in_use for info in self.engine.pool.residents() if info.in_use] == []
        assert self.engine._waiting._running == {}
        blocks = self.engine._blocks
        assert blocks.available == blocks.total
        assert set(blocks._holders) == {0}

    def _watched(self, sequences: list[Sequence], logits: torch.Tensor) -> Any:
        chosen = self._choose(sequences, logits)
        for row, one in enumerate(sequences):
            key = (one.asked.handle, one.index)
            drawn = self.drawn.setdefault(key, Drawn(one.asked.prompt))
            drawn.ids.append(chosen.ids[row])
            drawn.logits.append(logits[row].clone())
        return chosen


def work_for(artifact: Any = None, text: str = "a goat", **asked: Any) -> ResolvedRequest:
    """A request resolved to an artifact; for the bare base the text is the prompt."""
    if artifact is None:
        return ResolvedRequest(Request(None, text, raw="messages" not in asked, **asked))
    name = f"toy/{artifact.folder.name}@1"
    return ResolvedRequest(Request(f"toy/{artifact.folder.name}", text, **asked), artifact, name)


def true_logits(model: Any, prompt: Listed[int], ids: Listed[int]) -> torch.Tensor:
    """What plain PEFT draws each of ``ids`` from, ``[ids, vocabulary]``, in one forward pass."""
    read = torch.tensor([[*prompt, *ids[:-1]]])
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=read, use_cache=False).logits[0, len(prompt) - 1 :]
    return logits.float()


def true_chances(model: Any, prompt: Listed[int]) -> torch.Tensor:
    """A head's outputs of plain PEFT for a prompt, ``[outputs]``."""
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([list(prompt)])).logits[0]
    return logits.float()


def count_ties(model: Any, drawn: Drawn, *, ends: frozenset[int], limit: int) -> int:
    """How often a greedy answer took the reference's second best, those being nearly equal.

    Each token is compared with what the reference takes after the same tokens, so an answer
    without ties is the reference's own, token for token.

    Raises:
        AssertionError: a token that is not the reference's, logits that are not, or an answer
            that goes on after its end or stops before.
    """
    truth = true_logits(model, drawn.prompt, drawn.ids)
    assert_close(torch.stack(drawn.logits), truth, model, true_logits, drawn.prompt, drawn.ids)
    ties = 0
    for step, (token, theirs) in enumerate(zip(drawn.ids, truth, strict=True)):
        if token != int(theirs.argmax()):
            best, second = theirs.topk(2).values.tolist()
            assert best - second <= NEAR, f"step {step}: {token} is not {int(theirs.argmax())}"
            ties += 1
    assert not ends.intersection(drawn.ids[:-1]), "it goes on after its end"
    assert drawn.ids[-1] in ends or len(drawn.ids) == limit, "it stops before its end"
    return ties


def assert_close(
    ours: torch.Tensor,
    theirs: torch.Tensor,
    model: Any,
    compute: Callable[..., torch.Tensor],
    *asked: Any,
) -> None:
    """Compare outputs, ``[steps, outputs]``, with those of the reference.

    A random network may make much of the last digit: where ours differ, the reference is computed
    in float64 too, and ours may be off from that by a few times what the reference is.
    """
    sizes = theirs.abs().amax(-1).clamp(min=1.0)
    if bool(((ours - theirs).abs().amax(-1) <= CLOSE * sizes).all()):
        return
    exact = compute(copy.deepcopy(model).double(), *asked)
    allowed = torch.maximum(CLOSE * sizes, ROUNDING * (theirs - exact).abs().amax(-1))
    off = (ours - exact).abs().amax(-1)
    assert bool((off <= allowed).all()), f"off by {off.tolist()}, allowed {allowed.tolist()}"

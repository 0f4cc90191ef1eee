"""One request while it is answered: what its sequences share, and what it comes to.

Owns: the answer and the account made of them. Must not know: threads, batches, memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trunkline.inference.handle import GenerationHandle, Served
from trunkline.inference.request import Answer, Choice
from trunkline.tasks import AnyTask, GenerationTask

if TYPE_CHECKING:
    import torch

    from trunkline.inference.sequence import Sequence


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

    def served(self, outcome: str) -> Served:
        """Its account, as of now."""
        now, first = time.monotonic(), self.first_token
        return Served(
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

"""One answer being written: its tokens, its place in memory, its words.

Owns: the state of a sequence between two steps. Must not know: threads, other sequences.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from trunkline.inference.detokenizer import PART, IncrementalDetokenizer
from trunkline.inference.kv_cache import BLOCK, Lease
from trunkline.inference.request import Choice, Piece, TokenScore
from trunkline.inference.request_state import RequestState
from trunkline.inference.sampling import SamplingParams
from trunkline.lora.pool import Resident
from trunkline.tasks import GenerationTask


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

    def add(self, token: int, score: TokenScore | None) -> Piece | None:
        """Take a drawn token; what can be told of the text by now."""
        assert self._wording is not None
        self.tokens.append(token)
        before = 0 if score is None else self._wording.characters
        text = self._wording.add(token)
        if score is not None:
            whole = PART not in score.token
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
        return Piece(self.index, text, scores, self.finish)

    def choice(self) -> Choice:
        """What it has come to."""
        assert self._wording is not None
        assert self.finish is not None
        return Choice(
            self.index, self._wording.text, self.finish, self.new_tokens, tuple(self.scores)
        )

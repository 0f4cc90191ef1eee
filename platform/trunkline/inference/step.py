"""One forward pass over whatever is running: many adapters, many lengths, one trunk.

Owns: laying tokens out, running the model's backbone over them, and reading heads. Must not know:
queues, threads, tickets.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trunkline.inference.attention import Chunk, Layout, attending
from trunkline.inference.kv_cache import KVCache
from trunkline.inference.request_state import Sequence
from trunkline.inference.sampling import BrokenLogits, SampledTokens, choose
from trunkline.lora.pool import AdapterPool
from trunkline.lora.routing import Pages, Routing, Span

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Part:
    """Some pending tokens of a sequence, from its first uncomputed one."""

    sequence: Sequence
    tokens: int

    @property
    def whole(self) -> bool:
        """Whether nothing is pending after it, so that its last hidden state is wanted."""
        return self.tokens == self.sequence.pending


@dataclass(frozen=True, slots=True)
class Result:
    """What a step gave: drawn tokens, heads' outputs ``[outputs]``, and rows that broke."""

    drawn: list[tuple[Sequence, int, float | None, tuple[tuple[int, float], ...]]]
    outputs: list[tuple[Sequence, torch.Tensor]]
    broken: list[tuple[Sequence, BrokenLogits]]


def plan(
    running: Listed[Sequence],
    chunk_tokens: int,
    served: Callable[[Sequence], float] = lambda _: 0.0,
) -> list[Part]:
    """What of the running sequences is computed next.

    Every sequence that is being written gets its token. Prompts share ``chunk_tokens``: first those
    whose adapter was ``served`` least, of equals those that came first.
    """
    parts = [Part(one, 1) for one in running if one.pending == 1]
    left = chunk_tokens
    for one in sorted((one for one in running if one.pending > 1), key=served):
        parts.append(Part(one, min(one.pending, left)))
        left -= parts[-1].tokens
        if not left:
            break
    return parts


class Stepper:
    """The trunk with its pool of keys and values, and the adapter pool beside it."""

    def __init__(self, model: Any, pool: AdapterPool, kv_tokens: int) -> None:
        self.model = model
        self.pool = pool
        self.kv_cache = KVCache(model, kv_tokens)
        self._backbone = getattr(model, model.base_model_prefix)
        self._head = model.get_output_embeddings()
        self._device = next(model.parameters()).device
        self._routing: tuple[Any, Routing] = (None, Routing())

    def run(self, parts: Listed[Part]) -> Result:
        """Compute the parts; their sequences' ``computed`` advances."""
        import torch

        rows, chunks = _ordered(parts)
        ordered = rows + chunks
        with torch.inference_mode():
            ids, positions, places = self._flat(ordered)
            layout = self._layout(rows, chunks, places)
            with self.pool.route(self._route(rows, chunks)), attending(self.model, layout):
                hidden = self._backbone(
                    input_ids=ids[None], position_ids=positions[None], use_cache=False
                ).last_hidden_state[0]
            ends = np.cumsum([part.tokens for part in ordered]) - 1
            for part in ordered:
                part.sequence.computed += part.tokens
            return self._read(ordered, ends, hidden)

    def _read(self, ordered: list[Part], ends: Any, hidden: torch.Tensor) -> Result:
        """Draw tokens, or apply heads, where a sequence has nothing pending any more."""
        import torch

        done = [
            (part.sequence, int(end))
            for part, end in zip(ordered, ends, strict=True)
            if part.sequence.pending == 0
        ]
        outputs: list[tuple[Sequence, torch.Tensor]] = []
        writing: list[tuple[Sequence, int]] = []
        for sequence, end in done:
            if sequence.generates:
                writing.append((sequence, end))
            else:
                assert sequence.resident is not None
                assert sequence.resident.head is not None
                outputs.append((sequence, sequence.resident.head @ hidden[end].float()))
        drawn, broken = self._draw(writing, hidden)
        if outputs:
            finite = torch.stack([output.isfinite().all() for _, output in outputs]).tolist()
            bad = [one for (one, _), good in zip(outputs, finite, strict=True) if not good]
            broken += [(one, BrokenLogits((0,))) for one in bad]
            outputs = [pair for pair in outputs if pair[0] not in bad]
        return Result(drawn, outputs, broken)

    def _draw(
        self, writing: list[tuple[Sequence, int]], hidden: torch.Tensor
    ) -> tuple[list[Any], list[tuple[Sequence, BrokenLogits]]]:
        broken: list[tuple[Sequence, BrokenLogits]] = []
        if not writing:
            return [], broken
        ends = [end for _, end in writing]
        chosen_rows = hidden if ends == list(range(len(hidden))) else hidden[ends]
        logits = self._head(chosen_rows).float()
        try:
            chosen = self._choose([one for one, _ in writing], logits)
        except BrokenLogits as error:
            bad = set(error.rows)
            broken = [(writing[row][0], error) for row in sorted(bad)]
            good = [row for row in range(len(writing)) if row not in bad]
            writing = [writing[row] for row in good]
            if not writing:
                return [], broken
            chosen = self._choose([one for one, _ in writing], logits[good])
        drawn = [
            (one, chosen.ids[row], chosen.logprobs[row], chosen.tops[row])
            for row, (one, _) in enumerate(writing)
        ]
        return drawn, broken

    @staticmethod
    def _choose(sequences: list[Sequence], logits: torch.Tensor) -> SampledTokens:
        ways = [one.choosing for one in sequences]
        return choose(logits, ways, [one.new_tokens for one in sequences])

    def _flat(self, parts: list[Part]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, positions and places in the pool of all tokens, ``[tokens]`` each."""
        import torch

        ids: list[int] = []
        positions: list[Any] = []
        places: list[Any] = []
        for part in parts:
            one, start = part.sequence, part.sequence.computed
            ids += one.tokens[start : start + part.tokens]
            positions.append(np.arange(start, start + part.tokens))
            places.append(one.places[start : start + part.tokens])
        return (
            torch.tensor(ids, device=self._device),
            torch.from_numpy(np.concatenate(positions)).to(self._device),
            torch.from_numpy(np.concatenate(places)).to(self._device),
        )

    def _layout(self, rows: list[Part], chunks: list[Part], places: torch.Tensor) -> Layout:
        import torch

        context = mask = None
        if rows:
            lengths = np.array([part.sequence.computed + 1 for part in rows])
            longest = int(lengths.max())
            padded = np.empty((len(rows), longest), dtype=np.int64)
            for row, part in enumerate(rows):
                own = part.sequence.places
                padded[row, : lengths[row]] = own[: lengths[row]]
                # Hidden places weigh nothing, but nothing times another's NaN is NaN.
                padded[row, lengths[row] :] = own[0]
            context = torch.from_numpy(padded).to(self._device)
            if int(lengths.min()) < longest:
                hidden = torch.from_numpy(np.arange(longest)[None] >= lengths[:, None])
                mask = torch.zeros(hidden.shape, dtype=self.kv_cache.layers[0].dtype)
                mask = mask.masked_fill_(hidden, float("-inf"))[:, None, None].to(self._device)
        laid: list[Chunk] = []
        at = len(rows)
        for part in chunks:
            laid.append(self._chunk(part, at))
            at += part.tokens
        return Layout(self.kv_cache.layers, places, len(rows), context, mask, tuple(laid))

    def _chunk(self, part: Part, at: int) -> Chunk:
        import torch

        start, stop = part.sequence.computed, part.sequence.computed + part.tokens
        if start == 0:
            return Chunk(at, at + part.tokens, None, None)
        context = torch.from_numpy(part.sequence.places[:stop]).to(self._device)
        later = torch.ones(part.tokens, stop, dtype=torch.bool).triu(start + 1)
        mask = torch.zeros(part.tokens, stop, dtype=self.kv_cache.layers[0].dtype)
        mask = mask.masked_fill_(later, float("-inf")).to(self._device)
        return Chunk(at, at + part.tokens, context, mask)

    def _route(self, rows: list[Part], chunks: list[Part]) -> Routing:
        """Which pages each token goes through; kept while the batch stays the same."""
        row_pages: list[Pages] = [part.sequence.pages for part in rows if part.sequence.pages]
        spans: list[Span] = []
        at = len(rows)
        for part in chunks:
            pages, stop = part.sequence.pages, at + part.tokens
            if spans and spans[-1].pages == pages and spans[-1].stop == at:
                spans[-1] = Span(spans[-1].start, stop, pages)
            else:
                spans.append(Span(at, stop, pages))
            at = stop
        key = (tuple(row_pages), tuple(spans))
        if self._routing[0] != key:
            self._routing = (key, Routing(row_pages, spans))
        return self._routing[1]


def _ordered(parts: Listed[Part]) -> tuple[list[Part], list[Part]]:
    """Single tokens, those of adapters first; then chunks, those of one adapter together."""
    rows = [part for part in parts if part.tokens == 1]
    rows.sort(key=lambda part: not part.sequence.pages)
    chunks = [part for part in parts if part.tokens > 1]
    chunks.sort(key=lambda part: part.sequence.pages)
    return rows, chunks

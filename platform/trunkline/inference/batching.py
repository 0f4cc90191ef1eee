"""Batch the tokens of all running sequences into one packed forward pass."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as ListLike
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from trunkline.inference.attention import Chunk, Layout, packed_attention
from trunkline.inference.embedding import EmbeddingTask
from trunkline.inference.kv_cache import KVCache
from trunkline.inference.request_state import Sequence
from trunkline.inference.sampling import (
    InvalidLogits,
    RawScore,
    SampledTokens,
    Sampler,
    sample,
    score,
)
from trunkline.lora.pool import AdapterPool
from trunkline.lora.routing import Pages, Routing, Span
from trunkline.tasks import TaggingTask

if TYPE_CHECKING:
    import torch

_SCORED_ROWS = 64
"""Tokens of a prompt that are scored at once, which bounds the memory for logits."""


@dataclass(frozen=True, slots=True)
class Part:
    """The next ``tokens`` pending tokens of a sequence."""

    sequence: Sequence
    tokens: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """The results of one step.

    Attributes:
        sampled: sequence, token id, its log probability if requested, and the likeliest tokens
            with their log probabilities.
        head_outputs: ``[outputs]`` float32 for each sequence with a head; for tagging
            ``[tokens, tags]``; for an embedding, the sum of the hidden states, ``[hidden]``.
        failures: sequences with NaN in their output.
        prompt_scores: of tokens of prompts, if requested.
        prefilled: sequences that generate nothing and whose prompt is complete.
    """

    sampled: list[tuple[Sequence, int, float | None, tuple[tuple[int, float], ...]]]
    head_outputs: list[tuple[Sequence, torch.Tensor]]
    failures: list[tuple[Sequence, InvalidLogits]]
    prompt_scores: list[tuple[Sequence, list[RawScore]]] = field(default_factory=list)
    prefilled: list[Sequence] = field(default_factory=list)


class Stepper:
    """Runs packed steps of one model with its KV cache and adapter pool.

    Args:
        model: a causal LM, in eval mode.
        pool: its adapters.
        kv_tokens: capacity of the KV cache.
        sampler: draws the next token of each row.
    """

    def __init__(
        self, model: Any, pool: AdapterPool, kv_tokens: int, sampler: Sampler = sample
    ) -> None:
        self.model = model
        self.pool = pool
        self._sampler = sampler
        self.kv_cache = KVCache(model, kv_tokens)
        self._backbone = getattr(model, model.base_model_prefix)
        self._head = model.get_output_embeddings()
        self._device = next(model.parameters()).device
        self._routing: tuple[Any, Routing] = (None, Routing())

    def run(self, parts: ListLike[Part]) -> StepResult:
        """Compute the parts and advance ``computed`` of their sequences."""
        import torch

        rows, chunks = _ordered(parts)
        ordered = rows + chunks
        with torch.inference_mode():
            ids, positions, slot_mapping = self.flatten(ordered)
            layout = self.build_layout(rows, chunks, slot_mapping)
            routing = self._build_routing(rows, chunks)
            with self.pool.route(routing), packed_attention(self.model, layout):
                hidden = self._backbone(
                    input_ids=ids[None], position_ids=positions[None], use_cache=False
                ).last_hidden_state[0]
            ends = np.cumsum([part.tokens for part in ordered]) - 1
            self._read_all_tokens(ordered, ends, hidden)
            for part in ordered:
                part.sequence.computed += part.tokens
            return self._read(ordered, ends, hidden)

    def _read(self, ordered: list[Part], ends: Any, hidden: torch.Tensor) -> StepResult:
        """Sample or apply heads where nothing is pending; ``hidden [tokens, hidden]``."""
        import torch

        done = [
            (part.sequence, int(end))
            for part, end in zip(ordered, ends, strict=True)
            if part.sequence.pending == 0
        ]
        outputs: list[tuple[Sequence, torch.Tensor]] = []
        generating: list[tuple[Sequence, int]] = []
        prefilled: list[Sequence] = []
        for sequence, end in done:
            if sequence.generates:
                if sequence.state.max_new_tokens:
                    generating.append((sequence, end))
                else:
                    prefilled.append(sequence)
            elif isinstance(sequence.state.task, EmbeddingTask | TaggingTask):
                assert sequence.state.head_output is not None
                outputs.append((sequence, sequence.state.head_output))
            else:
                assert sequence.resident is not None
                assert sequence.resident.head is not None
                outputs.append((sequence, sequence.resident.head(hidden[end])))
        prompt_scores, failures = self._score_prompts(ordered, ends, hidden)
        bad = {sequence for sequence, _ in failures}
        generating = [pair for pair in generating if pair[0] not in bad]
        prefilled = [sequence for sequence in prefilled if sequence not in bad]
        sampled, unsampled = self._sample(generating, hidden)
        failures += unsampled
        if outputs:
            finite = torch.stack([output.isfinite().all() for _, output in outputs]).tolist()
            broken = [one for (one, _), good in zip(outputs, finite, strict=True) if not good]
            failures += [(one, InvalidLogits((0,))) for one in broken]
            outputs = [pair for pair in outputs if pair[0] not in broken]
        return StepResult(sampled, outputs, failures, prompt_scores, prefilled)

    def _read_all_tokens(self, ordered: list[Part], ends: Any, hidden: torch.Tensor) -> None:
        """Pool the parts that are for embeddings, and apply the heads of tagging to each token.

        Called before the tokens are counted.
        """
        import torch

        for part, end in zip(ordered, ends, strict=True):
            sequence, state = part.sequence, part.sequence.state
            own = hidden[end + 1 - part.tokens : end + 1]
            if isinstance(state.task, EmbeddingTask):
                state.head_output = state.task.pool(state.head_output, own, sequence.computed)
            elif isinstance(state.task, TaggingTask):
                assert sequence.resident is not None
                assert sequence.resident.head is not None
                logits = sequence.resident.head(own)
                before = state.head_output
                state.head_output = logits if before is None else torch.cat((before, logits))

    def _score_prompts(
        self, ordered: list[Part], ends: Any, hidden: torch.Tensor
    ) -> tuple[list[tuple[Sequence, list[RawScore]]], list[tuple[Sequence, InvalidLogits]]]:
        """Score the tokens of prompts, each by the hidden state of the token before it."""
        scores: list[tuple[Sequence, list[RawScore]]] = []
        failures: list[tuple[Sequence, InvalidLogits]] = []
        for part, end in zip(ordered, ends, strict=True):
            sequence = part.sequence
            if not sequence.state.scores_prompt or sequence.index > 0:
                continue
            start = sequence.computed - part.tokens
            targets = sequence.state.prompt[start + 1 : sequence.computed + 1]
            if not targets:
                continue
            first = int(end) + 1 - part.tokens
            own = hidden[first : first + len(targets)]
            try:
                scores.append((sequence, self._score(own, targets, sequence)))
            except InvalidLogits as error:
                failures.append((sequence, error))
        return scores, failures

    def _score(
        self, hidden: torch.Tensor, targets: list[int], sequence: Sequence
    ) -> list[RawScore]:
        count = sequence.sampling.logprobs or 0
        scores: list[RawScore] = []
        for at in range(0, len(targets), _SCORED_ROWS):
            logits = self._head(hidden[at : at + _SCORED_ROWS]).float()
            scores += score(logits, targets[at : at + _SCORED_ROWS], count)
        return scores

    def _sample(
        self, generating: list[tuple[Sequence, int]], hidden: torch.Tensor
    ) -> tuple[list[Any], list[tuple[Sequence, InvalidLogits]]]:
        failures: list[tuple[Sequence, InvalidLogits]] = []
        if not generating:
            return [], failures
        ends = [end for _, end in generating]
        rows = hidden if ends == list(range(len(hidden))) else hidden[ends]
        logits = self._head(rows).float()
        try:
            tokens = self._call_sampler([one for one, _ in generating], logits)
        except InvalidLogits as error:
            bad = set(error.rows)
            failures = [(generating[row][0], error) for row in sorted(bad)]
            good = [row for row in range(len(generating)) if row not in bad]
            generating = [generating[row] for row in good]
            if not generating:
                return [], failures
            tokens = self._call_sampler([one for one, _ in generating], logits[good])
        sampled = [
            (one, tokens.ids[row], tokens.logprobs[row], tokens.tops[row])
            for row, (one, _) in enumerate(generating)
        ]
        return sampled, failures

    def _call_sampler(self, sequences: list[Sequence], logits: torch.Tensor) -> SampledTokens:
        params = [one.sampling for one in sequences]
        return self._sampler(logits, params, [one.new_tokens for one in sequences])

    def flatten(self, parts: list[Part]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, positions and KV cache slots of all tokens, ``[tokens]`` each."""
        import torch

        ids: list[int] = []
        positions: list[Any] = []
        slots: list[Any] = []
        for part in parts:
            one, start = part.sequence, part.sequence.computed
            ids += one.tokens[start : start + part.tokens]
            positions.append(np.arange(start, start + part.tokens))
            slots.append(one.slot_mapping[start : start + part.tokens])
        return (
            torch.tensor(ids, device=self._device),
            torch.from_numpy(np.concatenate(positions)).to(self._device),
            torch.from_numpy(np.concatenate(slots)).to(self._device),
        )

    def build_layout(
        self, rows: list[Part], chunks: list[Part], slot_mapping: torch.Tensor
    ) -> Layout:
        """The layout of a step; ``slot_mapping [tokens]`` as :meth:`flatten` returns it."""
        import torch

        context = mask = None
        if rows:
            lengths = np.array([part.sequence.computed + 1 for part in rows])
            longest = int(lengths.max())
            padded = np.empty((len(rows), longest), dtype=np.int64)
            for row, part in enumerate(rows):
                own = part.sequence.slot_mapping
                padded[row, : lengths[row]] = own[: lengths[row]]
                # Padding has weight 0, but 0 times a NaN of another sequence is NaN.
                padded[row, lengths[row] :] = own[0]
            context = torch.from_numpy(padded).to(self._device)
            if int(lengths.min()) < longest:
                padding = torch.from_numpy(np.arange(longest)[None] >= lengths[:, None])
                mask = torch.zeros(padding.shape, dtype=self.kv_cache.layers[0].dtype)
                mask = mask.masked_fill_(padding, float("-inf"))[:, None, None].to(self._device)
        chunk_layouts: list[Chunk] = []
        at = len(rows)
        for part in chunks:
            chunk_layouts.append(self._chunk(part, at))
            at += part.tokens
        return Layout(
            self.kv_cache.layers, slot_mapping, len(rows), context, mask, tuple(chunk_layouts)
        )

    def _chunk(self, part: Part, at: int) -> Chunk:
        import torch

        start, stop = part.sequence.computed, part.sequence.computed + part.tokens
        if start == 0:
            return Chunk(at, at + part.tokens, None, None)
        context = torch.from_numpy(part.sequence.slot_mapping[:stop]).to(self._device)
        later = torch.ones(part.tokens, stop, dtype=torch.bool).triu(start + 1)
        mask = torch.zeros(part.tokens, stop, dtype=self.kv_cache.layers[0].dtype)
        mask = mask.masked_fill_(later, float("-inf")).to(self._device)
        return Chunk(at, at + part.tokens, context, mask)

    def _build_routing(self, rows: list[Part], chunks: list[Part]) -> Routing:
        """Which pages each token uses; reused while the batch stays the same."""
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


def _ordered(parts: ListLike[Part]) -> tuple[list[Part], list[Part]]:
    """Sort single tokens, adapters before the base, and chunks, grouped by adapter."""
    rows = [part for part in parts if part.tokens == 1]
    rows.sort(key=lambda part: not part.sequence.pages)
    chunks = [part for part in parts if part.tokens > 1]
    chunks.sort(key=lambda part: part.sequence.pages)
    return rows, chunks


StepFunction = Callable[[Stepper, ListLike[Part]], StepResult]
"""Computes the parts of a step; :meth:`Stepper.run` by default."""

"""Ranking: an order of candidates for a query, from a linear head with one output.

Each candidate is a prompt of its own: the query and the candidate in the template. The score is the
head's output on the prompt's last token; the loss compares the candidates of one query.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from trunkline.contracts import LossContext, Row, Target
from trunkline.data.encode import Prompt
from trunkline.tasks.batches import pad

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class RankingTask:
    """The candidates of a query, the best first."""

    kind: ClassVar[str] = "ranking"
    labels: ClassVar[tuple[str, ...]] = ()
    head_size: ClassVar[int] = 1

    def example(self, prompts: Sequence[Prompt], row: Row, tokenizer: Any) -> dict[str, Any]:
        """Encode one training row: ``input_ids`` are those of all candidates, one after another."""
        return {
            "input_ids": [token for prompt in prompts for token in prompt.ids],
            "sizes": [len(prompt.ids) for prompt in prompts],
            "target": row.candidates.index(str(row.target)),
            "candidates": list(row.candidates),
        }

    def collate(self, examples: Sequence[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
        """Pad the prompts of all candidates into a batch.

        ``input_ids`` and ``attention_mask`` are ``[prompts, tokens]``, ``sizes`` the number of
        prompts of each row and ``targets`` the index of the relevant one, both ``[batch]`` int64.
        """
        import torch

        batch = pad([prompt for one in examples for prompt in candidate_prompts(one)], pad_id)
        batch["sizes"] = torch.tensor([len(example["sizes"]) for example in examples])
        batch["targets"] = torch.tensor([example["target"] for example in examples])
        return batch

    def outputs(
        self, model: Any, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores ``[batch, candidates]`` in float32, -inf as padding, and targets ``[batch]``."""
        import torch

        result = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        rows = result.logits.float().squeeze(-1).split(batch["sizes"].tolist())
        scores = torch.nn.utils.rnn.pad_sequence(list(rows), True, float("-inf"))
        return scores, batch["targets"]

    def loss_context(self, rows: Sequence[Row]) -> LossContext:
        """Nothing but the number of rows: a loss for ranking sees the scores only."""
        return LossContext(rows=len(rows))

    def decode(
        self, outputs: torch.Tensor, examples: Sequence[dict[str, Any]] = ()
    ) -> list[tuple[Target, tuple[float, ...]]]:
        """Scores ``[batch, candidates]`` → candidates and their probabilities, the best first.

        Args:
            examples: with ``candidates``, one for each row.
        """
        results: list[tuple[Target, tuple[float, ...]]] = []
        for scores, example in zip(outputs.float(), examples, strict=True):
            candidates = example["candidates"]
            order, probabilities = ranked(scores[: len(candidates)].tolist())
            results.append((tuple(candidates[index] for index in order), probabilities))
        return results

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}


def candidate_prompts(example: Mapping[str, Any]) -> list[list[int]]:
    """The token ids of each candidate's prompt."""
    ids, ends = example["input_ids"], accumulate(example["sizes"], initial=0)
    return [ids[start:end] for start, end in pairwise(ends)]


def ranked(scores: Sequence[float]) -> tuple[list[int], tuple[float, ...]]:
    """Indices by falling score, with the softmax of the scores; equal ones keep their order."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    largest = max(scores)
    weights = [math.exp(score - largest) for score in scores]
    total = sum(weights)
    return order, tuple(weights[index] / total for index in order)

"""Generation: the base's own head; the loss covers the answer's tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trunkline.contracts import LossContext, Row
from trunkline.data.encode import Prompt, encode_answer
from trunkline.tasks.batches import pad

if TYPE_CHECKING:
    import torch

IGNORED = -100


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """A generated text.

    Attributes:
        max_new_tokens: the longest answer, unless a request sets its own limit.
    """

    kind: ClassVar[str] = "generation"
    max_new_tokens: int

    labels: ClassVar[tuple[str, ...]] = ()
    head_size: ClassVar[None] = None

    def example(self, prompts: Sequence[Prompt], row: Row, tokenizer: Any) -> dict[str, Any]:
        """Encode one training row; ``answer`` is the number of the answer's tokens.

        ``learned`` is begin and end of earlier answers that carry loss too, if there are any.
        """
        answer = encode_answer(str(row.target), tokenizer)
        example = {"input_ids": prompts[0].ids + answer, "answer": len(answer)}
        return example | ({"learned": prompts[0].learned} if prompts[0].learned else {})

    def collate(self, examples: Sequence[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
        """Pad on the left, so that all answers end in the last column.

        ``targets`` is ``[batch, longest]``, where the longest row begins at its first answer;
        :data:`IGNORED` at what is no answer.
        """
        import torch

        batch = pad([example["input_ids"] for example in examples], pad_id, left=True)
        targets = torch.full_like(batch["input_ids"], IGNORED)
        longest = 0
        for row, example in enumerate(examples):
            length = len(example["input_ids"])
            for begin, end in (*example.get("learned", ()), (length - example["answer"], length)):
                span = slice(begin - length, (end - length) or None)
                targets[row, span] = batch["input_ids"][row, span]
                longest = max(longest, length - begin)
        batch["targets"] = targets[:, -longest:]
        return batch

    def outputs(
        self, model: Any, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``[tokens, vocabulary]`` and ids ``[tokens]`` at the answers' tokens.

        Logits are computed only there: over all prompt tokens they would cost more than anything
        else in the step.
        """
        targets = batch["targets"]
        result = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            logits_to_keep=targets.shape[1] + 1,
        )
        in_answer = targets != IGNORED
        return result.logits[:, :-1][in_answer].float(), targets[in_answer]

    def loss_context(self, rows: Sequence[Row]) -> LossContext:
        """Nothing: a loss for generation sees the logits only."""
        return LossContext(rows=len(rows))

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "max_new_tokens": self.max_new_tokens}

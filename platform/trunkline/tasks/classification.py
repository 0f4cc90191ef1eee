"""Classification: a linear head on the last token's hidden state, with one output per label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trunkline.contracts import LossContext, Row, Target
from trunkline.tasks.batches import pad

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class ClassificationTask:
    """One of several labels.

    Attributes:
        labels: in the order of the head's outputs.
    """

    kind: ClassVar[str] = "classification"
    labels: tuple[str, ...]

    @property
    def head_size(self) -> int:
        """Outputs of the head."""
        return len(self.labels)

    def example(self, prompt: list[int], row: Row, tokenizer: Any) -> dict[str, Any]:
        """Encode one training row."""
        return {"input_ids": prompt, "target": self.labels.index(str(row.target))}

    def collate(self, examples: Sequence[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
        """Pad examples into a batch; ``targets`` is ``[batch]`` int64 label indices."""
        import torch

        batch = pad([example["input_ids"] for example in examples], pad_id)
        batch["targets"] = torch.tensor([example["target"] for example in examples])
        return batch

    def outputs(
        self, model: Any, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``[batch, labels]`` in float32 and label indices ``[batch]``."""
        result = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return result.logits.float(), batch["targets"]

    def loss_context(self, rows: Sequence[Row]) -> LossContext:
        """The labels and how often each occurs in the training rows."""
        counts = Counter(str(row.target) for row in rows)
        return LossContext(labels=self.labels, counts=counts)

    def decode(self, outputs: torch.Tensor) -> list[tuple[Target, tuple[float, ...]]]:
        """Logits ``[batch, labels]`` → the most likely label and all probabilities of each row."""
        probabilities = outputs.float().softmax(-1)
        best = probabilities.argmax(-1).tolist()
        return [
            (self.labels[index], tuple(row))
            for index, row in zip(best, probabilities.tolist(), strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "labels": list(self.labels)}

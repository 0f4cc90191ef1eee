"""Multilabel: any number of labels, from a linear head with one output per label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trunkline.contracts import LossContext, Row, Target
from trunkline.data.encode import Prompt
from trunkline.data.targets import count_labels, labels_in
from trunkline.tasks.batches import inputs_of, model_inputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class MultilabelTask:
    """Every label whose probability reaches the threshold.

    Attributes:
        labels: in the order of the head's outputs.
        threshold: fitted on the validation rows, or 0.5.
    """

    kind: ClassVar[str] = "multilabel"
    labels: tuple[str, ...]
    threshold: float = 0.5

    @property
    def head_size(self) -> int:
        """Outputs of the head."""
        return len(self.labels)

    def example(self, prompts: Sequence[Prompt], row: Row, tokenizer: Any) -> dict[str, Any]:
        """Encode one training row."""
        return {"input_ids": prompts[0].ids, "target": self.encode_target(row)}

    def encode_target(self, row: Row) -> list[int]:
        """The indices of the row's labels."""
        own = set(labels_in(row.target))
        return [index for index, label in enumerate(self.labels) if label in own]

    def collate(self, examples: Sequence[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
        """Put examples into a batch; ``targets`` is ``[batch, labels]`` float32, 0 or 1."""
        import torch

        batch = inputs_of(examples, pad_id)
        batch["targets"] = torch.zeros(len(examples), len(self.labels))
        for index, example in enumerate(examples):
            batch["targets"][index, example["target"]] = 1.0
        return batch

    def outputs(
        self, model: Any, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits in float32 and targets, both ``[batch, labels]``."""
        result = model(**model_inputs(batch))
        return result.logits.float(), batch["targets"]

    def loss_context(self, rows: Sequence[Row]) -> LossContext:
        """The labels and how many of the training rows have each."""
        counts = count_labels(rows, self.labels)
        return LossContext(labels=self.labels, counts=counts, rows=len(rows))

    def decode(
        self, outputs: torch.Tensor, examples: Sequence[dict[str, Any]] = ()
    ) -> list[tuple[Target, tuple[float, ...]]]:
        """Logits ``[batch, labels]`` → the labels and all probabilities of each row."""
        return [
            (self.chosen(probabilities), tuple(probabilities))
            for probabilities in outputs.float().sigmoid().tolist()
        ]

    def chosen(self, probabilities: Sequence[float]) -> tuple[str, ...]:
        """The labels that reach the threshold, in alphabetical order like a row's target."""
        pairs = zip(self.labels, probabilities, strict=True)
        return tuple(sorted(label for label, value in pairs if value >= self.threshold))

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "labels": list(self.labels), "threshold": self.threshold}

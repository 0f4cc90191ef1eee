"""Classification: a linear head on the last token's hidden state, with one output per label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from trunkline.contracts import LossContext, Row, Target
from trunkline.data.encode import Prompt
from trunkline.errors import UsageError
from trunkline.tasks.batches import inputs_of, model_inputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Calibration:
    """How the probabilities were calibrated, on validation rows.

    Attributes:
        temperature: the head's weights are divided by it already.
        thresholds: wanted precision in percent → the lowest probability of an answer.
    """

    temperature: float
    thresholds: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class ClassificationTask:
    """One of several labels.

    Attributes:
        labels: in the order of the head's outputs.
        calibration: None if the probabilities are as they were trained.
    """

    kind: ClassVar[str] = "classification"
    labels: tuple[str, ...]
    calibration: Calibration | None = None

    def threshold(self, precision: float) -> float:
        """The lowest probability of an answer, for a wanted precision.

        Raises:
            UsageError: the validation rows have shown no threshold for it.
        """
        known = {} if self.calibration is None else self.calibration.thresholds
        percent = str(round(100 * precision))
        if percent in known and abs(100 * precision - int(percent)) < 1e-6:
            return known[percent]
        if not known:
            raise UsageError(
                "This adapter has no thresholds to abstain by.",
                "Train it with calibrate=true and at least 50 validation rows.",
            )
        shown = ", ".join(f"{int(key) / 100:.2f}" for key in known)
        raise UsageError(
            f"This adapter has no threshold for a precision of {precision:g}.",
            f"Its validation rows reach: {shown}.",
        )

    @property
    def head_size(self) -> int:
        """Outputs of the head."""
        return len(self.labels)

    def example(self, prompts: Sequence[Prompt], row: Row, tokenizer: Any) -> dict[str, Any]:
        """Encode one training row."""
        return {"input_ids": prompts[0].ids, "target": self.encode_target(row)}

    def encode_target(self, row: Row) -> int:
        """The index of the row's label."""
        return self.labels.index(str(row.target))

    def collate(self, examples: Sequence[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
        """Put examples into a batch; ``targets`` is ``[batch]`` int64 label indices."""
        import torch

        batch = inputs_of(examples, pad_id)
        batch["targets"] = torch.tensor([example["target"] for example in examples])
        return batch

    def outputs(
        self, model: Any, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``[batch, labels]`` in float32 and label indices ``[batch]``."""
        result = model(**model_inputs(batch))
        return result.logits.float(), batch["targets"]

    def loss_context(self, rows: Sequence[Row]) -> LossContext:
        """The labels and how often each occurs in the training rows."""
        counts = Counter(str(row.target) for row in rows)
        return LossContext(labels=self.labels, counts=counts, rows=len(rows))

    def decode(
        self, outputs: torch.Tensor, examples: Sequence[dict[str, Any]] = ()
    ) -> list[tuple[Target, tuple[float, ...]]]:
        """Logits ``[batch, labels]`` → the most likely label and all probabilities of each row."""
        probabilities = outputs.float().softmax(-1)
        best = probabilities.argmax(-1).tolist()
        return [
            (self.labels[index], tuple(row))
            for index, row in zip(best, probabilities.tolist(), strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        stored: dict[str, Any] = {"kind": self.kind, "labels": list(self.labels)}
        if self.calibration is not None:
            stored["calibration"] = {
                "temperature": self.calibration.temperature,
                "thresholds": dict(self.calibration.thresholds),
            }
        return stored

"""Regression: a linear head with one output on the last token's hidden state, standardized."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trunkline.contracts import LossContext, Row, Target
from trunkline.data.encode import Prompt
from trunkline.data.targets import number
from trunkline.tasks.batches import inputs_of, model_inputs

if TYPE_CHECKING:
    import torch

_MAX_EXPONENT = 300.0  # the square of the number is finite too


@dataclass(frozen=True, slots=True)
class RegressionTask:
    """A number; the head's output is ``(f(y) - mean) / deviation``.

    Attributes:
        scale: ``linear``, or ``log``: f is the natural logarithm.
        mean, deviation: mean and population standard deviation of ``f(y)`` on the training rows.
        unit: of y.
    """

    kind: ClassVar[str] = "regression"
    scale: str
    mean: float
    deviation: float
    unit: str

    labels: ClassVar[tuple[str, ...]] = ()
    head_size: ClassVar[int] = 1

    @classmethod
    def fitted(cls, targets: Sequence[float], *, scale: str, unit: str) -> RegressionTask:
        """Compute mean and standard deviation from the training targets."""
        values = [math.log(target) for target in targets] if scale == "log" else list(targets)
        deviation = statistics.pstdev(values) if len(values) > 1 else 1.0
        return cls(scale, statistics.fmean(values), deviation or 1.0, unit)

    def scaled(self, target: float) -> float:
        """A target in the unit → the head's scale."""
        value = math.log(target) if self.scale == "log" else target
        return (value - self.mean) / self.deviation

    def unscaled(self, output: float) -> float:
        """An output of the head → a number in the unit."""
        value = output * self.deviation + self.mean
        return math.exp(min(value, _MAX_EXPONENT)) if self.scale == "log" else value

    def example(self, prompts: Sequence[Prompt], row: Row, tokenizer: Any) -> dict[str, Any]:
        """Encode one training row."""
        return {"input_ids": prompts[0].ids, "target": self.encode_target(row)}

    def encode_target(self, row: Row) -> float:
        """The row's number on the head's scale."""
        return self.scaled(number(row.target))

    def collate(self, examples: Sequence[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
        """Put examples into a batch; ``targets`` is ``[batch]`` float32, standardized."""
        import torch

        batch = inputs_of(examples, pad_id)
        targets = [example["target"] for example in examples]
        batch["targets"] = torch.tensor(targets, dtype=torch.float32)
        return batch

    def outputs(
        self, model: Any, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions and targets, both ``[batch]`` float32 on the standardized scale."""
        result = model(**model_inputs(batch))
        return result.logits.float().squeeze(-1), batch["targets"]

    def loss_context(self, rows: Sequence[Row]) -> LossContext:
        """Nothing: a loss for regression sees the outputs only."""
        return LossContext(rows=len(rows))

    def decode(
        self, outputs: torch.Tensor, examples: Sequence[dict[str, Any]] = ()
    ) -> list[tuple[Target, None]]:
        """Standardized outputs ``[batch]`` or ``[batch, 1]`` → numbers in the unit."""
        return [(self.unscaled(value), None) for value in outputs.float().reshape(-1).tolist()]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}

"""The training loss and the validation score, with errors that name the plugin's function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trunkline.contracts import LossFunction, LossSpec, MetricSpec, Row, Scored
from trunkline.errors import PluginCallError, TrunklineError, plugin_call
from trunkline.inference.forward import generate_texts
from trunkline.tasks import AnyTask, GenerationTask
from trunkline.tasks.batches import by_length
from trunkline.training.job import EncodedRows, prompt_of

if TYPE_CHECKING:
    import torch

VALIDATION_GENERATIONS = 128
"""Largest number of validation rows for which answers are generated between steps."""


def build_loss(spec: LossSpec, task: AnyTask, train: Sequence[Row]) -> LossFunction:
    """Build a recipe's loss function.

    Raises:
        PluginCallError: the loss can't be built. The returned function raises it too, if the
            plugin's function raises or returns something else than a differentiable scalar.
    """
    name, hint = spec.name, "See the LossSpec contract in docs/hooks.md."
    with plugin_call(f"Building the loss {name}", hint):
        loss = spec.build(task.loss_context(train))
    if not callable(loss):
        raise PluginCallError(
            f"The loss {name} can't be called: build gave {type(loss).__name__}.", hint
        )

    import torch

    def checked(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        try:
            value = loss(outputs, targets)
        except (TrunklineError, torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise PluginCallError.raised(f"The loss {name}", error, hint) from error
        if not isinstance(value, torch.Tensor) or value.dim() != 0:
            shape = f"a tensor of shape {tuple(value.shape)}" if hasattr(value, "shape") else value
            raise PluginCallError(f"The loss {name} returned {shape}, not a scalar tensor.", hint)
        if outputs.requires_grad and not value.requires_grad:
            raise PluginCallError(
                f"The loss {name} returned a number that doesn't depend on the outputs.", hint
            )
        return value

    return checked


def make_validator(
    metric: MetricSpec, rows: Sequence[Row], encoded: EncodedRows, task: AnyTask, tokenizer: Any
) -> Callable[[Any], float]:
    """A function that computes the deciding metric of a model on the validation rows.

    It raises :class:`PluginCallError` if the metric raises or returns no finite number.
    """

    def score(predictions: Sequence[Any], targets: Sequence[Any]) -> float:
        scored = Scored(targets=targets, predictions=predictions, labels=task.labels)
        hint = "See the MetricSpec contract in docs/hooks.md."
        with plugin_call(f"The metric {metric.name}", hint):
            value = float(metric.compute(scored))
        if not math.isfinite(value):
            raise PluginCallError(
                f"The metric {metric.name} returned {value} on the validation rows, so it can't "
                "select a checkpoint.",
                hint,
            )
        return value

    if isinstance(task, GenerationTask):
        indices = range(0, len(rows), max(1, -(-len(rows) // VALIDATION_GENERATIONS)))
        prompts = [prompt_of(encoded.examples[index]) for index in indices]
        answers = [rows[index].target for index in indices]

        def generate(model: Any) -> float:
            texts = generate_texts(model, tokenizer, prompts, task.max_new_tokens)
            return score(texts, answers)

        return generate

    def predict(model: Any) -> float:
        import torch

        predictions: list[Any] = [None] * len(rows)
        lengths = [len(example["input_ids"]) for example in encoded.examples]
        with torch.inference_mode():
            for batch in by_length(lengths, 64):
                examples = [encoded.examples[index] for index in batch]
                inputs = task.collate(examples, tokenizer.pad_token_id)
                inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
                outputs, _ = task.outputs(model, inputs)
                for index, (value, _) in zip(batch, task.decode(outputs), strict=True):
                    predictions[index] = value
        return score(predictions, [row.target for row in rows])

    return predict

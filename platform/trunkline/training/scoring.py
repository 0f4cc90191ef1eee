"""The training loss, the validation score, and the selection of the best validation.

Errors name the plugin's function. The deciding metric comes first; equal scores are compared by the
validation loss. Early stopping is decided from the trainer's history, which every checkpoint
contains, so a resumed training decides as an uninterrupted one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from trunkline.contracts import LossFunction, MetricSpec, Row, Scored
from trunkline.errors import PluginCallError, TrunklineError, plugin_call, plugin_ends_refused
from trunkline.evaluation.intervals import number_of
from trunkline.inference.forward import generate_texts
from trunkline.process import state_kept
from trunkline.tasks import AnyTask, GenerationTask
from trunkline.tasks.batches import by_length, size_of, within_tokens
from trunkline.training.job import EncodedRows, TrainingJob, prompt_of

if TYPE_CHECKING:
    import torch


VALIDATION_GENERATIONS = 128
"""Largest number of validation rows for which answers are generated between steps."""


VALIDATION_TOKENS = 4096
"""Tokens of a batch of validation rows, padding included."""


class Validation(NamedTuple):
    """The deciding metric and the loss on the validation rows.

    The loss is not-a-number where the recipe's loss can't be computed on them; it only decides
    between equal scores. ``rows`` are the indices of the validation rows that were predicted.
    """

    score: float
    loss: float
    predictions: Sequence[Any] = ()
    rows: Sequence[int] = ()


def build_loss(job: TrainingJob, task: AnyTask, train: Sequence[Row]) -> LossFunction:
    """Build a recipe's loss function.

    Raises:
        PluginCallError: the loss can't be built. The returned function raises it too, if the
            plugin's function raises or returns something else than a differentiable scalar.
    """
    spec = job.loss
    name, hint = spec.name, "See the LossSpec contract in docs/hooks.md."
    with plugin_call(f"Building the loss {name}", hint):
        context = replace(task.loss_context(train), options=job.recipe.loss_options)
        loss = spec.build(context)
    if not callable(loss):
        raise PluginCallError(
            f"The loss {name} can't be called: build gave {type(loss).__name__}.", hint
        )

    import torch

    if isinstance(loss, torch.nn.Module) and any(one.requires_grad for one in loss.parameters()):
        raise PluginCallError(
            f"The loss {name} has parameters, which are not trained: only the adapter is.",
            "Make them constants: register_buffer, or requires_grad=False.",
        )

    def checked(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        try:
            with plugin_ends_refused(f"The loss {name}", hint), state_kept():
                value = loss(outputs, targets)
        except (TrunklineError, torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise PluginCallError.raised(f"The loss {name}", error, hint) from error
        if not isinstance(value, torch.Tensor) or value.dim() != 0:
            is_tensor = isinstance(value, torch.Tensor)
            given = f"a tensor of shape {tuple(value.shape)}" if is_tensor else f"{value!r:.60}"
            raise PluginCallError(f"The loss {name} returned {given}, not a scalar tensor.", hint)
        if outputs.requires_grad and not value.requires_grad:
            raise PluginCallError(
                f"The loss {name} returned a number that doesn't depend on the outputs.", hint
            )
        return value

    return checked


def make_validator(
    metric: MetricSpec,
    rows: Sequence[Row],
    encoded: EncodedRows,
    task: AnyTask,
    tokenizer: Any,
    loss: LossFunction,
) -> Callable[[Any], Validation]:
    """A function that computes the deciding metric and the loss of a model on the validation rows.

    Without a tokenizer the rows are pictures.

    It raises :class:`PluginCallError` if the metric raises or returns no finite number.
    """

    def score(predictions: Sequence[Any], targets: Sequence[Any]) -> float:
        scored = Scored(targets=targets, predictions=predictions, labels=task.labels)
        hint = "See the MetricSpec contract in docs/hooks.md."
        with _random_numbers_kept():
            value = number_of(metric, scored, hint)
        if not math.isfinite(value):
            raise PluginCallError(
                f"The metric {metric.name} returned {value} on the validation rows, so it can't "
                "select a checkpoint.",
                hint,
            )
        return value

    def forward(model: Any, batch: Sequence[int]) -> tuple[Any, float]:
        """The outputs of some rows, and their summed loss."""
        examples = [encoded.examples[index] for index in batch]
        inputs = task.collate(examples, 0 if tokenizer is None else tokenizer.pad_token_id)
        inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        outputs, targets = task.outputs(model, inputs)
        decoded = not isinstance(task, GenerationTask)
        try:  # a loss may change the outputs, which are decoded afterwards
            value = float(loss(outputs.clone() if decoded else outputs, targets))
        except PluginCallError:
            value = math.nan
        return outputs, value * len(batch)

    if isinstance(task, GenerationTask):
        indices = range(0, len(rows), max(1, -(-len(rows) // VALIDATION_GENERATIONS)))
        prompts = [prompt_of(encoded.examples[index]) for index in indices]
        answers = [rows[index].target for index in indices]
        answer_lengths = [len(encoded.examples[index]["input_ids"]) for index in indices]

        def generate(model: Any) -> Validation:
            import torch

            texts = generate_texts(model, tokenizer, prompts, task.max_new_tokens)
            total = 0.0
            with torch.inference_mode():
                for batch in by_length(answer_lengths, 16):
                    total += forward(model, [indices[place] for place in batch])[1]
            return Validation(
                score(texts, answers), total / max(1, len(prompts)), texts, list(indices)
            )

        return generate

    lengths = [size_of(example) for example in encoded.examples]

    def predict(model: Any) -> Validation:
        import torch

        predictions: list[Any] = [None] * len(rows)
        total = 0.0
        with torch.inference_mode():
            for batch in within_tokens(lengths, VALIDATION_TOKENS):
                outputs, value = forward(model, batch)
                total += value
                examples = [encoded.examples[index] for index in batch]
                decoded = task.decode(outputs, examples)
                for index, (prediction, _) in zip(batch, decoded, strict=True):
                    predictions[index] = prediction
        targets = [row.target for row in rows]
        return Validation(
            score(predictions, targets), total / max(1, len(rows)), predictions, range(len(rows))
        )

    return predict


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Let a metric that sets a seed not change what the training draws after it, as for dropout."""
    import numpy as np
    import torch

    of_python, of_numpy = random.getstate(), np.random.get_state()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


SCORE, LOSS = "eval_score", "eval_loss"
"""The names of a validation's results in the trainer's history."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The best of the validations so far.

    Attributes:
        since: validations after the best one.
        moved: the score was not the same in all validations.
    """

    step: int
    score: float
    since: int
    moved: bool

    def ends_training(self, patience: int) -> bool:
        """Whether to stop; a score that never moved says nothing about the training."""
        return 0 < patience <= self.since and self.moved


def select_best(
    history: Iterable[Mapping[str, Any]], *, higher_is_better: bool
) -> Selection | None:
    """Select the best validation; of equal ones the first. None if there was none.

    Args:
        history: ``log_history`` of transformers' ``TrainerState``.
        higher_is_better: direction of the score.
    """
    validations = [entry for entry in history if SCORE in entry]
    if not validations:
        return None

    def quality(entry: Mapping[str, Any]) -> tuple[float, float]:
        loss = entry.get(LOSS, math.inf)
        score = entry[SCORE] if higher_is_better else -entry[SCORE]
        return score, -loss if math.isfinite(loss) else -math.inf

    best = max(range(len(validations)), key=lambda index: (quality(validations[index]), -index))
    return Selection(
        step=validations[best]["step"],
        score=validations[best][SCORE],
        since=len(validations) - 1 - best,
        moved=len({entry[SCORE] for entry in validations}) > 1,
    )

"""Calibrate a trained classifier on its validation rows, before its artifact is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trunkline.adapters.config import is_head
from trunkline.contracts import Scored
from trunkline.evaluation.calibration import abstention_thresholds, fit_temperature
from trunkline.evaluation.metrics import micro_f1
from trunkline.evaluation.structured_baselines import THRESHOLDS
from trunkline.tasks import AnyTask, Calibration, ClassificationTask, MultilabelTask
from trunkline.tasks.batches import size_of, within_tokens
from trunkline.training.job import EncodedRows

_TOKENS = 4096


def calibrate(
    model: Any, task: ClassificationTask, validation: EncodedRows, pad_id: int
) -> ClassificationTask:
    """Fit a temperature, divide the head's weights by it, and find the abstention thresholds.

    Plain PEFT and every engine then give calibrated probabilities, with the same labels. Nothing
    changes if the head is more than one linear layer.

    Args:
        model: a trained or merged PEFT model; its head is changed in place.
        validation: the encoded validation rows.
        pad_id: id of the padding token.

    Returns:
        The task with its calibration.
    """
    import torch

    named = list(model.named_parameters())
    head = [parameter for name, parameter in named if ".modules_to_save." in name]
    head = head or [parameter for name, parameter in named if is_head(name)]
    linear = sum(parameter.dim() == 2 for parameter in head) == 1 and len(head) <= 2
    if not linear:
        return task
    logits = _logits(model, task, validation, pad_id)
    targets = torch.tensor([example["target"] for example in validation.examples])
    temperature = fit_temperature(logits.numpy(), targets.numpy())
    with torch.no_grad():
        for parameter in head:
            parameter /= temperature
    confidences, labels = (logits / temperature).softmax(-1).max(-1)
    thresholds = abstention_thresholds(confidences.tolist(), (labels == targets).tolist())
    return replace(task, calibration=Calibration(temperature, thresholds))


def fit_threshold(
    model: Any, task: MultilabelTask, validation: EncodedRows, pad_id: int
) -> MultilabelTask:
    """The task with the threshold of the highest micro-F1 on the validation rows.

    Of equal ones it is the nearest to one half. Arguments as :func:`calibrate`.
    """
    probabilities = _logits(model, task, validation, pad_id).sigmoid().tolist()
    targets = [
        tuple(sorted(task.labels[index] for index in example["target"]))
        for example in validation.examples
    ]

    def quality(threshold: float) -> tuple[float, float]:
        chosen = [replace(task, threshold=threshold).chosen(one) for one in probabilities]
        return micro_f1(Scored(targets=targets, predictions=chosen)), -abs(threshold - 0.5)

    return replace(task, threshold=max(THRESHOLDS, key=quality))


def _logits(model: Any, task: AnyTask, rows: EncodedRows, pad_id: int) -> Any:
    """Outputs of the head, ``[rows, labels]`` float32 on the CPU, in the order of the rows."""
    import torch

    assert task.head_size is not None
    logits = torch.empty(len(rows.examples), task.head_size)
    model.eval()
    with torch.inference_mode():
        for batch in within_tokens([size_of(one) for one in rows.examples], _TOKENS):
            inputs = task.collate([rows.examples[index] for index in batch], pad_id)
            inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            logits[batch] = task.outputs(model, inputs)[0].cpu()
    return logits

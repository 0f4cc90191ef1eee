"""Calibrate a trained classifier on its validation rows, before its artifact is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trunkline.adapters.config import is_head
from trunkline.evaluation.calibration import abstention_thresholds, fit_temperature
from trunkline.tasks import Calibration, ClassificationTask
from trunkline.tasks.batches import by_length
from trunkline.training.job import EncodedRows

_BATCH = 64


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
    logits = torch.empty(len(validation.examples), len(task.labels))
    model.eval()
    with torch.inference_mode():
        lengths = [len(example["input_ids"]) for example in validation.examples]
        for batch in by_length(lengths, _BATCH):
            inputs = task.collate([validation.examples[index] for index in batch], pad_id)
            inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            logits[batch] = task.outputs(model, inputs)[0].cpu()
    targets = torch.tensor([example["target"] for example in validation.examples])
    temperature = fit_temperature(logits.numpy(), targets.numpy())
    with torch.no_grad():
        for parameter in head:
            parameter /= temperature
    confidences, labels = (logits / temperature).softmax(-1).max(-1)
    thresholds = abstention_thresholds(confidences.tolist(), (labels == targets).tolist())
    return replace(task, calibration=Calibration(temperature, thresholds))

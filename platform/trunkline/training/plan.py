"""Estimate the cost of a training without training."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trunkline.bases import Base
from trunkline.contracts import LossFunction, Modality, RecipeSpec, Settings
from trunkline.data.prepare import prepare
from trunkline.inference.image_engine import AnyEngine
from trunkline.registry.registry import Registry
from trunkline.tasks import AnyTask, task_for
from trunkline.tasks.batches import PIXELS, size_of
from trunkline.training.job import EncodedRows, TrainingJob, encode_parts
from trunkline.training.model import check_targets, initial_matrices, model_to_train, uses_bf16
from trunkline.training.schedule import steps_per_epoch, total_steps
from trunkline.training.scoring import build_loss


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The resolved recipe and its estimated cost.

    ``training_flops`` counts 6 operations per parameter and token (Kaplan et al. 2020, section
    2.1), an upper bound here, since frozen weights need no gradient of their own. ``seconds`` is
    scaled by tokens from ``measured``: ``run``, this recipe's newest finished run on the same kind
    of device with its validations, or ``step``, one training step that was timed for the plan.
    ``lengths`` is a ``LengthReport`` of all parts as JSON. Of pictures, ``pictures`` and
    ``picture_size`` (height and width) take the place of what is counted in tokens, and seconds are
    scaled by pictures.
    """

    recipe: RecipeSpec
    base: str
    data: dict[str, Any]
    tokens: int | None
    truncated: int | None
    longest: int | None
    lengths: dict[str, Any] | None
    pictures: int | None
    picture_size: tuple[int, int] | None
    steps: int
    trainable_parameters: int
    adapter_bytes: int
    training_flops: float | None
    seconds: float
    measured: Literal["run", "step"]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan_training(job: TrainingJob, engine: AnyEngine, registry: Registry) -> TrainingPlan:
    """Encode the data and build the adapter to count their sizes; nothing is kept.

    Where no earlier run shows how long a token or a picture takes, one step is taken and timed.
    """
    recipe, base = job.recipe, engine.base
    check_targets(base, recipe.settings)
    prepared = prepare(job.dataset, recipe, job.transforms)
    train = (*prepared.split.train, *prepared.augmented)
    task = task_for(recipe, prepared.labels, train, job.dataset.unit)
    parts = encode_parts(job, prepared, task, engine)
    encoded = parts.train
    model = model_to_train(base, task, recipe.settings)
    saved = sum(matrix.numel() for matrix in initial_matrices(model, recipe.settings).values())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    steps = total_steps(recipe.settings, len(encoded.examples))
    epochs = steps / steps_per_epoch(recipe.settings, len(encoded.examples))
    pictures = parts.picture_size is not None
    trained = round((len(encoded.examples) if pictures else encoded.tokens) * epochs)
    measured: Literal["run", "step"] = "run"
    per_unit = _seconds_per_unit(recipe.name, str(base.device), parts.picture_size, registry)
    if per_unit is None:
        measured = "step"
        loss = build_loss(job, task, train)
        pad_id = base.tokenizer.pad_token_id if isinstance(base, Base) else 0
        per_unit = time_step(model, task, encoded, recipe.settings, pad_id, loss)
    return TrainingPlan(
        recipe=recipe,
        base=base.info.name,
        data=prepared.report.to_json(),
        tokens=None if pictures else trained,
        truncated=None if pictures else encoded.truncated,
        longest=None if pictures else encoded.longest,
        lengths=None if parts.lengths is None else parts.lengths.to_json(),
        pictures=trained if pictures else None,
        picture_size=parts.picture_size,
        steps=steps,
        trainable_parameters=trainable,
        adapter_bytes=4 * (trainable + saved),
        training_flops=None if pictures else 6.0 * base.info.parameters * trained,
        seconds=per_unit * trained,
        measured=measured,
    )


def _seconds_per_unit(
    recipe: str, device: str, picture_size: tuple[int, int] | None, registry: Registry
) -> float | None:
    """Seconds per token, or per picture of this size, of the recipe's last run on this device."""
    for run in registry.runs.list(recipe=recipe, limit=20):
        report = run.report or {}
        trained = report.get("pictures_trained") or report.get("tokens_trained")
        same_device = run.environment.get("device") == device
        same_size = tuple(report.get("picture_size") or ()) == (picture_size or ())
        if run.status == "finished" and trained and same_device and same_size:
            return float(report["train_seconds"]) / trained
    return None


def time_step(
    model: Any,
    task: AnyTask,
    encoded: EncodedRows,
    settings: Settings,
    pad_id: int,
    loss: LossFunction,
) -> float:
    """Seconds per token or picture of a training step on a batch of rows of average length.

    The first step allocates memory and is not counted; the model's adapter is trained by both.
    """
    import torch

    device = model.device
    by_length = sorted(encoded.examples, key=size_of)
    size = min(settings.per_device_train_batch_size, len(by_length))
    middle = (len(by_length) - size) // 2
    batch = by_length[middle : middle + size]
    inputs = {name: tensor.to(device) for name, tensor in task.collate(batch, pad_id).items()}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate)
    modality: Modality = "image" if PIXELS in batch[0] else "text"
    bf16 = uses_bf16(settings.precision, device, modality)
    model.train()
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            outputs, targets = task.outputs(model, inputs)
            value = loss(outputs, targets)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        float(value.detach())  # waits for the device
        seconds = time.perf_counter() - started
    return seconds / (len(batch) if modality == "image" else sum(map(size_of, batch)))

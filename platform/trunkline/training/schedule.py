"""From settings to steps: how many, when to validate, and transformers' arguments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.contracts import Modality, Settings
from trunkline.training.distributed import processes
from trunkline.training.model import uses_bf16

if TYPE_CHECKING:
    from transformers import TrainingArguments


def total_steps(settings: Settings, examples: int) -> int:
    """Optimizer steps of a run without early stopping."""
    if settings.max_steps > 0:
        return settings.max_steps
    return max(1, math.ceil(settings.num_train_epochs * steps_per_epoch(settings, examples)))


def steps_per_epoch(settings: Settings, examples: int) -> int:
    """Optimizer steps of one pass over the examples."""
    batches = math.ceil(examples / (settings.per_device_train_batch_size * processes()))
    return max(1, math.ceil(batches / settings.gradient_accumulation_steps))


def validation_interval(settings: Settings, examples: int) -> int:
    """Optimizer steps between validations."""
    steps = min(steps_per_epoch(settings, examples), total_steps(settings, examples))
    return max(1, math.ceil(steps / settings.evals_per_epoch))


def warmup_steps(settings: Settings, examples: int) -> int:
    """Steps of learning-rate warmup; none in runs that are too short for a full step of it."""
    steps = settings.warmup_ratio * total_steps(settings, examples)
    return math.ceil(steps) if steps >= 1 else 0


def training_arguments(
    settings: Settings,
    examples: int,
    checkpoints: Path,
    device: Any,
    modality: Modality = "text",
) -> TrainingArguments:
    """The arguments of transformers' Trainer.

    Args:
        examples: training rows.
        checkpoints: folder of the checkpoints.
        device: of the model.
        modality: of the rows.
    """
    from transformers import TrainingArguments

    interval = validation_interval(settings, examples)
    return TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=warmup_steps(settings, examples),
        weight_decay=settings.weight_decay,
        optim="adamw_torch",
        bf16=uses_bf16(settings.precision, device, modality),
        use_cpu=device.type == "cpu",
        seed=settings.seed,
        data_seed=settings.seed,
        eval_strategy="steps",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        logging_strategy="steps",
        logging_steps=max(1, interval // 5),
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        log_level="error",
    )

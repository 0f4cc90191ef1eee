"""The model to train: a fresh copy of the base with an untrained LoRA adapter."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from trunkline.adapters.config import TASK_TYPES
from trunkline.contracts import Settings
from trunkline.errors import NotFoundError, UsageError
from trunkline.tasks import AnyTask, TaggingTask

if TYPE_CHECKING:
    import torch


def lora_model(base_name: str, task: AnyTask, settings: Settings, device: str) -> Any:
    """Load a fresh copy of the base and add an untrained adapter, and a head if the task has one.

    Raises:
        UsageError: see :func:`lora_targets`.
    """
    from peft import LoraConfig, get_peft_model

    from trunkline.bases import load_fresh

    dtype = "fp32" if device == "cpu" else "auto"
    model = load_fresh(
        base_name,
        task.head_size,
        device=device,
        dtype=dtype,
        seed=settings.seed,
        per_token=isinstance(task, TaggingTask),
    )
    targets, layers = lora_targets(model, settings)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        use_rslora=settings.use_rslora,
        target_modules=targets,
        layers_to_transform=layers,
        task_type=TASK_TYPES[task.kind],
    )
    with warnings.catch_warnings():
        # PEFT calls names of transformers that transformers 6 will drop; PEFT is capped
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        return get_peft_model(model, config)


def lora_targets(model: Any, settings: Settings) -> tuple[list[str], list[int] | None]:
    """Names of the modules to adapt, and indices of the layers; None: all layers.

    Args:
        model: any model of the base; only its backbone is adapted, not a head.
        settings: ``target_modules`` and ``layers_to_transform`` are used.

    Raises:
        NotFoundError: a name in ``target_modules`` is not one of the base's linear layers.
        UsageError: ``target_modules`` is empty, or the base does not have these layers.
    """
    from transformers.pytorch_utils import Conv1D

    prefix = f"{model.base_model_prefix}."
    linear_layers = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if name.startswith(prefix)
            and (hasattr(module, "in_features") or isinstance(module, Conv1D))
        }
    )
    names = [name for name in settings.target_modules.split(",") if name]
    if not names:
        raise UsageError(
            f"target_modules = {settings.target_modules!r} contains no name.",
            f"Use all-linear, or any of {', '.join(linear_layers)}.",
        )
    if names == ["all-linear"]:
        names = linear_layers
    for name in names:
        if name not in linear_layers:
            raise NotFoundError.named(
                "linear layer", name, linear_layers, f"The base has {', '.join(linear_layers)}."
            )
    count = int(model.config.get_text_config().num_hidden_layers)
    return sorted(set(names)), _layer_indices(settings.layers_to_transform, count)


def _layer_indices(layers: str, count: int) -> list[int] | None:
    """The layers that ``layers_to_transform`` selects; None: all."""
    if not layers:
        return None
    top = layers.startswith("top-")
    if top:
        number = int(layers.removeprefix("top-"))
        valid, indices = number <= count, list(range(max(0, count - number), count))
    else:
        indices = sorted({int(index) for index in layers.split(",")})
        valid = indices[-1] < count
    if not valid:
        raise UsageError(
            f"layers_to_transform is {layers!r}, but the base has {count} layers.",
            f"Use top-{count} or less." if top else f"Use numbers from 0 to {count - 1}.",
        )
    return indices


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether training multiplies in bfloat16; weights and adapters keep their type."""
    import torch

    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))

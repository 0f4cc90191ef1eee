"""The model that is trained: a fresh copy of the base with an untrained LoRA adapter.

Owns: what is adapted, and in which arithmetic. Must not know: data, steps, the registry.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from trunkline.adapters.config import TASK_TYPES
from trunkline.contracts import Settings
from trunkline.errors import NotFoundError, UsageError
from trunkline.tasks import AnyTask

if TYPE_CHECKING:
    import torch


def lora_model(base_name: str, task: AnyTask, settings: Settings, device: str) -> Any:
    """A fresh copy of the base with an untrained LoRA adapter, and a head if the task has one.

    Raises:
        UsageError: see :func:`lora_targets`.
    """
    from peft import LoraConfig, get_peft_model

    from trunkline.bases import load_fresh

    dtype = "fp32" if device == "cpu" else "auto"
    model = load_fresh(base_name, task.head_size, device=device, dtype=dtype, seed=settings.seed)
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
    """Names of the modules that a run adapts, and numbers of the layers; None: all.

    Args:
        model: any of the base's own models; only the trunk is adapted.
        settings: of the recipe.

    Raises:
        NotFoundError: a name in ``target_modules`` is none of the base's linear layers.
        UsageError: ``target_modules`` names nothing, or there are not that many layers.
    """
    from transformers.pytorch_utils import Conv1D

    fused_layers = f"{model.base_model_prefix}."
    known = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if name.startswith(fused_layers)
            and (hasattr(module, "in_features") or isinstance(module, Conv1D))
        }
    )
    names = [name.strip() for name in settings.target_modules.split(",") if name.strip()]
    if not names:
        raise UsageError(
            f"target_modules = {settings.target_modules!r} names nothing.",
            f"Use all-linear, or names out of {', '.join(known)}.",
        )
    if names == ["all-linear"]:
        names = known
    for name in names:
        if name not in known:
            raise NotFoundError.named(
                "linear layer", name, known, f"The base has {', '.join(known)}."
            )
    layers = int(model.config.get_text_config().num_hidden_layers)
    if settings.layers_to_transform > layers:
        raise UsageError(
            f"layers_to_transform is {settings.layers_to_transform}, "
            f"but the base has {layers} layers.",
            f"Use --set layers_to_transform={layers} or less.",
        )
    chosen = (
        range(layers - settings.layers_to_transform, layers)
        if settings.layers_to_transform
        else None
    )
    return sorted(set(names)), None if chosen is None else list(chosen)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether training multiplies in bfloat16 (weights and adapters stay as they are)."""
    import torch

    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu":
        return False
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))

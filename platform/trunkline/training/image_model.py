"""The image model to train: a fresh copy of the base with an untrained LoRA adapter and a head."""

from __future__ import annotations

import warnings
from typing import Any

from trunkline.adapters.config import TASK_TYPES
from trunkline.bases import ImageBase
from trunkline.bases.linear import is_linear
from trunkline.contracts import Settings
from trunkline.errors import NotFoundError, UsageError, one_line
from trunkline.tasks import AnyTask


def image_lora_model(base_name: str, task: AnyTask, settings: Settings, device: str) -> Any:
    """Load a fresh copy of an image base and add an untrained adapter and a head.

    Raises:
        UsageError, NotFoundError: see :func:`image_targets`.
    """
    from peft import LoraConfig, get_peft_model

    from trunkline.bases import load_fresh_image

    dtype = "fp32" if device == "cpu" else "auto"
    model = load_fresh_image(
        base_name, task.head_size, device=device, dtype=dtype, seed=settings.seed
    )
    start = settings.init_lora_weights
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        use_rslora=settings.use_rslora,
        init_lora_weights=True if start == "true" else start,
        target_modules=image_targets(model, settings),
        task_type=TASK_TYPES[task.kind],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls old names of transformers
        return get_peft_model(model, config)


def check_image_size(base: ImageBase, settings: Settings) -> None:
    """Check that a base computes pictures of the recipe's ``image_size``.

    Raises:
        UsageError: it doesn't, such as a ViT, whose embeddings of positions have a fixed number.
    """
    import torch

    if not settings.image_size:
        return
    steps = base.info.preprocessing.resized(settings.image_size)
    try:
        with torch.inference_mode():
            base.model.pooled(torch.zeros(1, 3, steps.height, steps.width))
    except Exception as error:  # a model raises anything for a size that it can't compute
        raise UsageError(
            f"The base {base.info.name!r} can't compute pictures of {steps.height} × "
            f"{steps.width} pixels: {one_line(error)}",
            f"Leave out image_size = {settings.image_size}, or use a convolutional base.",
        ) from error


def image_targets(model: Any, settings: Settings) -> list[str]:
    """Names, or ends of names, of the modules to adapt: linear layers and 1×1 convolutions.

    An end of a name is used where it means such layers only; in a ResNet, whose convolutions all
    have one name, complete names are.

    Args:
        model: of the image base, fused or not; it is not changed. Its head is not adapted.
        settings: ``target_modules`` is used.

    Raises:
        NotFoundError: a name in ``target_modules`` is no layer of the base.
        UsageError: a name means other convolutions only, or a setting is for text bases.
    """
    _check_settings(settings)
    prefix = f"{model.base_model_prefix}."
    weighted = {
        name: is_linear(module) or hasattr(module, "fused")
        for name, module in model.named_modules()
        if name.startswith(prefix)
        and (getattr(module, "weight", None) is not None or hasattr(module, "fused"))
    }
    adaptable = [name for name, linear in weighted.items() if linear]
    if settings.target_modules == "all-linear":
        return sorted({_shortest(name, weighted) for name in adaptable})
    chosen: set[str] = set()
    for name in filter(None, settings.target_modules.split(",")):
        named = [one for one in weighted if one == name or one.endswith(f".{name}")]
        usable = [one for one in named if weighted[one]]
        if not named:
            known = sorted({one.rpartition(".")[2] for one in adaptable})
            raise NotFoundError.named(
                "layer", name, known, f"The base's linear layers and 1×1 convolutions: "
                f"{', '.join(known)}."
            )  # fmt: skip
        if not usable:
            raise UsageError(
                f"target_modules names {name}, which is neither a linear layer nor a 1×1 "
                "convolution.",
                "Other layers can't be served by adapter: use all-linear.",
            )
        chosen.update(_shortest(one, weighted) for one in usable)
    if not chosen:
        raise UsageError(
            f"target_modules = {settings.target_modules!r} contains no name.", "Use all-linear."
        )
    return sorted(chosen)


def _shortest(name: str, weighted: dict[str, bool]) -> str:
    """The last part of a name, if all layers with this end can be adapted; else the name."""
    last = name.rpartition(".")[2]
    same = [linear for one, linear in weighted.items() if one.endswith(f".{last}")]
    return last if all(same) else name


def _check_settings(settings: Settings) -> None:
    """Refuse settings that only text bases have."""
    for name, used in (
        ("use_dora", settings.use_dora),
        ("layers_to_transform", bool(settings.layers_to_transform)),
        ("init_lora_weights", settings.subtracts_initial),
        ("max_length", settings.max_length != Settings().max_length),
    ):
        if used:
            raise UsageError(
                f"{name} = {getattr(settings, name)!r} is not supported for pictures.",
                f"Leave out {name}.",
            )

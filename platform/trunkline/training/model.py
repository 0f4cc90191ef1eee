"""The model to train: a fresh copy of the base with an untrained LoRA adapter."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.adapters.artifact import CONFIG, WEIGHTS, write_json
from trunkline.adapters.config import MAX_RANK, TASK_TYPES
from trunkline.bases import AnyBase, ImageBase
from trunkline.contracts import Modality, Settings
from trunkline.errors import NotFoundError, UsageError
from trunkline.files import read_json_object
from trunkline.lora.routing import PAGE_RANK
from trunkline.tasks import AnyTask, TaggingTask
from trunkline.training.image_model import check_image_size, image_lora_model, image_targets

if TYPE_CHECKING:
    import torch


def check_targets(base: AnyBase, settings: Settings) -> None:
    """Check that a recipe's settings fit a base of either modality.

    Raises:
        NotFoundError, UsageError: see :func:`lora_targets`, :func:`image_targets` and
            :func:`check_image_size`.
    """
    if isinstance(base, ImageBase):
        image_targets(base.model, settings)
        check_image_size(base, settings)
    elif settings.image_size:
        raise UsageError("image_size is for pictures, and the rows are texts.", "Leave it out.")
    else:
        lora_targets(base.model, settings)


def model_to_train(base: AnyBase, task: AnyTask, settings: Settings) -> Any:
    """A fresh copy of a loaded base of either modality, with an untrained adapter."""
    make = image_lora_model if isinstance(base, ImageBase) else lora_model
    return make(base.info.name, task, settings, str(base.device))


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
        init_lora_weights=_initialization(settings),
        use_dora=settings.use_dora,
        target_modules=targets,
        layers_to_transform=layers,
        task_type=TASK_TYPES[task.kind],
    )
    with warnings.catch_warnings():
        # PEFT calls names of transformers that transformers 6 will drop; PEFT is capped
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        return get_peft_model(model, config)


def _initialization(settings: Settings) -> Any:
    return True if settings.init_lora_weights == "true" else settings.init_lora_weights


def initial_matrices(model: Any, settings: Settings) -> dict[str, torch.Tensor]:
    """Copies of an untrained model's A and B, by their names in the artifact.

    Empty unless the initialization took ``s·BA`` out of the base's weights.
    """
    from peft import get_peft_model_state_dict

    if not settings.subtracts_initial:
        return {}
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {
        name: tensor.detach().cpu().clone() for name, tensor in state.items() if "lora_" in name
    }


def restore_base(folder: Path, initial: Mapping[str, torch.Tensor]) -> None:
    """Convert a folder that PEFT saved to plain LoRA on the unchanged base, with twice the rank.

    With the first matrices ``A₀`` and ``B₀``, the trained model has the weights ``W - s·B₀A₀ +
    s·BA``. Its update of ``W`` is ``s·[B, -B₀][A; A₀]`` (Meng et al. 2024, "PiSSA", appendix C).

    Args:
        folder: with the trained matrices.
        initial: from :func:`initial_matrices`; empty: nothing is converted.
    """
    import torch
    from safetensors.torch import load_file, save_file

    config = read_json_object(folder / CONFIG)
    if initial:
        tensors = load_file(folder / WEIGHTS)
        for name, first in initial.items():
            last = tensors[name]
            down = name.endswith("lora_A.weight")
            tensors[name] = torch.cat([last, first if down else -first], dim=0 if down else 1)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        grown = math.sqrt(2) if config.get("use_rslora") else 2
        config |= {"r": 2 * config["r"], "lora_alpha": grown * config["lora_alpha"]}
    write_json(folder / CONFIG, config | {"init_lora_weights": True})


@contextmanager
def frozen_in_bf16(model: Any, base_name: str, settings: Settings) -> Iterator[None]:
    """Inside, the frozen linear layers of a model on a CPU are in bfloat16, if it trains in it.

    Autocast would round the same weights to the same numbers in every forward pass. Afterwards the
    weights are those of the base's files again.

    Args:
        model: a PEFT model in float32, whose forward pass runs under autocast inside the block.
        base_name: of the base that it was loaded from.
    """
    changed = settings.use_dora or settings.subtracts_initial  # they compute with the weights
    if model.device.type != "cpu" or changed or not uses_bf16(settings.precision, model.device):
        yield
        return
    import torch

    from trunkline.bases import load_fresh

    names = list(_frozen_linear_layers(model.get_base_model()))
    for layer in _layers(model, names):
        layer.weight.data = layer.weight.data.to(torch.bfloat16)
    try:
        yield
    finally:
        plain = load_fresh(base_name, device="cpu", dtype="fp32")
        for layer, origin in zip(_layers(model, names), _layers(plain, names), strict=True):
            layer.weight.data = origin.weight.data


def _frozen_linear_layers(model: Any) -> Iterator[str]:
    """The names that the linear layers of the backbone have in the base."""
    from torch import nn

    prefix = f"{model.base_model_prefix}."
    for name, module in model.named_modules():
        if name.startswith(prefix) and type(module) is nn.Linear and ".lora_" not in name:
            yield name.removesuffix(".base_layer")


def _layers(model: Any, names: Sequence[str]) -> Iterator[Any]:
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name in names:
        module = plain.get_submodule(name)
        yield getattr(module, "base_layer", module)


def lora_targets(model: Any, settings: Settings) -> tuple[list[str], list[int] | None]:
    """Names of the modules to adapt, and indices of the layers; None: all layers.

    Args:
        model: any model of the base; only its backbone is adapted, not a head.
        settings: ``target_modules`` and ``layers_to_transform`` are used.

    Raises:
        NotFoundError: a name in ``target_modules`` is not one of the base's linear layers.
        UsageError: ``target_modules`` is empty, the base does not have these layers, or ``r`` is
            not possible with ``init_lora_weights``.
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
    _check_rank(model, settings, names, prefix)
    count = int(model.config.get_text_config().num_hidden_layers)
    return sorted(set(names)), _layer_indices(settings.layers_to_transform, count)


def _check_rank(model: Any, settings: Settings, names: list[str], prefix: str) -> None:
    """Raise :class:`UsageError` if ``r`` is not possible with ``init_lora_weights``."""
    start, rank = settings.init_lora_weights, settings.r
    if start == "orthogonal" and rank % 2:
        raise UsageError(
            f"r is {rank}, but init_lora_weights=orthogonal needs an even rank.",
            f"Use --set r={rank + 1}.",
        )
    if not settings.subtracts_initial:
        return
    if settings.use_dora:
        raise UsageError(
            f"use_dora can't be combined with init_lora_weights={start}: its magnitudes would be "
            "those of a changed base.",
            "Use one of them.",
        )
    if 2 * rank > MAX_RANK:
        raise UsageError(
            f"r is {rank}, but with init_lora_weights={start} the adapter is saved with twice the "
            f"rank, which is at most {MAX_RANK}.",
            f"Use at most --set r={MAX_RANK // 2}.",
        )
    narrowest = min(
        min(sides)
        for name, module in model.named_modules()
        if name.startswith(prefix) and name.rpartition(".")[2] in names
        if (sides := _sides(module))
    )
    if rank > narrowest:
        raise UsageError(
            f"r is {rank}, but init_lora_weights={start} starts from singular vectors of layers, "
            f"the narrowest of which has {narrowest}.",
            f"Use at most --set r={narrowest}, or adapt other target_modules.",
        )


def check_fits_pool(settings: Settings, pages: int) -> None:
    """Raise :class:`UsageError` if the adapter pool, with ``pages``, could not hold the adapter."""
    rank = (2 if settings.subtracts_initial else 1) * settings.r
    if rank > pages * PAGE_RANK:
        raise UsageError(
            f"The adapter would be saved with the rank {rank}; the engine has slots for "
            f"{pages * PAGE_RANK}.",
            f"Use a lower r, now {settings.r}, or give the engine more slots.",
        )


def _sides(module: Any) -> tuple[int, ...]:
    """Inputs and outputs of a linear layer; empty for another module."""
    if hasattr(module, "in_features"):
        return (module.in_features, module.out_features)
    return tuple(module.weight.shape) if hasattr(module, "weight") else ()


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


def uses_bf16(precision: str, device: torch.device, modality: Modality = "text") -> bool:
    """Whether training multiplies in bfloat16; weights and adapters keep their type.

    On a CPU, convolutions by channel are slower in it, so pictures are computed in float32.
    """
    import torch

    if precision != "auto":
        return precision == "bf16"
    if modality == "image" and device.type == "cpu":
        return False
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))

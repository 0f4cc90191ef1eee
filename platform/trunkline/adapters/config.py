"""Plain LoRA, as an artifact describes it: which configurations and tensors are served.

Owns: the reading of ``adapter_config.json`` and the checks that tensors agree with it. Must not
know: files' digests, torch, the base. Whatever the forward pass would not compute exactly as PEFT
does is refused here, not ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.adapters.reasons import HEADS, PREFIX, refused_setting, refused_tensor
from trunkline.errors import IntegrityError
from trunkline.files import REPAIR, TensorInfo, brief_repr

MAX_RANK = 1024
DTYPES = ("F32", "F16", "BF16")
TASK_TYPES = {"classification": "SEQ_CLS", "regression": "SEQ_CLS", "generation": "CAUSAL_LM"}

_MEANING = (
    "bias",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "target_modules",
    "task_type",
    "use_rslora",
)
"""Keys that say what the adapter is; the others are neutral or left out."""

_NOISE = frozenset(
    (
        "base_model_name_or_path",
        "inference_mode",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
    )
)
"""Keys that change nothing by themselves, whatever PEFT writes there."""

_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "fan_in_fan_out": (True, False, None),
    "init_lora_weights": (True, False, "gaussian", None),
    "task_type": ("SEQ_CLS", "CAUSAL_LM"),
    "use_rslora": (True, False, None),
}

_LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class LoraShape:
    """What ``adapter_config.json`` tells the forward pass.

    Attributes:
        rank, alpha, rslora: of the update, see :attr:`scaling`.
        targets: names, or ends of names, of the adapted modules.
        layers: numbers of the adapted layers; None: all.
    """

    rank: int
    alpha: float
    use_rslora: bool
    targets: tuple[str, ...]
    layers: tuple[int, ...] | None = None

    @property
    def scaling(self) -> float:
        """PEFT's factor on ``B A x``: alpha / rank, or alpha / sqrt(rank) (rank-stabilized)."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def adapts(self, module: str) -> bool:
        """Whether PEFT would adapt the module of this name, if it is linear."""
        if not any(module == name or module.endswith(f".{name}") for name in self.targets):
            return False
        if self.layers is None:
            return True
        layer = _LAYER.match(module)
        return layer is not None and int(layer[1]) in self.layers


def normalized_config(config: Mapping[str, Any], base_name: str) -> dict[str, Any]:
    """PEFT's configuration without what varies between equal adapters.

    PEFT writes lists in hash order, the base by its path, its own version, and with every version
    other keys that are off. Left are the keys that mean something, and the base by name.
    """
    kept = {key: config[key] for key in _MEANING if not _neutral(config.get(key))}
    kept["lora_alpha"] = float(kept["lora_alpha"])
    kept["base_model_name_or_path"] = base_name
    return {
        key: sorted(value) if isinstance(value, list | tuple) else value
        for key, value in kept.items()
    }


def check_config(config: Mapping[str, Any], path: Path) -> LoraShape:
    """What the forward pass needs, once everything that it can't compute exactly is excluded.

    Raises:
        IntegrityError: it is no plain LoRA, or a number is out of range.
    """
    for key, value in sorted(config.items(), key=lambda item: item[0] != "peft_type"):
        allowed = _PLAIN.get(key)
        if allowed is None:
            fine = key in _NOISE or key in _MEANING or _neutral(value)
        else:
            fine = any(value == item and type(value) is type(item) for item in allowed)
        if not fine:
            raise IntegrityError(*refused_setting(path, key, value))
    for key in ("peft_type", "task_type"):
        if key not in config:
            raise IntegrityError(f"{path} does not say its {key}.", REPAIR)
    saved = config.get("modules_to_save")
    if saved is not None and not (_texts(saved) and set(saved) <= set(HEADS)):
        raise IntegrityError(
            f"{path} trains whole modules of the base anew: modules_to_save = {brief_repr(saved)}.",
            "Only a head may be saved whole: train with LoRA on the linear layers and a head.",
        )
    targets = config.get("target_modules")
    if not _texts(targets) or not targets:
        raise IntegrityError(
            f"{path} has target_modules = {brief_repr(targets)}.", "It must be a list of names."
        )
    layers = config.get("layers_to_transform")
    if layers is not None and not (
        isinstance(layers, list) and layers and all(type(layer) is int for layer in layers)
    ):
        raise IntegrityError(
            f"{path} has layers_to_transform = {brief_repr(layers)}.",
            "It must be a list of numbers.",
        )
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise IntegrityError(
            f"{path} has the rank {brief_repr(rank)}.", f"1 to {MAX_RANK} are loaded."
        )
    if type(alpha) not in (int, float) or not 0 < alpha < 1e6:
        raise IntegrityError(
            f"{path} has lora_alpha = {brief_repr(alpha)}.", "It must be above zero."
        )
    dropout: Any = config.get("lora_dropout", 0)
    if type(dropout) not in (int, float) or not 0 <= dropout <= 1:
        raise IntegrityError(
            f"{path} has lora_dropout = {brief_repr(dropout)}.", "It must be between 0 and 1."
        )
    return LoraShape(
        rank,
        float(alpha),
        bool(config.get("use_rslora")),
        tuple(sorted(targets)),
        None if layers is None else tuple(sorted(layers)),
    )


def check_tensors(
    tensors: Mapping[str, TensorInfo], lora: LoraShape, task: Mapping[str, Any], path: Path
) -> None:
    """Every A has its B with the adapter's rank between them, and the head is there if needed.

    Raises:
        IntegrityError: a tensor is missing, of another shape, or one that PEFT would ignore.
    """
    for name, info in tensors.items():
        if info.dtype not in DTYPES:
            raise IntegrityError(
                f"{path}: {brief_repr(name)} has the dtype {info.dtype}.",
                f"Save the adapter in one of {', '.join(DTYPES)}.",
            )
        if name.endswith(".lora_A.weight"):
            _check_pair(name, info, tensors, lora, path)
        elif name.endswith(".lora_B.weight"):
            if name.replace(".lora_B.weight", ".lora_A.weight") not in tensors:
                raise IntegrityError(f"{path} has {brief_repr(name)} without its lora_A.", REPAIR)
        elif not is_head(name):
            raise IntegrityError(*refused_tensor(path, name))
    if not any(name.endswith(".lora_A.weight") for name in tensors):
        raise IntegrityError(f"{path} holds no LoRA matrices.", REPAIR)
    heads = [name for name in tensors if is_head(name)]
    if task["kind"] == "generation":
        if heads:
            raise IntegrityError(f"{path} has a head, but its task generates text.", REPAIR)
        return
    outputs = len(task["labels"]) if task["kind"] == "classification" else 1
    if len(heads) != 1:
        raise IntegrityError(f"{path} has {len(heads)} heads; its task needs one.", REPAIR)
    shape = tensors[heads[0]].shape
    if len(shape) != 2 or shape[0] != outputs:
        raise IntegrityError(
            f"{path}: the head has the shape {brief_repr(shape)}; the task has {outputs} outputs.",
            REPAIR,
        )


def adapted_module(name: str) -> str | None:
    """The module whose ``lora_A`` a tensor is; None for any other tensor."""
    if not name.startswith(PREFIX) or not name.endswith(".lora_A.weight"):
        return None
    return name.removeprefix(PREFIX).removesuffix(".lora_A.weight")


def is_head(name: str) -> bool:
    """Whether a tensor's name is that of the classification or regression head."""
    return name in tuple(f"{PREFIX}{head}.weight" for head in HEADS)


def _check_pair(
    name: str, down: TensorInfo, tensors: Mapping[str, TensorInfo], lora: LoraShape, path: Path
) -> None:
    up = tensors.get(name.replace(".lora_A.weight", ".lora_B.weight"))
    if up is None:
        raise IntegrityError(f"{path} has {brief_repr(name)} without its lora_B.", REPAIR)
    if len(down.shape) != 2 or len(up.shape) != 2:
        raise IntegrityError(
            f"{path}: {brief_repr(name)} is no matrix: {brief_repr(down.shape)}.", REPAIR
        )
    if down.shape[0] != lora.rank or up.shape[1] != lora.rank:
        raise IntegrityError(
            f"{path}: {brief_repr(name)} has the shape {down.shape}, its lora_B {up.shape}; the "
            f"rank is {lora.rank}.",
            REPAIR,
        )
    module = adapted_module(name)
    if module is None:
        raise IntegrityError(
            f"{path} holds {brief_repr(name)}, which is not named as PEFT names it.",
            f"The name must begin with {PREFIX}",
        )
    if not lora.adapts(module):
        raise IntegrityError(
            f"{path} holds {brief_repr(name)}, which is not among the configured target_modules.",
            REPAIR,
        )


def _neutral(value: Any) -> bool:
    """Whether a key is off: null, false, or empty."""
    return value is None or value is False or value in ({}, [])


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)

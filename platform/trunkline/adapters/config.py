"""Which LoRA configurations and tensors are supported: the reading of ``adapter_config.json``.

Inference must compute exactly what PEFT computes. A setting or a tensor that it does not support
is refused with the reason, never ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trunkline.errors import IntegrityError
from trunkline.files import REPAIR, TensorInfo, brief_repr

MAX_RANK = 1024
TASK_TYPES = {
    "classification": "SEQ_CLS",
    "multilabel": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "generation": "CAUSAL_LM",
    "tagging": "TOKEN_CLS",
    "ranking": "SEQ_CLS",
}
"""Kind of task → PEFT's type of task."""

DTYPES = ("F32", "F16", "BF16")

PREFIX = "base_model.model."
"""The start of every tensor name that PEFT saves; the name of the module follows."""

MAGNITUDE = ".lora_magnitude_vector"
"""The end of the name of DoRA's magnitudes; the name of the module comes before."""

HEADS = ("score", "classifier")
"""The names that transformers and PEFT give to the head of a sequence classification model."""

_IGNORED_KEYS = frozenset(
    (
        "base_model_name_or_path",
        "inference_mode",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
    )
)
"""Keys without an effect of their own, whatever PEFT writes there."""

LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")
"""The part of a module's name that ends with the number of its layer."""

_IN_MEMORY = re.compile(r"\.lora_[AB]\.[^.]+\.weight$|\.(modules_to_save|original_module)\.")

PLAIN_HINT = "Train it again as plain LoRA, without this setting."
CONVERT_HINT = (
    "Convert it where it was trained: save_as_lora(folder, model, rank=N) of PEFT 0.19 or later "
    "writes plain LoRA; then import that with --task."
)
_INIT_HINT = (
    "Convert it where it was trained: PEFT's save_pretrained takes "
    "path_initial_model_for_weight_conversion."
)
_HEAD_HINT = "Train it with a head of one matrix without a bias, as transformers makes it."
_SAVE_HINT = "Save it with save_pretrained of the PEFT model, which writes plain names."

_UNSUPPORTED = {
    "alora_invocation_tokens": ("is only active after certain tokens (aLoRA)", PLAIN_HINT),
    "alpha_pattern": ("gives some modules another alpha", CONVERT_HINT),
    "arrow_config": ("chooses between several adapters for each token (Arrow)", PLAIN_HINT),
    "auto_map": ("names custom code", "Custom code is never run: remove the key."),
    "bias": ("also trains the base's biases", "Train it again with bias='none'."),
    "enable_lora": ("adapts parts of fused layers (MergedLinear)", PLAIN_HINT),
    "init_lora_weights": (
        "may start from weights taken out of the base, so it may only fit a base that was changed "
        "in the same way",
        _INIT_HINT,
    ),
    "kasa_config": ("changes the base's weights (KaSA)", PLAIN_HINT),
    "layer_replication": ("repeats layers of the base", PLAIN_HINT),
    "loftq_config": ("needs a base that LoftQ has changed", _INIT_HINT),
    "lora_bias": ("adds a bias to the LoRA matrices", "Train it again with lora_bias=False."),
    "megatron_config": ("needs the parallel layers of Megatron", PLAIN_HINT),
    "monteclora_config": (
        "keeps the sampler that MonteCLoRA uses in training",
        "It has no effect after training: remove the tensors whose names contain "
        "'lora_monteclora_sampler', and set monteclora_config to null.",
    ),
    "peft_type": ("was not made by LoRA", "Of PEFT's methods only LORA is supported."),
    "rank_pattern": ("gives some modules another rank", CONVERT_HINT),
    "target_parameters": (
        "adapts bare parameters, not linear layers",
        "Train it again with target_modules.",
    ),
    "task_type": (
        "is for a task that is not supported",
        "The task_type must be CAUSAL_LM, or SEQ_CLS with a head.",
    ),
    "trainable_token_indices": (
        "trains the embeddings of some tokens",
        "The embeddings belong to the base, which is shared: train the linear layers only.",
    ),
    "use_bdlora": ("has block-diagonal matrices (BD-LoRA)", PLAIN_HINT),
    "use_qalora": ("pools its inputs in groups (QA-LoRA)", PLAIN_HINT),
    "velora_config": (
        "keeps the buffers that VeLoRA uses in training",
        "They have no effect after training: remove the tensors whose names contain "
        "'lora_velora_embed', and set velora_config to null.",
    ),
}
"""Key of ``adapter_config.json`` → why an adapter that sets it is refused, and the way out."""

_ON_IF_EMPTY = frozenset(
    ("arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "velora_config")
)
"""Keys that PEFT takes as on, with all defaults, where they are ``{}``."""

_SWITCHES = frozenset(("ensure_weight_tying", "lora_bias", "use_qalora"))
"""Keys that are true or false."""

_TENSORS_OF_SETTINGS = {
    "lora_monteclora_sampler": "monteclora_config",
    "lora_velora_embed": "velora_config",
    "lora_diag": "kasa_config",
    "trainable_tokens": "trainable_token_indices",
}
"""Part of a tensor's name → the key that makes PEFT save such tensors."""

_FOREIGN_NAMES = {
    "_orig_mod.": "has names of a model that torch.compile wrapped",
    "_fsdp_wrapped_module.": "has names of a model that FSDP wrapped",
    "lora_down": "has names of another tool than PEFT",
    "lora_up": "has names of another tool than PEFT",
    ".lora_a": "has names of another tool than PEFT",
    ".lora_b": "has names of another tool than PEFT",
}
"""Part of a tensor's name → what it shows."""

_EXPECTED = {
    "fan_in_fan_out": "It must be true or false.",
    "layers_to_transform": "It must be a list of layer numbers.",
    "lora_alpha": "It must be a number above 0 and below 1,000,000.",
    "lora_dropout": "It must be a number from 0 to 1.",
    "r": f"The rank must be an integer from 1 to {MAX_RANK}.",
    "target_modules": "It must be a list of module names.",
    "use_dora": "It must be true or false.",
    "use_rslora": "It must be true or false.",
}


class AdapterConfig(BaseModel):
    """The keys of ``adapter_config.json`` that define an adapter, with PEFT's names."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    peft_type: Literal["LORA"]
    task_type: Literal["SEQ_CLS", "TOKEN_CLS", "CAUSAL_LM"]
    r: int = Field(ge=1, le=MAX_RANK)
    lora_alpha: float = Field(gt=0, lt=1e6)
    target_modules: Annotated[list[str], Field(min_length=1)]
    lora_dropout: Annotated[float, Field(ge=0, le=1)] | None = None
    bias: Literal["none"] | None = None
    fan_in_fan_out: bool | None = None
    init_lora_weights: bool | Literal["gaussian"] | None = None
    layers_to_transform: Annotated[list[int], Field(min_length=1)] | None = None
    modules_to_save: list[Literal["score", "classifier"]] | None = None
    use_dora: bool | None = None
    use_rslora: bool | None = None


@dataclass(frozen=True, slots=True)
class LoraShape:
    """The part of ``adapter_config.json`` that the forward pass needs.

    Attributes:
        rank, alpha, use_rslora: parameters of the update, see :attr:`scaling`.
        targets: names, or ends of names, of the adapted modules.
        layers: numbers of the adapted layers; None means all.
        use_dora: whether each output of an adapted layer also has a magnitude.
    """

    rank: int
    alpha: float
    use_rslora: bool
    targets: tuple[str, ...]
    layers: tuple[int, ...] | None = None
    use_dora: bool = False

    @property
    def scaling(self) -> float:
        """PEFT's factor on ``B A x``: alpha / r, or alpha / sqrt(r) for rank-stabilized LoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def adapts(self, module: str) -> bool:
        """Whether PEFT would adapt a linear module of this name.

        A full name is a target in any layer.
        """
        if module in self.targets:
            return True
        if not any(module.endswith(f".{name}") for name in self.targets):
            return False
        if self.layers is None:
            return True
        layer = LAYER.match(module)
        return layer is not None and int(layer[1]) in self.layers


def normalized_config(config: Mapping[str, Any], base_name: str) -> dict[str, Any]:
    """Return PEFT's configuration without what varies between equal adapters.

    PEFT writes lists in hash order, the path of the base, its own version, and in every version
    more keys that are off. The result has only the keys of :class:`AdapterConfig` that are on, and
    the name of the base.
    """
    kept = {
        key: config[key] for key in AdapterConfig.model_fields if not _is_empty(config.get(key))
    }
    kept["lora_alpha"] = float(kept["lora_alpha"])
    kept["base_model_name_or_path"] = base_name
    return {
        key: sorted(value) if isinstance(value, list | tuple) else value
        for key, value in kept.items()
    }


def check_config(config: Mapping[str, Any], path: Path) -> LoraShape:
    """Check that a configuration is LoRA or DoRA and return what the forward pass needs.

    Args:
        config: the content of ``adapter_config.json``.
        path: the file, for error messages.

    Raises:
        IntegrityError: a setting is not supported, missing or out of range.
    """
    unsupported = [
        key
        for key, value in config.items()
        if key not in AdapterConfig.model_fields
        and key not in _IGNORED_KEYS
        and not is_off(key, value)
    ]
    try:
        parsed = AdapterConfig.model_validate(config)
    except ValidationError as error:
        invalid = [str(problem["loc"][0]) for problem in error.errors(include_url=False)]
        key = "peft_type" if "peft_type" in invalid else (*unsupported, *invalid)[0]
        raise _config_error(config, key, path) from None
    if unsupported:
        raise _config_error(config, unsupported[0], path)
    layers = parsed.layers_to_transform
    return LoraShape(
        parsed.r,
        parsed.lora_alpha,
        bool(parsed.use_rslora),
        tuple(sorted(parsed.target_modules)),
        None if layers is None else tuple(sorted(layers)),
        bool(parsed.use_dora),
    )


def check_tensors(
    tensors: Mapping[str, TensorInfo], lora: LoraShape, task: Mapping[str, Any], path: Path
) -> None:
    """Check that the tensors are LoRA pairs of the configured rank, with magnitudes if it is DoRA,
    and a head if the task has one.

    Raises:
        IntegrityError: a tensor is missing, has another shape or dtype, or PEFT would ignore it.
    """
    for name, info in tensors.items():
        if info.dtype not in DTYPES:
            raise IntegrityError(
                f"{path}: {brief_repr(name)} has the dtype {info.dtype}.",
                f"Save the adapter with one of the dtypes {', '.join(DTYPES)}.",
            )
        if name.endswith(".lora_A.weight"):
            _check_pair(name, info, tensors, lora, path)
        elif name.endswith(".lora_B.weight"):
            if name.replace(".lora_B.weight", ".lora_A.weight") not in tensors:
                raise IntegrityError(f"{path} has {brief_repr(name)} without its lora_A.", REPAIR)
        elif lora.use_dora and name.endswith(MAGNITUDE):
            if f"{name.removesuffix(MAGNITUDE)}.lora_A.weight" not in tensors:
                raise IntegrityError(f"{path} has {brief_repr(name)} without its lora_A.", REPAIR)
        elif not is_head(name) and not (task["kind"] == "tagging" and is_head_bias(name)):
            reason, hint = tensor_reason(name)
            raise IntegrityError(f"{path} {reason}: {brief_repr(name)}.", hint)
    if not any(name.endswith(".lora_A.weight") for name in tensors):
        raise IntegrityError(f"{path} has no LoRA matrices.", REPAIR)
    heads = [name for name in tensors if is_head(name)]
    if task["kind"] == "generation":
        if heads:
            raise IntegrityError(
                f"{path} has a head, but its task generates text.",
                f"Set task_type to SEQ_CLS in adapter_config.json, or remove {heads[0]!r}.",
            )
        return
    outputs = head_outputs(task)
    if len(heads) != 1:
        raise IntegrityError(f"{path} has {len(heads)} heads; its task needs one.", REPAIR)
    shape = tensors[heads[0]].shape
    if len(shape) != 2 or shape[0] != outputs:
        raise IntegrityError(
            f"{path}: the head has the shape {brief_repr(shape)}; the task has {outputs} outputs.",
            REPAIR,
        )
    for name, info in tensors.items():
        if is_head_bias(name) and info.shape != shape[:1]:
            raise IntegrityError(
                f"{path}: {brief_repr(name)} has the shape {brief_repr(info.shape)}; the task has "
                f"{outputs} outputs.",
                REPAIR,
            )


def head_outputs(task: Mapping[str, Any]) -> int:
    """Outputs of the head of a task that has one."""
    labels = len(task.get("labels", ()))
    return {"tagging": 1 + 2 * labels, "classification": labels, "multilabel": labels}.get(
        task["kind"], 1
    )


def adapted_module(name: str) -> str | None:
    """The module that a ``lora_A`` tensor belongs to; None for any other tensor."""
    if not name.startswith(PREFIX) or not name.endswith(".lora_A.weight"):
        return None
    return name.removeprefix(PREFIX).removesuffix(".lora_A.weight")


def is_head(name: str) -> bool:
    """Whether a tensor's name is that of the matrix of the head."""
    return name in tuple(f"{PREFIX}{head}.weight" for head in HEADS)


def is_head_bias(name: str) -> bool:
    """Whether a tensor's name is that of the head's bias, which only tagging has.

    transformers gives a bias to the head of a token classification, and none to the others.
    """
    return name in tuple(f"{PREFIX}{head}.bias" for head in HEADS)


def _config_error(config: Mapping[str, Any], key: str, path: Path) -> IntegrityError:
    """Build the error for a key that is missing, unsupported or out of range."""
    value = brief_repr(config.get(key))
    if key not in config:
        return IntegrityError(
            f"{path} has no {key}.", "Add it with the value that the training used."
        )
    if key == "modules_to_save":
        return IntegrityError(
            f"{path} has full copies of trained modules: modules_to_save = {value}.",
            "Only a head may be saved in full: train the linear layers with LoRA.",
        )
    if key in _EXPECTED:
        return IntegrityError(f"{path} has {key} = {value}.", _EXPECTED[key])
    if key in _UNSUPPORTED:
        return unsupported_setting(key, config[key], path)
    return IntegrityError(
        f"{path} sets {brief_repr(key)} = {value}, which is not supported.",
        "It may change the answers. If you know that it does not, set it to null in the file.",
    )


def tensor_reason(name: str) -> tuple[str, str]:
    """Why a tensor is refused that is neither of a LoRA pair nor a head, and the way out."""
    for part, key in _TENSORS_OF_SETTINGS.items():
        if part in name:
            return _UNSUPPORTED[key]
    if MAGNITUDE in name:
        return (
            "has magnitudes of DoRA, but the configuration does not set use_dora",
            'Set "use_dora": true in adapter_config.json if it was trained with DoRA.',
        )
    if _IN_MEMORY.search(name):
        return "has names of a model in memory, not of a saved adapter", _SAVE_HINT
    for part, reason in _FOREIGN_NAMES.items():
        if part in name:
            return reason, _SAVE_HINT
    if "lora_embedding_" in name:
        return "adapts the embeddings", "Train it again on the linear layers only."
    if any(name.startswith(f"{PREFIX}{head}.") for head in HEADS):
        return (
            "has a head with a bias or with several layers; only a single matrix is supported",
            _HEAD_HINT,
        )
    if name.endswith(".bias"):
        return "has biases", _UNSUPPORTED["bias"][1]
    if "lora_" not in name and name.endswith(".weight"):
        return (
            "has a weight of the base itself",
            "The base is shared, so only a head may be saved in full: train the linear layers with "
            "LoRA, and save with save_embedding_layers=False.",
        )
    return "has an unknown tensor", _SAVE_HINT


def _check_pair(
    name: str, down: TensorInfo, tensors: Mapping[str, TensorInfo], lora: LoraShape, path: Path
) -> None:
    up = tensors.get(name.replace(".lora_A.weight", ".lora_B.weight"))
    if up is None:
        raise IntegrityError(f"{path} has {brief_repr(name)} without its lora_B.", REPAIR)
    if not _is_matrix(down.shape) or not _is_matrix(up.shape):
        raise IntegrityError(
            f"{path}: {brief_repr(name)} is not a matrix: {brief_repr(down.shape)}.", REPAIR
        )
    if down.shape[0] != lora.rank or up.shape[1] != lora.rank:
        raise IntegrityError(
            f"{path}: {brief_repr(name)} has the shape {down.shape} and its lora_B {up.shape}; the "
            f"rank is {lora.rank}.",
            REPAIR,
        )
    module = adapted_module(name)
    if module is None:
        raise IntegrityError(
            f"{path} has {brief_repr(name)}, which is not a name that PEFT uses.",
            f"The name must start with {PREFIX}",
        )
    if not lora.adapts(module):
        raise IntegrityError(
            f"{path} has {brief_repr(name)}, which target_modules does not include.", REPAIR
        )
    if lora.use_dora:
        magnitude = tensors.get(f"{PREFIX}{module}{MAGNITUDE}")
        if magnitude is None or magnitude.shape != up.shape[:1]:
            shape = "no magnitudes" if magnitude is None else f"magnitudes {magnitude.shape}"
            raise IntegrityError(
                f"{path} has {shape} for {brief_repr(module)}; use_dora needs one for each of "
                f"its {up.shape[0]} outputs.",
                REPAIR,
            )


def _is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a matrix, perhaps written as a 1×1 convolution."""
    return len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))


def is_off(key: str, value: Any) -> bool:
    """Whether PEFT takes the value of a key that is not of :class:`AdapterConfig` as off."""
    if key in _ON_IF_EMPTY:
        return value is None or value is False
    return _is_empty(value) or (key in _SWITCHES and value == 0)


def unsupported_setting(key: str, value: Any, path: Path) -> IntegrityError:
    """Build the error for a key that is set and that inference does not support."""
    reason, hint = _UNSUPPORTED[key]
    return IntegrityError(f"{path} {reason}: {key} = {brief_repr(value)}.", hint)


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ({}, [])

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
TASK_TYPES = {"classification": "SEQ_CLS", "regression": "SEQ_CLS", "generation": "CAUSAL_LM"}
DTYPES = ("F32", "F16", "BF16")

PREFIX = "base_model.model."
"""The start of every tensor name that PEFT saves; the name of the module follows."""

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

_LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")

_PLAIN_HINT = "Only plain LoRA is supported: no biases, no DoRA, no custom code."
_INIT_HINT = (
    "Convert it where it was trained: PEFT's save_pretrained takes "
    "path_initial_model_for_weight_conversion."
)

_UNSUPPORTED = {
    "alora_invocation_tokens": "is only active after certain tokens (aLoRA)",
    "alpha_pattern": "gives some modules another alpha",
    "arrow_config": "chooses between several adapters for each token (Arrow)",
    "auto_map": "names custom code",
    "bias": "also trains the base's biases",
    "init_lora_weights": "may start from weights taken out of the base, so it may only fit a base "
    "that was changed in the same way",
    "kasa_config": "changes the base's weights (KaSA)",
    "layer_replication": "repeats layers of the base",
    "loftq_config": "needs a base that LoftQ has changed",
    "lora_bias": "adds a bias to the LoRA matrices",
    "megatron_config": "needs the parallel layers of Megatron",
    "peft_type": "was not made by LoRA",
    "rank_pattern": "gives some modules another rank",
    "target_parameters": "adapts bare parameters, not linear layers",
    "task_type": "is for a task that is not supported",
    "trainable_token_indices": "trains the embeddings of some tokens",
    "use_bdlora": "has block-diagonal matrices (BD-LoRA)",
    "use_dora": "uses DoRA, which is more than the product of two matrices",
    "use_qalora": "pools its inputs in groups (QA-LoRA)",
}
"""Key of ``adapter_config.json`` → why an adapter that sets it is refused."""

_EXPECTED = {
    "fan_in_fan_out": "It must be true or false.",
    "layers_to_transform": "It must be a list of layer numbers.",
    "lora_alpha": "It must be a number above 0 and below 1,000,000.",
    "lora_dropout": "It must be a number from 0 to 1.",
    "r": f"The rank must be an integer from 1 to {MAX_RANK}.",
    "target_modules": "It must be a list of module names.",
    "use_rslora": "It must be true or false.",
}


class AdapterConfig(BaseModel):
    """The keys of ``adapter_config.json`` that define an adapter, with PEFT's names."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    peft_type: Literal["LORA"]
    task_type: Literal["SEQ_CLS", "CAUSAL_LM"]
    r: int = Field(ge=1, le=MAX_RANK)
    lora_alpha: float = Field(gt=0, lt=1e6)
    target_modules: Annotated[list[str], Field(min_length=1)]
    lora_dropout: float = Field(default=0.0, ge=0, le=1)
    bias: Literal["none"] | None = None
    fan_in_fan_out: bool | None = None
    init_lora_weights: bool | Literal["gaussian"] | None = None
    layers_to_transform: Annotated[list[int], Field(min_length=1)] | None = None
    modules_to_save: list[Literal["score", "classifier"]] | None = None
    use_rslora: bool | None = None


@dataclass(frozen=True, slots=True)
class LoraShape:
    """The part of ``adapter_config.json`` that the forward pass needs.

    Attributes:
        rank, alpha, use_rslora: parameters of the update, see :attr:`scaling`.
        targets: names, or ends of names, of the adapted modules.
        layers: numbers of the adapted layers; None means all.
    """

    rank: int
    alpha: float
    use_rslora: bool
    targets: tuple[str, ...]
    layers: tuple[int, ...] | None = None

    @property
    def scaling(self) -> float:
        """PEFT's factor on ``B A x``: alpha / r, or alpha / sqrt(r) for rank-stabilized LoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def adapts(self, module: str) -> bool:
        """Whether PEFT would adapt a linear module of this name."""
        if not any(module == name or module.endswith(f".{name}") for name in self.targets):
            return False
        if self.layers is None:
            return True
        layer = _LAYER.match(module)
        return layer is not None and int(layer[1]) in self.layers


def normalized_config(config: Mapping[str, Any], base_name: str) -> dict[str, Any]:
    """Return PEFT's configuration without what varies between equal adapters.

    PEFT writes lists in hash order, the path of the base, its own version, and in every version
    more keys that are off. The result has only the keys of :class:`AdapterConfig` that are on, and
    the name of the base.
    """
    kept = {key: config[key] for key in AdapterConfig.model_fields if not _is_off(config.get(key))}
    kept["lora_alpha"] = float(kept["lora_alpha"])
    kept["base_model_name_or_path"] = base_name
    return {
        key: sorted(value) if isinstance(value, list | tuple) else value
        for key, value in kept.items()
    }


def check_config(config: Mapping[str, Any], path: Path) -> LoraShape:
    """Check that a configuration is plain LoRA and return what the forward pass needs.

    Args:
        config: the content of ``adapter_config.json``.
        path: the file, for error messages.

    Raises:
        IntegrityError: a setting is not supported, missing or out of range.
    """
    unsupported = [
        key
        for key, value in config.items()
        if key not in AdapterConfig.model_fields and key not in _IGNORED_KEYS and not _is_off(value)
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
    )


def check_tensors(
    tensors: Mapping[str, TensorInfo], lora: LoraShape, task: Mapping[str, Any], path: Path
) -> None:
    """Check that the tensors are LoRA pairs of the configured rank, and a head if the task has one.

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
        elif not is_head(name):
            raise IntegrityError(f"{path} {_tensor_reason(name)}: {brief_repr(name)}.", _PLAIN_HINT)
    if not any(name.endswith(".lora_A.weight") for name in tensors):
        raise IntegrityError(f"{path} has no LoRA matrices.", REPAIR)
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
    """The module that a ``lora_A`` tensor belongs to; None for any other tensor."""
    if not name.startswith(PREFIX) or not name.endswith(".lora_A.weight"):
        return None
    return name.removeprefix(PREFIX).removesuffix(".lora_A.weight")


def is_head(name: str) -> bool:
    """Whether a tensor's name is that of the classification or regression head."""
    return name in tuple(f"{PREFIX}{head}.weight" for head in HEADS)


def _config_error(config: Mapping[str, Any], key: str, path: Path) -> IntegrityError:
    """Build the error for a key that is missing, unsupported or out of range."""
    value = brief_repr(config.get(key))
    if key not in config:
        return IntegrityError(f"{path} has no {key}.", REPAIR)
    if key == "modules_to_save":
        return IntegrityError(
            f"{path} has full copies of trained modules: modules_to_save = {value}.",
            "Only a head may be saved in full: train the linear layers with LoRA.",
        )
    if key in _EXPECTED:
        return IntegrityError(f"{path} has {key} = {value}.", _EXPECTED[key])
    if key in _UNSUPPORTED:
        hint = _INIT_HINT if key == "init_lora_weights" else _PLAIN_HINT
        return IntegrityError(f"{path} {_UNSUPPORTED[key]}: {key} = {value}.", hint)
    return IntegrityError(
        f"{path} sets {brief_repr(key)} = {value}, which is not supported.", _PLAIN_HINT
    )


def _tensor_reason(name: str) -> str:
    """Why a tensor is refused that belongs to neither a LoRA pair nor a head of one matrix."""
    if "lora_magnitude_vector" in name:
        return _UNSUPPORTED["use_dora"]
    if "lora_embedding_" in name:
        return "adapts the embeddings"
    if "trainable_tokens" in name:
        return _UNSUPPORTED["trainable_token_indices"]
    if any(name.startswith(f"{PREFIX}{head}.") for head in HEADS):
        return "has a head with a bias or with several layers; only a single matrix is supported"
    if name.endswith(".bias"):
        return "has biases"
    if "lora_" not in name and name.endswith(".weight"):
        return "has a weight of the base itself"
    return "has an unknown tensor"


def _check_pair(
    name: str, down: TensorInfo, tensors: Mapping[str, TensorInfo], lora: LoraShape, path: Path
) -> None:
    up = tensors.get(name.replace(".lora_A.weight", ".lora_B.weight"))
    if up is None:
        raise IntegrityError(f"{path} has {brief_repr(name)} without its lora_B.", REPAIR)
    if len(down.shape) != 2 or len(up.shape) != 2:
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


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ({}, [])

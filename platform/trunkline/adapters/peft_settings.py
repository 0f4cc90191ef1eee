"""What happens to each field of a PEFT configuration at import.

A setting without an effect on the saved matrices is left out. A setting that could have one is
taken where the tensors prove that it has none, and refused by name otherwise. No pattern of the
configuration is evaluated, except names with dots.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from trunkline.adapters.artifact import CONFIG, WEIGHTS
from trunkline.adapters.config import (
    CONVERT_HINT,
    HEADS,
    PREFIX,
    adapted_module,
    is_off,
    unsupported_setting,
)
from trunkline.adapters.peft_folder import PeftFolder
from trunkline.adapters.peft_targets import ModuleTree
from trunkline.errors import IntegrityError
from trunkline.files import brief_repr

TARGET_KEYS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Keys that select the modules; the imported configuration lists the modules by name."""

_TRAINING_KEYS = (
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "loftq_config",
    "lora_dtype",
    "lora_ga_config",
    "lorap_emb_lr",
    "lorap_lr_ratio",
    "merge_weights",
    "revision",
    "runtime_config",
    "transformers_version",
)
"""Keys without an effect on the saved matrices, whatever their value."""

_EVIDENCE_KEYS = (
    "alpha_pattern",
    "bias",
    "layer_replication",
    "monteclora_config",
    "rank_pattern",
    "use_qalora",
    "velora_config",
)
"""Keys that the imported configuration does not keep where the tensors prove them harmless."""

_PLAIN_INITS = ("eva", "mica", "orthogonal")
"""Initializations of the LoRA matrices that leave the base unchanged."""

_TRAINING_BUFFERS = {
    "monteclora_config": "lora_monteclora_sampler",
    "velora_config": "lora_velora_embed",
}
"""Key of a method that differs from LoRA only in training → part of its own tensors' names."""

_PLAIN_KEY = re.compile(r"\^?[A-Za-z0-9_.]+", re.ASCII)
_MAX_KEYS = 4096
_ADD_SETTING = "The file is incomplete: save the adapter again with save_pretrained."


def left_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a configuration that are set but that the imported one does not keep."""
    keys = (*TARGET_KEYS, *_TRAINING_KEYS, *_EVIDENCE_KEYS, "init_lora_weights", "modules_to_save")
    return {key: config[key] for key in (*keys, "peft_version") if config.get(key)}


def resolve_settings(peft: PeftFolder, tree: ModuleTree, notes: list[str]) -> dict[str, Any]:
    """The configuration without the settings that provably change nothing.

    The targets and all other keys are kept as they are.

    Args:
        peft: the folder; its targets and tensors are not checked yet.
        tree: of the base.
        notes: receives a sentence for each setting that is taken but not used.

    Raises:
        IntegrityError: the tensors do not prove that a setting is harmless.
    """
    config = {key: value for key, value in peft.config.items() if key not in _TRAINING_KEYS}
    if config.get("peft_type") != "LORA":
        return config
    _resolve_init(config)
    if not config.get("use_dora"):  # also 0 and null
        config.pop("use_dora", None)
    _resolve_dropout(config)
    _resolve_bias(config, peft, tree)
    _resolve_rank(config, peft, notes)
    _resolve_alpha(config, peft, notes)
    _resolve_saved_modules(config, peft, tree, notes)
    _resolve_replication(config, tree)
    _resolve_qalora(config, peft, tree)
    for key, part in _TRAINING_BUFFERS.items():
        if not is_off(key, config.get(key)) and not any(part in name for name in peft.tensors):
            del config[key]
    return config


def _resolve_init(config: dict[str, Any]) -> None:
    value = config.get("init_lora_weights")
    if value in _PLAIN_INITS or (isinstance(value, str) and value.lower() == "gaussian"):
        config["init_lora_weights"] = True


def _resolve_dropout(config: dict[str, Any]) -> None:
    if config.get("lora_dropout") is None:  # PEFT 0.3 wrote null
        config.pop("lora_dropout", None)


def _resolve_bias(config: dict[str, Any], peft: PeftFolder, tree: ModuleTree) -> None:
    """Drop ``bias`` if the base has no bias that it trains."""
    value = config.get("bias")
    if value in (None, "none"):
        return
    if value not in ("lora_only", "all"):
        raise IntegrityError(
            f"{peft.folder / CONFIG} has bias = {brief_repr(value)}.",
            "It must be none, lora_only or all.",
        )
    saved = sorted(name for name in peft.tensors if name.endswith(".bias"))
    if saved:
        raise unsupported_setting("bias", value, peft.folder / CONFIG)
    trained = sorted(tree.biased & peft.adapted if value == "lora_only" else tree.biased)
    if trained:
        raise IntegrityError(
            f"{peft.folder / CONFIG} has bias = {value!r}, but {WEIGHTS} lacks the trained biases, "
            f"such as that of {brief_repr(trained[0])}.",
            f"{_ADD_SETTING} Trained biases are not supported: use bias='none'.",
        )
    config["bias"] = "none"


def _resolve_rank(config: dict[str, Any], peft: PeftFolder, notes: list[str]) -> None:
    """Replace ``rank_pattern`` by the rank that all matrices have."""
    pattern = _read_pattern(config, "rank_pattern", peft)
    if pattern is None:
        return
    ranks = {name: peft.tensors[f"{PREFIX}{name}.lora_A.weight"].shape[:1] for name in peft.adapted}
    for name, by_name in _apply(pattern, None, peft.adapted).items():
        if by_name is not None and (by_name,) != ranks[name]:
            raise IntegrityError(
                f"{peft.folder / CONFIG} gives {brief_repr(name)} the rank {by_name} in "
                f"rank_pattern, but its matrices have another rank: {brief_repr(ranks[name])}.",
                "The file is damaged or was changed: save the adapter again with save_pretrained.",
            )
    default = config.get("r")
    uniform = set(ranks.values())
    allowed = {(default,), *((value,) for value in pattern.values())}
    if len(uniform) != 1 or not uniform <= allowed:
        raise unsupported_setting("rank_pattern", pattern, peft.folder / CONFIG)
    config["rank_pattern"] = None
    config["r"] = uniform.pop()[0]
    if config["r"] != default:
        notes.append(
            f"rank_pattern gives every adapted module the rank {config['r']}; r = "
            f"{brief_repr(default)} is not used."
        )


def _resolve_alpha(config: dict[str, Any], peft: PeftFolder, notes: list[str]) -> None:
    """Replace ``alpha_pattern`` by the alpha that all adapted modules get."""
    pattern = _read_pattern(config, "alpha_pattern", peft)
    if pattern is None:
        return
    default = config.get("lora_alpha")
    if all(value == default for value in pattern.values()):
        config["alpha_pattern"] = None
        return
    if not all(_PLAIN_KEY.fullmatch(key) for key in pattern):
        raise IntegrityError(
            f"{peft.folder / CONFIG} has patterns in alpha_pattern, which are not evaluated: "
            f"{brief_repr(pattern)}.",
            f"Write the modules' names instead. {CONVERT_HINT}",
        )
    alphas = set(_apply(pattern, default, peft.adapted).values())
    if len(alphas) != 1:
        raise unsupported_setting("alpha_pattern", pattern, peft.folder / CONFIG)
    config["alpha_pattern"] = None
    config["lora_alpha"] = alphas.pop()
    if config["lora_alpha"] != default:
        notes.append(
            f"alpha_pattern gives every adapted module the alpha {config['lora_alpha']}; "
            f"lora_alpha = {brief_repr(default)} is not used."
        )


def _read_pattern(
    config: Mapping[str, Any], key: str, peft: PeftFolder
) -> dict[str, int | float] | None:
    """The pattern's entries; None if it has none."""
    pattern: Any = config.get(key)
    if is_off(key, pattern) or not peft.adapted:  # later checks report missing matrices
        return None
    numbers = (int,) if key == "rank_pattern" else (int, float)
    if (
        not isinstance(pattern, dict)
        or len(pattern) > _MAX_KEYS
        or not all(type(value) in numbers for value in pattern.values())
    ):
        raise IntegrityError(
            f"{peft.folder / CONFIG} has {key} = {brief_repr(pattern)}.",
            f"It must give numbers by the names of modules, {_MAX_KEYS} at most.",
        )
    return pattern


def _apply(
    pattern: Mapping[str, int | float], default: Any, adapted: Iterable[str]
) -> dict[str, Any]:
    """Module → its value by the first key that matches, as in PEFT; keys with operators match none.

    A dot in a key stands for any character, which is all that such a key can hold of a pattern.
    """
    keys = [
        (re.compile(rf"(.*\.)?({key})$"), value)
        for key, value in pattern.items()
        if _PLAIN_KEY.fullmatch(key)
    ]
    return {
        name: next((value for key, value in keys if key.match(name)), default) for name in adapted
    }


def _resolve_saved_modules(
    config: dict[str, Any], peft: PeftFolder, tree: ModuleTree, notes: list[str]
) -> None:
    """Drop names in ``modules_to_save`` that neither the base nor the file has."""
    names: Any = config.get("modules_to_save")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return
    unused = [
        name
        for name in names
        if name not in HEADS
        and not any(_is_below(module, name) for module in tree.modules)
        and not any(_is_below(_tensor_module(tensor), name) for tensor in peft.tensors)
    ]
    if unused:
        config["modules_to_save"] = [name for name in names if name not in unused] or None
        notes.append(
            f"modules_to_save names {_listed(unused)}, which this base does not have and the "
            "weights do not contain."
        )


def _is_below(module: str, name: str) -> bool:
    """Whether ``name`` is the module, or one that contains it."""
    return f".{name}." in f".{module}."


def _tensor_module(name: str) -> str:
    adapted = adapted_module(name)
    return name.removeprefix(PREFIX).rpartition(".")[0] if adapted is None else adapted


def _resolve_replication(config: dict[str, Any], tree: ModuleTree) -> None:
    """Drop a replication that takes each layer once, in order."""
    ranges: Any = config.get("layer_replication")
    if not isinstance(ranges, list) or len(ranges) > _MAX_KEYS:
        return
    stacked: list[int] = []
    for part in ranges:
        if not (isinstance(part, list) and len(part) == 2 and all(type(n) is int for n in part)):
            return
        start, stop = part
        if not 0 <= start <= stop <= tree.layers:
            return
        stacked += range(start, stop)
    if stacked == list(range(tree.layers)):
        config["layer_replication"] = None


def _resolve_qalora(config: dict[str, Any], peft: PeftFolder, tree: ModuleTree) -> None:
    """Drop ``use_qalora`` if the matrices take all inputs: then PEFT did not pool them."""
    if is_off("use_qalora", config.get("use_qalora")):
        return
    group = config.get("qalora_group_size", 16)
    full = all(
        name in tree.linear
        and peft.tensors[f"{PREFIX}{name}.lora_A.weight"].shape[1:] == tree.linear[name][:1]
        for name in peft.adapted
    )
    if full and type(group) is int and group > 1:
        config["use_qalora"] = None


def _listed(names: Iterable[str]) -> str:
    shown = [brief_repr(name) for name in names]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
